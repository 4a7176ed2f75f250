"""What an image looks like, in a few numbers: light, contrast, colour, sharpness.

They say nothing of defects. A camera, a lamp or a product that changed moves them, mostly
before it moves what the network says.
"""

from typing import NamedTuple

import numpy as np

# Weights of the channels in luma (ITU-R BT.601).
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# Added to a variance before its logarithm: of rounding to 8 bits, so that blank images have
# one too.
ROUNDING_VARIANCE = 1 / 12
DECIMALS = 3


class Property(NamedTuple):
    """What is measured of an image: in words, where it is lower or higher than usual."""

    lower: str
    higher: str


PROPERTIES = {
    "light": Property("darker", "brighter"),
    "contrast": Property("with less contrast", "with more contrast"),
    "red": Property("less red", "redder"),
    "blue": Property("less blue", "bluer"),
    "detail": Property("less sharp", "sharper or noisier"),
    "light_across": Property("brighter on the left", "brighter on the right"),
    "light_down": Property("brighter at the top", "brighter at the bottom"),
}


def measure_appearance(pixels: np.ndarray) -> dict[str, float]:
    """Measures an image.

    Args:
      pixels: [H, W, 3] uint8 RGB, as the encoder sees it.

    Returns:
      A number for each of `PROPERTIES`:

      - light: mean of the luma, in [0, 255]; contrast: its standard deviation.
      - red, blue: means of red and of blue, less that of the luma.
      - detail: natural logarithm of the variance of the luma's Laplacian (Pech-Pacheco et
        al., "Diatom autofocusing in brightfield microscopy", 2000).
      - light_across, light_down: slope of the plane that fits the luma best, from one edge
        to the other.

      They are rounded: equal images have equal numbers, wherever they are measured.
    """
    luma = pixels @ LUMA
    height, width = luma.shape
    light = luma.mean(dtype=np.float64)
    red, blue = (pixels[..., channel].mean(dtype=np.float64) for channel in (0, 2))
    inner = luma[1:-1, 1:-1]
    laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    laplacian = laplacian - 4 * inner
    variance = laplacian.var(dtype=np.float64) if laplacian.size else 0.0
    values = {
        "light": light,
        "contrast": luma.std(dtype=np.float64),
        "red": red - light,
        "blue": blue - light,
        "detail": np.log(variance + ROUNDING_VARIANCE),
        "light_across": _slope(luma.mean(axis=0, dtype=np.float64), width),
        "light_down": _slope(luma.mean(axis=1, dtype=np.float64), height),
    }
    return {name: round(float(value), DECIMALS) for name, value in values.items()}


def _slope(means: np.ndarray, count: int) -> float:
    """Of the line that fits best, over the whole side: least squares."""
    place = np.linspace(-0.5, 0.5, count) if count > 1 else np.zeros(1)
    spread = (place**2).sum()
    return float((place * means).sum() / spread) if spread else 0.0
