"""Colour at a lower resolution than brightness, as in JPEG and television.

    Y = 0.299 R + 0.587 G + 0.114 B                     brightness, ITU-R BT.601
    R', G', B' = Y + gaussian((R, G, B) - Y)

Encoders take a sensor's noise in colour for colours of the product, and miss defects among
them. Brightness is kept, where small defects show. A small defect that differs from its
surroundings in colour alone becomes fainter.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

BRIGHTNESS = np.array([0.299, 0.587, 0.114], np.float32)
# Deviations from the middle of a Gaussian to its ends.
REACH = 3.0


def smooth_chroma(images: jax.Array, sigma: float) -> jax.Array:
    """Images with the brightness that they have, and their colour smoothed.

    Args:
      images: [B, H, W, 3] float32, RGB on any scale.
      sigma: deviation of the Gaussian in pixels; 0: nothing is smoothed.

    Returns:
      [B, H, W, 3] float32. It is not clipped: beside a strong colour a channel may be
      below or above the scale. The Gaussian averages over pixels of the image alone.
    """
    if sigma == 0:
        return images
    brightness = jnp.sum(images * BRIGHTNESS, axis=-1, keepdims=True)
    vertical, horizontal = (gaussian_matrix(side, sigma) for side in images.shape[1:3])
    # As products of matrices: convolutions of three channels are slower on CPU.
    colour = images - brightness
    smooth = jnp.einsum(
        "Hh,bhwc,Ww->bHWc", vertical, colour, horizontal, precision="highest"
    )
    return brightness + smooth


def gaussian_matrix(side: int, sigma: float) -> np.ndarray:
    """Smooths a line of pixels: [side, side] float32, rows sum to 1."""
    weights = scipy.ndimage.gaussian_filter1d(
        np.eye(side), sigma, axis=0, mode="constant", radius=math.ceil(REACH * sigma)
    )
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
