"""From the pixels of an image to the pixels that the encoder sees.

A `Preprocessor` is the only way from an image to the encoder's input, in training,
evaluation, the report and prediction alike. It is built once for a run and stored with it.
It gives 8-bit pixels: the encoder itself subtracts its mean and divides by its deviation on
the device, which moves a quarter of the bytes.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from harmoniad_jax.data.images import decode
from harmoniad_jax.data.records import ImageFile


@dataclasses.dataclass(frozen=True)
class Preprocessor:
    """Scales images to the encoder's input, whole: no crop hides a border.

    Bicubic with antialiasing. Every field decides about features: all of them enter the key
    of the feature cache.

    Attributes:
      side: S, of the square input in pixels.
    """

    side: int

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """An image in memory.

        Args:
          image: [H0, W0, 3] or [H0, W0] uint8, RGB or grey.

        Returns:
          [S, S, 3] uint8.
        """
        return self.scale(as_image(image))

    def load(self, file: ImageFile) -> np.ndarray:
        """The same for an image file, without the copies between the two.

        Raises:
          UserError: the file is missing, truncated or no image.
        """
        return self.scale(decode(file))

    def scale(self, image: Image.Image) -> np.ndarray:
        """The same for a decoded image of mode RGB."""
        size = (self.side, self.side)
        return np.asarray(image.resize(size, Image.Resampling.BICUBIC))

    @property
    def empty(self) -> np.ndarray:
        """Zeros in the place of an image, [S, S, 3] uint8."""
        return np.zeros((self.side, self.side, 3), np.uint8)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Preprocessor":
        return cls(**values)


def as_image(pixels: np.ndarray) -> Image.Image:
    """[H, W, 3] or [H, W] uint8, RGB or grey -> an image of mode RGB."""
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=-1)
    return Image.fromarray(pixels)
