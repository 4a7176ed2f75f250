"""The loss: hard-mined cosine distance between target and predicted feature maps.

    hardcos(F, P) = mean_g 1 - cos(flat(F_g), flat(P_g))
    L = hardcos(F, F_fused) + a hardcos(F_high, P_high) + b hardcos(F_low, P_low)

Its value is the plain cosine distance of the flattened maps; hard mining changes the
gradient only, which is scaled down where a position is already rebuilt well (Dinomaly,
Guo et al. 2025). Otherwise the many easy positions would train the network to generalise
to anomalies too.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from harmoniad_jax.model.harmoniad import Comparison
from harmoniad_jax.model.scoring import cosine_distance


class HardMining(NamedTuple):
    """How easy positions are found and held back.

    share: float32 scalar or float in [0, 1), the easiest positions of the batch.
    gradient: factor on their gradient.
    """

    share: jax.Array | float
    gradient: float


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
    target: jax.Array, prediction: jax.Array, mining: HardMining | None
) -> jax.Array:
    """hardcos(F, P), averaged over the batch and the groups.

    Args:
      target: [B, G, h, w, D] float32.
      prediction: the same shape.
      mining: None for the plain gradient.

    Returns:
      float32 scalar in [0, 2].
    """
    if mining is not None:
        distance = jax.lax.stop_gradient(cosine_distance(target, prediction))
        # One threshold per group, over the batch of all devices.
        threshold = jnp.quantile(distance, mining.share, axis=(0, 2, 3), keepdims=True)
        factor = jnp.where(distance < threshold, mining.gradient, 1.0)
        prediction = scale_gradient(prediction, factor[..., None])
    flat = (*target.shape[:2], -1)
    return cosine_distance(target.reshape(flat), prediction.reshape(flat)).mean()


def total_loss(
    comparisons: Mapping[str, Comparison],
    weights: Mapping[str, float],
    mining: HardMining | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum of the losses of all comparisons, and each of them by name."""
    losses = {
        name: hard_cosine(*comparison, mining) for name, comparison in comparisons.items()
    }
    return sum(weights[name] * loss for name, loss in losses.items()), losses
