"""Walks a jaxpr, and computes what in it does not depend on the images."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.extend
import numpy as np

from harmoniad_jax.exporting import rules
from harmoniad_jax.exporting.values import Equation


def walked(
    jaxpr: jax.extend.core.Jaxpr,
    constants: Sequence[Any],
    inputs: Sequence[Any],
    apply: Callable[[Equation, list[Any]], list[Any]],
) -> list[Any]:
    """The outputs of a jaxpr, whose equations `apply` works out in their order.

    Args:
      jaxpr: with constants and inputs of these values.
      constants, inputs: of any kind.
      apply: gives the outputs of an equation for its inputs; literals are numpy arrays.
    """
    values: dict[Any, Any] = {}
    values.update(zip(jaxpr.constvars, constants, strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Any:
        if isinstance(atom, jax.extend.core.Literal):
            return np.asarray(atom.val, atom.aval.dtype)
        return values[atom]

    for equation in jaxpr.eqns:
        found = apply(Equation(equation), list(map(read, equation.invars)))
        values.update(zip(equation.outvars, found, strict=True))
    return list(map(read, jaxpr.outvars))


def known_values(traced: jax.extend.core.ClosedJaxpr) -> Iterator[list[np.ndarray]]:
    """What can be computed without the images: outputs of each such equation, in order.

    As one program: compiling hundreds of small ones would take longer than all the rest.

    Args:
      traced: of one input, the images.
    """
    return iter(jax.device_get(jax.jit(lambda c: _known(traced.jaxpr, c))(traced.consts)))


def _known(jaxpr: jax.extend.core.Jaxpr, constants: Sequence[Any]) -> list[list[Any]]:
    """Traces the equations without images; None stands for what depends on them."""
    found: list[list[Any]] = []

    def apply(equation: Equation, inputs: list[Any]) -> list[Any]:
        images_matter = any(value is None for value in inputs)
        unknown = [None] * len(equation.output_shapes)
        if images_matter and equation.function in rules.NAMED:
            return unknown
        inner = equation.inner
        if inner is not None:
            return walked(inner.jaxpr, inner.consts, inputs, apply)
        if images_matter or not equation.is_static:
            return unknown
        found.append(equation.evaluate(inputs))
        return found[-1]

    walked(jaxpr, constants, [None], apply)
    return found
