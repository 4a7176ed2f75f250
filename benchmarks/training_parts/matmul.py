"""How fast the devices multiply matrices: what every part is measured against."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from harmoniad_jax.devices.mesh import batched, replicated
from training_parts.timing import Part, always_ready

# Sides of the matrices: large enough to be fast, small enough to be multiplied often.
SIDES = {"cpu": (1024, 2048)}
ACCELERATOR_SIDES = (4096, 8192)
# Rows for each side: square, and tall as the tokens of a batch.
HEIGHTS = (1, 4)


def default_sides() -> tuple[int, ...]:
    """The sides for the devices that there are."""
    return SIDES.get(jax.default_backend(), ACCELERATOR_SIDES)


def matmul_parts(mesh: Mesh, dtypes: Sequence[str], sides: Sequence[int]) -> list[Part]:
    """A part for each dtype and shape; each part's only flops are of its dtype."""
    return [
        _matmul(mesh, dtype, height * side, side)
        for dtype in dtypes
        for side in sides
        for height in HEIGHTS
    ]


def _matmul(mesh: Mesh, dtype: str, height: int, side: int) -> Part:
    """[height, side] times [side, side] on every device at the same time."""
    rows = mesh.size * height

    # Of the precision that the parts have: JAX's default, whatever the user set it to.
    multiply = jax.jit(jnp.matmul, out_shardings=batched(mesh))

    def draw(key: int, shape: tuple[int, int], sharding) -> jax.Array:
        normal = jax.jit(
            lambda: jax.random.normal(jax.random.key(key), shape, dtype),
            out_shardings=sharding,
        )
        return normal()

    left = draw(0, (rows, side), batched(mesh))
    right = draw(1, (side, side), replicated(mesh))
    return Part(
        name=f"matmul {height} x {side} x {side} {dtype}",
        ready=always_ready(lambda: multiply(left, right)),
        flops={dtype: 2.0 * rows * side * side},
    )


def best_rates(parts: Sequence[Part], seconds: Sequence[float]) -> dict[str, float]:
    """FLOP/s over all devices of the fastest shape, by dtype.

    Args:
      parts: of `matmul_parts`.
      seconds: of a call of each.
    """
    rates: dict[str, float] = {}
    for part, duration in zip(parts, seconds, strict=True):
        ((dtype, flops),) = part.flops.items()
        rates[dtype] = max(rates.get(dtype, 0.0), flops / duration)
    return rates
