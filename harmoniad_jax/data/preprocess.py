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
from harmoniad_jax.data.shapes import Shape, measure_shapes, nearest_shape
from harmoniad_jax.errors import UserError

# Images, evenly taken, that the white level of a run is measured on.
MEASURED_IMAGES = 256


@dataclasses.dataclass(frozen=True)
class Preprocessor:
    """Scales images to the encoder's input, whole: no crop hides a border.

    Bicubic with antialiasing. What decides about features is stored with the run and
    enters the key of the feature cache.

    The input is a square, or with `shapes` of each category's own shape. An image of a
    product that is not known gets the nearest of these shapes. So if it is of a product of
    training after all, it most likely gets the right one, and no other is ever compiled.

    Attributes:
      side: S, of a square input in pixels.
      levels: black and white in images deeper than 8 bits.
      shapes: the shape (height, width) in pixels of each category's input; empty: a square
        for all.
      max_megapixels: a larger image is refused. It decides about nothing.
    """

    side: int
    levels: Levels = dataclasses.field(default_factory=Levels)
    shapes: Mapping[str, Shape] = dataclasses.field(default_factory=dict)
    max_megapixels: float = dataclasses.field(default=MAX_MEGAPIXELS, compare=False)

    def shape_of(self, category: str | None, size: tuple[int, int] | None = None) -> Shape:
        """The shape of an image's input, (height, width) in pixels.

        Args:
          category: product class; None, or one that the run was not trained on: the
            shape that is nearest to the image's own.
          size: (width, height) of the image; None: as if it were square.
        """
        if not self.shapes:
            return self.side, self.side
        known = self.shapes.get(category) if category is not None else None
        width, height = size or (1, 1)
        return known or nearest_shape(width / height, self.shapes.values())

    @property
    def all_shapes(self) -> tuple[Shape, ...]:
        """Every shape that an input may have, each once, in order."""
        return tuple(sorted(set(self.shapes.values()))) or ((self.side, self.side),)

    def by_shape(self, categories: Sequence[str | None]) -> dict[Shape, list[int]]:
        """Rows of equal shape, by their shape: what can be in one batch.

        Args:
          categories: of each row.
        """
        rows: dict[Shape, list[int]] = {}
        for row, category in enumerate(categories):
            rows.setdefault(self.shape_of(category), []).append(row)
        return {shape: rows[shape] for shape in sorted(rows)}

    def load(self, file: ImageFile, category: str | None = None) -> np.ndarray:
        """An image file as the encoder sees it, [H, W, 3] uint8; see `shape_of`.

        Raises:
          UserError: the file is missing, truncated or no image.
        """
        return self.scale(self.decode(file).image, category)

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

    def scale(self, image: Image.Image, category: str | None = None) -> np.ndarray:
        """[H, W, 3] uint8 of a decoded image of mode L or RGB; see `shape_of`."""
        return scale_to(image, self.shape_of(category, image.size))

    def to_json(self) -> dict[str, Any]:
        return {
            "side": self.side,
            "levels": dataclasses.asdict(self.levels),
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Preprocessor":
        shapes = values.get("shapes", {})
        return cls(
            values["side"],
            levels_from_json(values.get("levels")),
            {name: (height, width) for name, (height, width) in shapes.items()},
        )


def scale_to(image: Image.Image, shape: Shape) -> np.ndarray:
    """[H, W, 3] uint8 of a decoded image of mode L or RGB, for the shape (H, W)."""
    scaled = image.resize(shape[::-1], Image.Resampling.BICUBIC)
    return np.asarray(scaled.convert("RGB"))


def empty_input(shape: Shape) -> np.ndarray:
    """Zeros in the place of an image, [H, W, 3] uint8, for the shape (H, W)."""
    return np.zeros((*shape, 3), np.uint8)


def measure_preprocessor(
    records: Sequence[Record],
    *,
    side: int,
    patch: int | None = None,
    white_level: float = 0.0,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> Preprocessor:
    """The preprocessor of a new run: white and shapes are measured on training images.

    Images of 8 bits are recognised by their headers, and no white is measured on them.

    Args:
      records: training images.
      side: S in pixels.
      patch: side of a patch in pixels, of which the inputs of each category keep the aspect
        of its images; None: all are squashed to a square.
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
    shapes = {} if patch is None else measure_shapes(records, side, patch)
    return Preprocessor(side, levels, shapes, max_megapixels)
