"""From targets and predictions to anomaly maps and image scores.

d(i, j)  = sum_g w_g (1 - cos(F_g(i, j), P_g(i, j)))    a distance map, w_g ~ decay^g
map      = sum_k weight_k (d_k - mean_k) / deviation_k  standardised on training images
map      = gaussian(upsample(map))
score    = mean of the largest 1 % of the map's pixels
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

# Where the product of two norms is below this, their angle means nothing: the cosine
# distance goes to 1. A deviation below it counts as this.
SMALLEST_NORM = 1e-8


class Statistics(NamedTuple):
    """Mean and standard deviation of each distance map over training images.

    Each maps the name of a comparison to a float32 scalar.
    """

    mean: dict[str, jax.Array]
    deviation: dict[str, jax.Array]


class Prediction(NamedTuple):
    """What the model says of a batch of images.

    anomaly_maps: [B, S', S'] float32, larger is more anomalous.
    image_scores: [B] float32, larger is more anomalous.
    distance_maps: [B, h, w] float32 in [0, 2] of each comparison, by its name: what the
        anomaly maps were made of, and what shows which branch saw a defect.
    """

    anomaly_maps: jax.Array
    image_scores: jax.Array
    distance_maps: dict[str, jax.Array]


def cosine_distance(first: jax.Array, second: jax.Array, *, axis: int = -1) -> jax.Array:
    """One minus the cosine of two float32 arrays along an axis: in [0, 2]."""
    product = jnp.sum(first * second, axis=axis)
    square = jnp.sum(first**2, axis=axis) * jnp.sum(second**2, axis=axis)
    # The root of a clipped square, not the clipped root: its gradient at zero is finite.
    return 1.0 - product * jax.lax.rsqrt(jnp.maximum(square, SMALLEST_NORM**2))


def distance_map(
    target: jax.Array, prediction: jax.Array, group_decay: float = 1.0
) -> jax.Array:
    """Cosine distance of every position, a weighted mean over groups.

    Args:
      target: [B, G, h, w, D] float32, shallowest group first.
      prediction: the same shape.
      group_decay: weight of a group as a share of that of the one before it, in [0, 1]: 1
        gives all the same, 0 takes the shallowest alone.

    Returns:
      [B, h, w] float32 in [0, 2].
    """
    weights = group_decay ** np.arange(target.shape[1], dtype=float)
    weights = (weights / weights.sum()).astype(np.float32)
    return jnp.sum(cosine_distance(target, prediction) * weights[:, None, None], axis=1)


def standardise(
    maps: Mapping[str, jax.Array], statistics: Statistics
) -> dict[str, jax.Array]:
    """Distance maps [B, h, w] of each comparison, in deviations from good images' mean."""
    return {
        name: (values - statistics.mean[name])
        / jnp.maximum(statistics.deviation[name], SMALLEST_NORM)
        for name, values in maps.items()
    }


def weighted_sum(maps: Mapping[str, jax.Array], weights: Mapping[str, float]) -> jax.Array:
    """The maps [B, h, w] of all comparisons as one, [B, h, w]; weight 0 leaves one out."""
    return sum(weights[name] * maps[name] for name in maps if weights[name] != 0)


def upsampling_matrix(source: int, target: int, sigma: float) -> np.ndarray:
    """Bilinear interpolation followed by Gaussian smoothing, along one axis.

    Both are linear and separable, so a map M becomes A M A^T: two small matrix products.

    Args:
      source: cells of the coarse map.
      target: pixels of the fine map.
      sigma: standard deviation of the Gaussian in pixels; 0 for none.

    Returns:
      A: [target, source] float32, rows sum to 1. Half-pixel centres, the border repeated
      (interpolation) and mirrored (smoothing).
    """
    positions = (np.arange(target) + 0.5) * source / target - 0.5
    left = np.floor(positions).astype(int)
    share = positions - left
    rows = np.arange(target)
    matrix = np.zeros((target, source))
    np.add.at(matrix, (rows, np.clip(left, 0, source - 1)), 1.0 - share)
    np.add.at(matrix, (rows, np.clip(left + 1, 0, source - 1)), share)
    if sigma > 0:
        matrix = scipy.ndimage.gaussian_filter1d(matrix, sigma, axis=0, mode="reflect")
    return matrix.astype(np.float32)


def upsample(maps: jax.Array, side: int, sigma: float) -> jax.Array:
    """[B, h, w] float32 -> smooth maps [B, side, side] float32."""
    vertical = upsampling_matrix(maps.shape[1], side, sigma)
    horizontal = upsampling_matrix(maps.shape[2], side, sigma)
    # Full precision: the default on TPU multiplies in bfloat16.
    return jnp.einsum("Hh,bhw,Ww->bHW", vertical, maps, horizontal, precision="highest")


def image_scores(maps: jax.Array, top_share: float) -> jax.Array:
    """Mean of the largest pixels of each map.

    Args:
      maps: [B, H, W] float32.
      top_share: share of the pixels in [0, 1]; at least one pixel is taken.

    Returns:
      [B] float32.
    """
    flat = maps.reshape(maps.shape[0], -1)
    count = max(1, round(top_share * flat.shape[1]))
    return jax.lax.top_k(flat, count)[0].mean(axis=1)
