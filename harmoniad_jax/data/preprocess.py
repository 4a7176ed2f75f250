"""From the pixels of an image to the pixels that the encoder sees.

A `Preprocessor` is the only way from an image to the encoder's input, in training,
evaluation, the report and prediction alike. It is built once for a run and stored with it.
It gives 8-bit pixels: the encoder itself subtracts its mean and divides by its deviation on
the device, which moves a quarter of the bytes.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from harmoniad_jax.data.images import MAX_MEGAPIXELS, Decoded, decode, is_deep, open_image
from harmoniad_jax.data.levels import (
    Levels,
    RawImage,
    check_finite,
    levels_from_json,
    measured_levels,
    warn_of_dark_images,
)
from harmoniad_jax.data.records import ImageFile, Record
from harmoniad_jax.errors import UserError

# Images, evenly taken, that the white level of a run is measured on.
MEASURED_IMAGES = 256


@dataclasses.dataclass(frozen=True)
class Preprocessor:
    """Scales images to the encoder's input, whole: no crop hides a border.

    Bicubic with antialiasing. What decides about features is stored with the run and
    enters the key of the feature cache.

    Attributes:
      side: S, of the square input in pixels.
      levels: black and white in images deeper than 8 bits.
      max_megapixels: a larger image is refused. It decides about nothing.
    """

    side: int
    levels: Levels = dataclasses.field(default_factory=Levels)
    max_megapixels: float = dataclasses.field(default=MAX_MEGAPIXELS, compare=False)

    def load(self, file: ImageFile) -> np.ndarray:
        """An image file as the encoder sees it, [S, S, 3] uint8.

        Raises:
          UserError: the file is missing, truncated or no image.
        """
        return self.scale(self.decode(file).image)

    def decode(self, file: ImageFile) -> Decoded:
        """An image file as 8 bits, of its own size.

        Raises:
          UserError: the file is missing, truncated or no image.
        """
        return decode(file, self.levels, self.max_megapixels)

    def from_array(self, image: np.ndarray) -> Decoded:
        """An image in memory as 8 bits, of its own size.

        Args:
          image: [H0, W0, 3] RGB or [H0, W0]; uint8, or deeper and on the run's scale.

        Raises:
          UserError: it is deeper than 8 bits, and what is white is not known.
        """
        if image.dtype == np.uint8:
            return Decoded(Image.fromarray(image))
        values, clipped = self.levels.to_eight_bits(RawImage("the array", image))
        return Decoded(Image.fromarray(values), clipped)

    def scale(self, image: Image.Image) -> np.ndarray:
        """[S, S, 3] uint8 of a decoded image of mode L or RGB."""
        scaled = image.resize((self.side, self.side), Image.Resampling.BICUBIC)
        return np.asarray(scaled.convert("RGB"))

    @property
    def empty(self) -> np.ndarray:
        """Zeros in the place of an image, [S, S, 3] uint8."""
        return np.zeros((self.side, self.side, 3), np.uint8)

    def to_json(self) -> dict[str, Any]:
        return {"side": self.side, "levels": dataclasses.asdict(self.levels)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Preprocessor":
        return cls(values["side"], levels_from_json(values.get("levels")))


def measure_preprocessor(
    records: Sequence[Record],
    *,
    side: int,
    white_level: float = 0.0,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> Preprocessor:
    """The preprocessor of a new run: white is measured on its training images.

    Images of 8 bits are recognised by their headers, and nothing is measured on them.

    Args:
      records: training images.
      side: S in pixels.
      white_level: white of all images deeper than 8 bits, as the user set it; 0: it was
        not set.
      max_megapixels: see `Preprocessor`.

    Raises:
      UserError: an image has values that are not finite.
    """
    count = min(MEASURED_IMAGES, len(records))
    rows = np.linspace(0, len(records) - 1, count).astype(int)
    deep: list[RawImage] = []
    for row in rows:
        if not is_deep(records[row].image):
            continue
        try:
            found = open_image(records[row].image, max_megapixels).image
        except UserError:
            continue  # it is named when all images are read
        if isinstance(found, RawImage):
            check_finite(found)
            deep.append(found)
    levels = Levels(fixed=white_level) if white_level else measured_levels(deep)
    warn_of_dark_images(deep, levels)
    return Preprocessor(side, levels, max_megapixels)
