"""The loss: hard-mined cosine distance between target and predicted feature maps.

    hardcos(F, P) = mean_g 1 - cos(flat(F_g), flat(P_g))
    L = hardcos(F, F_fused) + a hardcos(F_high, P_high) + b hardcos(F_low, P_low)

Its value is the plain cosine distance of the flattened maps; hard mining changes the
gradient only, which is scaled down where a position is already rebuilt well (Dinomaly,
Guo et al. 2025). Otherwise the many easy positions would train the network to generalise
to anomalies too.

A batch may hold images of several shapes, which are computed apart. Their losses are then
averaged, weighted by the shapes' shares; which positions are easy is asked of all at once.
Rows that only fill a batch up are cut off the distances and not off the maps, which are far
larger: a cut moves rows between devices.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from harmoniad_jax.config import LossConfig
from harmoniad_jax.model.harmoniad import Comparison
from harmoniad_jax.model.scoring import InnerProducts, inner_products

# What rounding may do to a distance in [0, 2]. XLA may compute one twice, and not alike: so
# close to the threshold a position counts as hard, whichever of the two is compared.
ROUNDING = 1e-6


class HardMining(NamedTuple):
    """How easy positions are found and held back.

    share: float32 scalar or float in [0, 1), the easiest positions of the batch.
    gradient: factor on their gradient.
    """

    share: jax.Array | float
    gradient: float


def growth_steps(config: LossConfig, num_steps: int) -> int:
    """Steps in which the easy share grows, in a run of `num_steps`."""
    if config.easy_within == 0:
        return config.easy_steps
    return min(config.easy_steps, round(config.easy_within * num_steps))


def easy_share(step: jax.Array, final_share: float, growth_steps: int) -> jax.Array:
    """The easy share at a step: linear from 0 to `final_share`, then constant."""
    return final_share * jnp.minimum(step / max(growth_steps, 1), 1.0)


@jax.custom_vjp
def scale_gradient(values: jax.Array, factor: jax.Array) -> jax.Array:
    """The values themselves; their gradient is multiplied by `factor` (broadcast)."""
    del factor
    return values


scale_gradient.defvjp(
    lambda values, factor: (values, factor),
    lambda factor, gradient: (gradient * factor, jnp.zeros_like(factor)),
)


def hard_cosine(
    comparisons: Sequence[Comparison],
    mining: HardMining | None,
    shares: Sequence[float] = (1.0,),
    rows: Sequence[int] | None = None,
) -> jax.Array:
    """hardcos(F, P), averaged over the batch and the groups.

    Args:
      comparisons: one for each shape of images in the batch: target and prediction
        [B_s, G, h_s, w_s, D] float32.
      mining: None for the plain gradient.
      shares: of each shape in the mean; their sum is 1.
      rows: of each shape that count, its first ones; None: all.

    Returns:
      float32 scalar in [0, 2].
    """
    rows = rows or [len(one.target) for one in comparisons]
    # Along channels. The rest uses only these few numbers, not the maps.
    products = [inner_products(*one) for one in comparisons]
    if mining is not None:
        products = _held_back(products, mining, rows)

    losses = []
    for one, count in zip(products, rows, strict=True):
        of_maps = InnerProducts(*(values.sum(axis=(2, 3)) for values in one))
        losses.append(_first(of_maps.cosine_distance(), count).mean())
    return sum(share * loss for share, loss in zip(shares, losses, strict=True))


def _first(distances: jax.Array, count: int) -> jax.Array:
    """The first rows; all of them, in the usual case, without any operation."""
    return distances if count == len(distances) else distances[:count]


def _held_back(
    products: Sequence[InnerProducts], mining: HardMining, rows: Sequence[int]
) -> list[InnerProducts]:
    """With products whose gradient is smaller at the easiest positions.

    The gradient of targets shrinks too. Nothing learns from it.

    Args:
      products: for each shape of images, of [B_s, G, h_s, w_s] positions.
      mining, rows: see `hard_cosine`.
    """
    distances = [jax.lax.stop_gradient(one.cosine_distance()) for one in products]
    # One threshold per group, over the positions of all shapes and all devices.
    counted = [_first(d, count) for d, count in zip(distances, rows, strict=True)]
    positions = jnp.concatenate(
        [jnp.moveaxis(d, 1, 0).reshape(d.shape[1], -1) for d in counted], axis=1
    )
    threshold = jnp.quantile(positions, mining.share, axis=1)[:, None, None]
    held_back = []
    for one, distance in zip(products, distances, strict=True):
        factor = jnp.where(distance < threshold - ROUNDING, mining.gradient, 1.0)
        held_back.append(InnerProducts(*(scale_gradient(v, factor) for v in one)))
    return held_back


def total_loss(
    comparisons: Sequence[Mapping[str, Comparison]],
    weights: Mapping[str, float],
    mining: HardMining | None,
    shares: Sequence[float] = (1.0,),
    rows: Sequence[int] | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum of the losses of all comparisons, and each of them by name.

    Args:
      comparisons: by name, for each shape of images in the batch.
      weights: of each comparison.
      mining, shares, rows: see `hard_cosine`.
    """
    losses = {
        name: hard_cosine([one[name] for one in comparisons], mining, shares, rows)
        for name in comparisons[0]
    }
    return sum(weights[name] * loss for name, loss in losses.items()), losses
