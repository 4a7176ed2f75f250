"""What a jaxpr's variables stand for while it is converted, and its equations."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from harmoniad_jax.errors import UserError
from harmoniad_jax.exporting.graph import Graph, Tensor

# The free size of the images' first axis.
BATCH = "batch"


class Spread(NamedTuple):
    """A value that is repeated to a larger shape, which is left to whoever uses it.

    Attributes:
      of: of as many axes as `shape`; those of size 1 are repeated.
      shape: may hold the free batch size.
    """

    of: Tensor | np.ndarray
    shape: tuple[Any, ...]


# A constant, a value of the graph, or one that is still to be repeated.
Value = np.ndarray | Tensor | Spread


def refused(what: str) -> UserError:
    """The error for what no rule is written for."""
    return UserError(
        f"this run cannot be exported to ONNX: its network computes {what}, which the "
        "converter does not know; try --format=stablehlo."
    )


def is_known(size: Any) -> bool:
    """Whether a size is a number, and not an expression of the free batch size."""
    return isinstance(size, int | np.integer)


def unspread(value: Value) -> Tensor | np.ndarray:
    """The value before it is repeated, for operators that repeat by themselves."""
    return value.of if isinstance(value, Spread) else value


def whole(graph: Graph, value: Value) -> Tensor | np.ndarray:
    """The value in its own shape."""
    if not isinstance(value, Spread):
        return value
    if all(map(is_known, value.shape)):
        if isinstance(value.of, np.ndarray):
            return np.broadcast_to(value.of, value.shape)
        return graph.add("Expand", value.of, np.array(value.shape, np.int64))
    count = graph.add("Shape", Tensor("images"), start=0, end=1)
    sizes = [count if not is_known(n) else np.array([n], np.int64) for n in value.shape]
    if any(not is_known(n) and str(n) != BATCH for n in value.shape):
        raise refused(f"a value that is repeated to {value.shape}")
    return graph.add("Expand", value.of, graph.add("Concat", *sizes, axis=0))


def shape_constant(shape: Sequence[Any]) -> np.ndarray:
    """A shape for Reshape, whose one free size is left open."""
    return np.array([n if is_known(n) else -1 for n in shape], np.int64)


class Equation:
    """An equation of a jaxpr, as far as the rules ask.

    Attributes:
      name: of the primitive.
      params: of the primitive.
      input_shapes, output_shapes: tuples of sizes, some of them free.
    """

    def __init__(self, equation: Any):
        self._equation = equation
        self.name: str = equation.primitive.name
        self.params: dict[str, Any] = equation.params
        self.input_shapes = [tuple(variable.aval.shape) for variable in equation.invars]
        self.output_shapes = [tuple(variable.aval.shape) for variable in equation.outvars]
        self.output_dtype = equation.outvars[0].aval.dtype

    @property
    def inner(self) -> Any | None:
        """The closed jaxpr that it calls, if it calls one."""
        for key in ("jaxpr", "call_jaxpr"):
            if hasattr(self.params.get(key), "jaxpr"):
                return self.params[key]
        return None

    @property
    def function(self) -> str:
        """The name of the function that it calls; empty if it calls none."""
        if self.name.startswith("custom_"):
            return self.params["call_jaxpr"].jaxpr.debug_info.func_name
        return str(self.params.get("name", ""))

    @property
    def is_static(self) -> bool:
        """Whether it can be computed without knowing the number of images."""
        sizes = [n for shape in self.output_shapes for n in shape]
        return all(map(is_known, sizes)) and self.name != "dim_as_value"

    def evaluate(self, inputs: Sequence[Any]) -> list[Any]:
        """Its outputs for arrays."""
        primitive = self._equation.primitive
        found = primitive.bind(*map(jnp.asarray, inputs), **self.params)
        return list(found) if primitive.multiple_results else [found]
