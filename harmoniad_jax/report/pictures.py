"""Anomaly maps and masks as pictures: arrays in, RGB arrays out.

A picture is uint8 [H, W, 3]. Every function leaves its arguments as they are.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

# Red, green and blue as polynomials of the heat, lowest power first, fitted to matplotlib's
# "inferno": equal steps of the map look equal, in print and for colour-blind readers too,
# and more anomalous is always brighter.
HEAT_POLYNOMIALS = np.array(
    [
        [0.008, -0.529, 22.951, -125.511, 392.629, -728.611, 792.405, -469.717, 117.359],
        [-0.017, 1.782, -22.526, 136.141, -421.798, 738.967, -733.991, 387.27, -84.827],
        [0.021, 0.662, 31.699, -227.888, 687.238, -1078.198, 869.771, -306.969, 24.297],
    ]
)
HEAT_LEVELS = 256

# How much of the image the strongest heat hides, and below which share of the scale the
# image shows through untouched: the ordinary ups and downs of a map are not a finding.
STRONGEST_HEAT = 0.7
WEAKEST_HEAT = 0.15

TRUTH_COLOUR = (0, 205, 190)
THRESHOLD_COLOUR = (255, 255, 255)
HALO_COLOUR = (20, 20, 20)
LABEL_COLOUR = (85, 89, 94)


class ColourScale(NamedTuple):
    """The values that have the first and the last colour; low < high."""

    low: float
    high: float


def colour_scale(maps: Iterable[np.ndarray], threshold: float | None = None) -> ColourScale:
    """One scale for maps that shall be compared.

    It runs from the 1st to the 99.9th percentile of all values, so that no single pixel
    decides about the colours of the others, and at least up to the threshold: maps that
    stay below it shall not glow.

    Args:
      maps: any number of finite arrays, any shapes.
      threshold: a value that the scale shall contain.
    """
    values = [np.ravel(one).astype(np.float64) for one in maps]
    if not values:
        return ColourScale(0.0, 1.0)
    low, high = np.percentile(np.concatenate(values), [1, 99.9])
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    return ColourScale(float(low), float(high if high > low else low + 1.0))


def heat_colours(share: np.ndarray) -> np.ndarray:
    """Colours [..., 3] in [0, 1] of heat [...] in [0, 1], in `HEAT_LEVELS` steps."""
    powers = np.linspace(0, 1, HEAT_LEVELS)[:, None] ** np.arange(HEAT_POLYNOMIALS.shape[1])
    table = (powers @ HEAT_POLYNOMIALS.T).clip(0, 1)
    return table[np.minimum((share * HEAT_LEVELS).astype(int), HEAT_LEVELS - 1)]


def heat_map(values: np.ndarray, scale: ColourScale) -> np.ndarray:
    """Colours of a map.

    Args:
      values: [H, W] float, finite. What lies outside the scale has its end's colour.

    Returns:
      [H, W, 3] uint8.
    """
    return (255 * heat_colours(_share(values, scale))).round().astype(np.uint8)


def overlay(
    image: np.ndarray,
    values: np.ndarray,
    scale: ColourScale,
    threshold: float | None = None,
) -> np.ndarray:
    """The image with the heat of a map over it, stronger where it is more anomalous.

    Args:
      image: [H, W, 3] uint8.
      values: [h, w] float, finite; enlarged to the image where it is smaller.
      scale: as for `heat_map`.
      threshold: what lies above it is outlined.

    Returns:
      [H, W, 3] uint8.
    """
    values = resize(values, image.shape[:2])
    share = _share(values, scale)
    strength = STRONGEST_HEAT * np.clip((share - WEAKEST_HEAT) / (1 - WEAKEST_HEAT), 0, 1)
    picture = _blend(image, 255 * heat_colours(share), strength[..., None])
    if threshold is None:
        return picture
    return contour(picture, values > threshold, THRESHOLD_COLOUR)


@functools.lru_cache(maxsize=8)
def colour_bar(width: int, scale: ColourScale, threshold: float) -> np.ndarray:
    """Which colour of `heat_map` is which value, with a line at the threshold.

    Args:
      width: in pixels.
      scale: as for `heat_map`.
      threshold: inside the scale.

    Returns:
      [h, width, 3] uint8: the bar, and four values below it.
    """
    height = max(1, round(width / 12))
    values = np.linspace(scale.low, scale.high, width)[None].repeat(height, axis=0)
    canvas = Image.new("RGB", (width, 2 * height), "white")
    canvas.paste(Image.fromarray(heat_map(values, scale)))
    draw, line = ImageDraw.Draw(canvas), max(1, round(width / 150))

    def place(value: float) -> float:
        return (value - scale.low) / (scale.high - scale.low) * (width - 1)

    # White on dark and dark on bright would need two lines; this is one of each.
    for colour, thickness in ((HALO_COLOUR, 2 * line), (THRESHOLD_COLOUR, line)):
        middle = place(threshold)
        draw.line([(middle, 0), (middle, height - 1)], colour, thickness)
    font = ImageFont.load_default(max(1.0, 0.8 * height))
    for share in (0.2, 0.4, 0.6, 0.8):
        value = scale.low + share * (scale.high - scale.low)
        middle = (place(value), 1.5 * height)
        draw.text(middle, f"{value:.3g}", LABEL_COLOUR, font, anchor="mm")
    return np.asarray(canvas)


def contour(
    image: np.ndarray, region: np.ndarray, colour: tuple[int, int, int]
) -> np.ndarray:
    """The image with an outline around a region, a dark line along its outside.

    The dark line keeps the outline visible on bright and dark products. The border of
    the image is not outlined.

    Args:
      image: [H, W, 3] uint8.
      region: [H, W] bool.
      colour: RGB, 0 to 255.

    Returns:
      [H, W, 3] uint8.
    """
    width = max(1, round(min(region.shape) / 200))
    inside = ndimage.binary_erosion(region, iterations=width, border_value=1)
    outside = ndimage.binary_dilation(region, iterations=width)
    picture = image.copy()
    picture[outside & ~region] = HALO_COLOUR
    picture[region & ~inside] = colour
    return picture


def truth_overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A pale grey version of the image with the defect in colour.

    Args:
      image: [H, W, 3] uint8.
      mask: [h, w] bool; enlarged to the image where it is smaller.

    Returns:
      [H, W, 3] uint8.
    """
    mask = resize(mask.astype(np.float32), image.shape[:2]) >= 0.5
    grey = np.asarray(Image.fromarray(image).convert("L"))
    pale = np.repeat((64 + grey // 2)[..., None], 3, axis=2)
    filled = _blend(pale, np.array(TRUTH_COLOUR), 0.6 * mask[..., None])
    return contour(filled, mask, TRUTH_COLOUR)


def resize(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A map [h, w] at another size, float32 [H, W], linear between the old values."""
    if values.shape == tuple(shape):
        return values.astype(np.float32)
    picture = Image.fromarray(values.astype(np.float32))
    return np.asarray(picture.resize(shape[::-1], Image.Resampling.BILINEAR))


def _share(values: np.ndarray, scale: ColourScale) -> np.ndarray:
    """Where on the scale values lie, in [0, 1]."""
    return np.clip((values - scale.low) / (scale.high - scale.low), 0, 1)


def _blend(below: np.ndarray, above: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Two pictures, 0 to 255, mixed: all of `above` where the strength is 1."""
    return (below * (1 - strength) + above * strength).round().astype(np.uint8)
