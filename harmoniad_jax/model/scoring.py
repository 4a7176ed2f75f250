"""From targets and predictions to anomaly maps and image scores.

d_kg(i, j) = 1 - cos(F_kg(i, j), P_kg(i, j))             of comparison k and group g
z_kg       = (d_kg - mean_kg) / deviation_kg             standardised on good images
fuse(a)    = sum_k weight_k sum_g a^g z_kg / sum_g a^g   deeper groups weigh less
lower(M)   = M - max(0, value that three quarters of M reach)
map        = gaussian(upsample(lower(fuse(map_decay))))
score      = mean of the largest 1 % of gaussian(upsample(fuse(score_decay)))

The good images are the held-out ones, or training images where nothing is held out. 0 is
what they have in the mean. The score keeps the level of an image: a photo of something
else, or a black one, is defective everywhere.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

# Cells of the anomaly maps along a side of a patch, unless their side is set.
CELLS_A_PATCH = 16
# Where the product of two norms is below this, their angle means nothing: the cosine
# distance goes to 1. A deviation below it counts as this.
SMALLEST_NORM = 1e-8


class Statistics(NamedTuple):
    """Mean and standard deviation of the distances over good images.

    Measured on held-out images, or on training images where nothing is held out. Each maps
    the name of a comparison to [G] float32.
    """

    mean: dict[str, jax.Array]
    deviation: dict[str, jax.Array]


class Prediction(NamedTuple):
    """What the model says of a batch of images.

    anomaly_maps: [B, H', W'] float32, see `map_shape`; larger is more anomalous.
    image_scores: [B] float32, larger is more anomalous.
    distance_maps: [B, h, w] float32 in [0, 2] of each comparison, by its name, its groups
        weighted as in the anomaly map: they show which branch saw a defect.
    """

    anomaly_maps: jax.Array
    image_scores: jax.Array
    distance_maps: dict[str, jax.Array]


class InnerProducts(NamedTuple):
    """Of two float32 arrays along an axis: with each other, and each with itself.

    Each has the shape of the arrays without that axis. Those along more axes are the sums
    of these.
    """

    mixed: jax.Array
    first: jax.Array
    second: jax.Array

    def cosine_distance(self) -> jax.Array:
        """One minus the cosine of the angle between the two: in [0, 2]."""
        # The root of a clipped square, not the clipped root: its gradient at zero is
        # finite.
        square = jnp.maximum(self.first * self.second, SMALLEST_NORM**2)
        return 1.0 - self.mixed * jax.lax.rsqrt(square)


def inner_products(first: jax.Array, second: jax.Array, *, axis: int = -1) -> InnerProducts:
    """The inner products of two float32 arrays of one shape along an axis."""
    pairs = (first, second), (first, first), (second, second)
    return InnerProducts(*(jnp.sum(one * other, axis=axis) for one, other in pairs))


def cosine_distance(first: jax.Array, second: jax.Array, *, axis: int = -1) -> jax.Array:
    """One minus the cosine of two float32 arrays along an axis: in [0, 2]."""
    return inner_products(first, second, axis=axis).cosine_distance()


def group_mean(maps: jax.Array, decay: float) -> jax.Array:
    """The weighted mean over groups.

    Args:
      maps: [B, G, h, w] float32, shallowest group first.
      decay: weight of a group as a share of that of the one before it, in [0, 1]: 1 gives
        all the same, 0 takes the shallowest alone.

    Returns:
      [B, h, w] float32.
    """
    weights = decay ** np.arange(maps.shape[1], dtype=float)
    weights = (weights / weights.sum()).astype(np.float32)
    return jnp.sum(maps * weights[:, None, None], axis=1)


def standardise(
    maps: Mapping[str, jax.Array], statistics: Statistics
) -> dict[str, jax.Array]:
    """Distances [B, G, h, w] of each comparison, in deviations from good images' mean."""
    return {
        name: (values - statistics.mean[name][:, None, None])
        / jnp.maximum(statistics.deviation[name], SMALLEST_NORM)[:, None, None]
        for name, values in maps.items()
    }


def fuse(
    maps: Mapping[str, jax.Array], weights: Mapping[str, float], decay: float
) -> jax.Array:
    """The maps of all comparisons and groups as one.

    Args:
      maps: [B, G, h, w] float32 of each comparison, by its name.
      weights: of each comparison; 0 leaves it out.
      decay: of the groups, see `group_mean`.

    Returns:
      [B, h, w] float32.
    """
    used = [name for name in maps if weights[name] != 0]
    return sum(weights[name] * group_mean(maps[name], decay) for name in used)


def lower_background(maps: jax.Array, share: float) -> jax.Array:
    """Lowers whole maps that lie above what good images have in the mean.

    Light, focus or noise that the network has not seen raise a map everywhere, and defects
    in a part of it. Maps that do not reach 0 in so large a share stay as they are.

    Args:
      maps: [B, h, w] float32, standardised.
      share: of the cells that count as the background, in (0, 1].

    Returns:
      [B, h, w] float32.
    """
    flat = maps.reshape(maps.shape[0], -1)
    count = max(1, math.ceil(share * flat.shape[1]))
    reached = jax.lax.top_k(flat, count)[0][:, -1]
    return maps - jnp.maximum(reached, 0.0)[:, None, None]


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


def map_shape(grid: Sequence[int], side: int) -> tuple[int, int]:
    """Height and width of the anomaly maps of a grid of patches.

    Args:
      grid: (h, w) in patches.
      side: of the maps of a square grid: another grid has as many cells and its own aspect,
        both rounded. 0: `CELLS_A_PATCH` for each patch.
    """
    if side == 0:
        return CELLS_A_PATCH * grid[0], CELLS_A_PATCH * grid[1]
    stretch = math.sqrt(grid[1] / grid[0])
    return max(round(side / stretch), 1), max(round(side * stretch), 1)


def upsample(maps: jax.Array, shape: tuple[int, int], sigma: float) -> jax.Array:
    """[B, h, w] float32 -> smooth maps [B, H, W] float32 of the shape (H, W)."""
    height, width = shape
    vertical = upsampling_matrix(maps.shape[1], height, sigma)
    horizontal = upsampling_matrix(maps.shape[2], width, sigma)
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
