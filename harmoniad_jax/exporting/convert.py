"""From a JAX function to an ONNX graph: walks its jaxpr, equation by equation.

Everything that does not depend on the images is computed here: position embeddings, gates,
interpolation matrices. `rules.py` knows the primitives that are left.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.extend
import jax.numpy as jnp
import numpy as np
import onnx

from harmoniad_jax.exporting import rules
from harmoniad_jax.exporting.graph import Graph, Tensor
from harmoniad_jax.exporting.known import known_values, walked
from harmoniad_jax.exporting.values import (
    BATCH,
    Equation,
    Spread,
    Value,
    is_known,
    refused,
    whole,
)


def to_onnx(
    function: Callable,
    *,
    shape: tuple[int, int],
    outputs: Sequence[str],
    metadata: Mapping[str, str],
    half_weights: bool = False,
) -> onnx.ModelProto:
    """Converts a function of a batch of images of any size.

    Args:
      function: traceable, of images [B, H, W, 3] uint8; returns arrays with a leading B.
      shape: H and W.
      outputs: a name for each array it returns.
      metadata: text by key, stored in the model.
      half_weights: see `Graph`.

    Raises:
      UserError: the function does what no rule is written for, or has too many weights.
    """
    (batch,) = jax.export.symbolic_shape(BATCH)
    images = jax.ShapeDtypeStruct((batch, *shape, 3), jnp.uint8)
    traced = jax.make_jaxpr(function)(images)
    graph = Graph(half_weights=half_weights)
    walk = _Walk(graph, known_values(traced))
    found = walk(traced.jaxpr, traced.consts, [Tensor("images")])
    described = {
        name: (whole(graph, value), variable.aval.dtype, _free(variable.aval.shape))
        for name, value, variable in zip(outputs, found, traced.jaxpr.outvars, strict=True)
    }
    return graph.model({"images": (np.uint8, _free(images.shape))}, described, metadata)


def _free(shape: Sequence[Any]) -> list[int | str]:
    return [size if is_known(size) else BATCH for size in shape]


class _Walk:
    """Adds the equations of a jaxpr to a graph."""

    def __init__(self, graph: Graph, known: Iterator[list[np.ndarray]]):
        self._graph, self._known = graph, known

    def __call__(
        self,
        jaxpr: jax.extend.core.Jaxpr,
        constants: Sequence[Any],
        inputs: Sequence[Value],
    ) -> list[Value]:
        """The values of the jaxpr's outputs."""
        return walked(jaxpr, list(map(np.asarray, constants)), inputs, self._apply)

    def _apply(self, equation: Equation, inputs: list[Value]) -> list[Value]:
        """The outputs of one equation."""
        images_matter = any(not isinstance(value, np.ndarray) for value in inputs)
        if images_matter and equation.function in rules.NAMED:
            return [rules.NAMED[equation.function](self._graph, equation, *inputs)]
        inner = equation.inner
        if inner is not None:
            return self(inner.jaxpr, inner.consts, inputs)
        if not images_matter and equation.is_static:
            return next(self._known)
        rule = rules.RULES.get(equation.name)
        if rule is None:
            raise refused(f"{equation.name!r}")
        found = rule(self._graph, equation, *inputs)
        found = found if isinstance(found, list) else [found]
        # What a rule passes on counts as computed by the graph, as in `known_values`.
        return [
            Spread(value, shape) if isinstance(value, np.ndarray) else value
            for value, shape in zip(found, equation.output_shapes, strict=True)
        ]
