"""What the model says of one image."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy.ndimage

from harmoniad_jax.data.masks import EIGHT_CONNECTED


class Box(NamedTuple):
    """A rectangle in pixels of the image; right and bottom are just outside."""

    left: int
    top: int
    right: int
    bottom: int


@dataclasses.dataclass(frozen=True, eq=False)
class ImageResult:
    """What the model says of one image.

    Attributes:
      anomaly_map: [H', W'] float32, larger is more anomalous.
      score: of the image, larger is more anomalous.
      category: that it was judged by; None where it was not known.
      threshold: scores above it are defective; None if none was ever set.
      pixel_threshold: the same for `anomaly_map`.
      normalised_score: in [0, 1], 0.5 at the threshold and 0 at the median of good
        images; None without threshold.
      normalised_map: [H', W'] float32, the same for pixels; None without threshold.
      boxes: around the regions above `pixel_threshold`, largest first.
      size: (width, height) of the image in pixels.
      note: what the reader of a verdict must know of the image, in words; mostly empty.
      thumbnail: [h, w, 3] uint8, the image made small; None unless it was asked for.
      appearance: light, contrast and more, see `data/appearance.py`; None unless it was
        asked for.
    """

    anomaly_map: np.ndarray = dataclasses.field(repr=False)
    score: float
    category: str | None
    threshold: float | None
    pixel_threshold: float | None
    normalised_score: float | None
    normalised_map: np.ndarray | None = dataclasses.field(repr=False)
    boxes: tuple[Box, ...]
    size: tuple[int, int]
    note: str = ""
    thumbnail: np.ndarray | None = dataclasses.field(default=None, repr=False)
    appearance: Mapping[str, float] | None = dataclasses.field(default=None, repr=False)

    @property
    def is_defective(self) -> bool | None:
        """The verdict; None without threshold."""
        return None if self.threshold is None else self.score > self.threshold


def find_boxes(
    anomaly_map: np.ndarray, threshold: float | None, size: tuple[int, int]
) -> tuple[Box, ...]:
    """Boxes around the 8-connected regions above a threshold, largest region first.

    Args:
      anomaly_map: [H', W'] float32.
      threshold: of its pixels; None: no boxes.
      size: (width, height) of the image that the boxes are for.
    """
    if threshold is None:
        return ()
    regions, count = scipy.ndimage.label(anomaly_map > threshold, EIGHT_CONNECTED)
    pixels = np.bincount(regions.ravel(), minlength=count + 1)[1:]
    places = scipy.ndimage.find_objects(regions)
    (map_height, map_width), (width, height) = anomaly_map.shape, size
    boxes = []
    for region in np.argsort(-pixels, kind="stable"):
        rows, columns = places[region]
        boxes.append(
            # Whole numbers throughout: rounding would lead out of the image.
            Box(
                left=columns.start * width // map_width,
                top=rows.start * height // map_height,
                right=-(-columns.stop * width // map_width),
                bottom=-(-rows.stop * height // map_height),
            )
        )
    return tuple(boxes)
