"""How bright is white: one scale for all images of a run that are deeper than 8 bits.

A file may state its depth. Where it does not, a 12-bit camera's image in a 16-bit file
looks like a dark 16-bit one. So white is measured once, on training images, and stored with
the run's preprocessor. It is never taken from a single image: a bright pixel would darken
it.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from harmoniad_jax.errors import UserError

logger = logging.getLogger(__name__)

# What white is in integers of unstated depth: all bits of 8, 10, 12, 14, 16, 24, 32.
DEPTHS = tuple(2.0**bits - 1 for bits in (8, 10, 12, 14, 16, 24, 32))
# What it is in floats, as people save them: shares, 8-bit and 16-bit counts.
FLOAT_WHITES = (1.0, 255.0, 65535.0)
# Share of an image's values that may lie above white: hot pixels and reflections.
OUTLIERS = 1e-3
# An image or a set whose brightest values are below this share of white is suspicious.
LITTLE = 1 / 8


class RawImage(NamedTuple):
    """Decoded values of an image that is deeper than 8 bits.

    Attributes:
      name: of the file, for messages.
      values: [H, W] or [H, W, 3], integers or floats; larger is brighter.
      white: the value of white that the file states; None: it does not.
    """

    name: str
    values: np.ndarray
    white: float | None = None

    @property
    def kind(self) -> str:
        """The type of its values: "float", "16-bit" or "32-bit" (whole numbers)."""
        if self.values.dtype.kind == "f":
            return "float"
        return "16-bit" if self.values.itemsize <= 2 else "32-bit"

    @property
    def brightest(self) -> float:
        """The value that all but a few outliers do not exceed."""
        return float(np.quantile(self.values, 1 - OUTLIERS))


@dataclasses.dataclass(frozen=True)
class Levels:
    """The values of black and white in images that are deeper than 8 bits.

    Attributes:
      white: by the kind of an image that does not state its own, as of `RawImage.kind`.
      black: in all of them; below 0 where training images have negative values.
      fixed: white of all images, as the user set it; None: it was not set.
      of_version_0_1: scale as version 0.1.0 did, each float image by its own maximum.
    """

    white: Mapping[str, float] = dataclasses.field(default_factory=dict)
    black: float = 0.0
    fixed: float | None = None
    of_version_0_1: bool = False

    def to_eight_bits(self, raw: RawImage) -> tuple[np.ndarray, float]:
        """Scales an image.

        Returns:
          The image, uint8 of the same shape, and the share of its values above white.

        Raises:
          UserError: it has values that are not finite, or neither the file nor the run
            knows how bright white is.
        """
        values = raw.values.astype(np.float64)
        if self.of_version_0_1:
            return _as_version_0_1(values, raw.kind == "float"), 0.0
        check_finite(raw)
        white = self.white_of(raw)
        if white is None:
            white = _full_range(raw)
        scaled = (values - self.black) / (white - self.black) * 255.0
        clipped = float((values > white).mean())
        return scaled.clip(0, 255).round().astype(np.uint8), clipped

    def white_of(self, raw: RawImage) -> float | None:
        """What is white in an image; None where neither the file nor the run knows."""
        return self.fixed or raw.white or self.white.get(raw.kind)


def check_finite(raw: RawImage) -> None:
    """Refuses an image with infinite values, or values that are not numbers.

    Raises:
      UserError: saying where the first one is.
    """
    finite = np.isfinite(raw.values)
    if not finite.all():
        row, column = np.argwhere(~finite)[0][:2]
        raise UserError(
            f"{raw.name} has {np.count_nonzero(~finite)} values that are not finite "
            f"numbers, the first in row {row}, column {column}; mend or remove it."
        )


def measured_levels(images: Sequence[RawImage]) -> Levels:
    """The levels of a set of images, all deeper than 8 bits; some may state their own."""
    kinds: dict[str, list[float]] = {}
    for image in images:
        if image.white is None:
            kinds.setdefault(image.kind, []).append(image.brightest)
    white = {}
    for kind, brightest in sorted(kinds.items()):
        measure = _float_white if kind == "float" else _integer_white
        white[kind] = measure(max(brightest))
        logger.info(
            "white is %g in %s images, as measured on %d of them (config.data.white_level)",
            *(white[kind], kind, len(brightest)),
        )
    lowest = min((float(image.values.min()) for image in images), default=0.0)
    return Levels(white=white, black=min(lowest, 0.0))


def warn_of_dark_images(images: Sequence[RawImage], levels: Levels) -> None:
    """Warns if a set uses little of its range: then white may be another value."""
    for kind in sorted({image.kind for image in images}):
        found = [image for image in images if image.kind == kind]
        brightest = max(image.brightest for image in found)
        white = min(levels.white_of(image) for image in found)
        if brightest < LITTLE * white:
            logger.warning(
                "the brightest values of %d %s images are %g, little of their white level "
                "%g: if white is another value, give it with "
                "--config.data.white_level=VALUE",
                *(len(found), kind, brightest, white),
            )


def levels_from_json(values: Mapping[str, Any] | None) -> Levels:
    """Stored levels; those of version 0.1.0, which stored none."""
    return Levels(of_version_0_1=True) if values is None else Levels(**values)


def _full_range(raw: RawImage) -> float:
    """White of an image of a kind that training did not see, if it is beyond doubt.

    Raises:
      UserError: it uses too little of the range, or more.
    """
    is_float = raw.kind == "float"
    white = 1.0 if is_float else float(np.iinfo(raw.values.dtype).max)
    if LITTLE * white < raw.brightest <= white:
        return white
    raise UserError(
        f"{raw.name} has {raw.kind} values up to {raw.brightest:g}. It does not state what "
        "white is, and there was no such image in training. Give the value of white: "
        "--white_level=VALUE in prediction, --config.data.white_level=VALUE in training."
    )


def _integer_white(brightest: float) -> float:
    """All bits of the smallest depth that holds the images."""
    return next((depth for depth in DEPTHS if brightest <= depth), DEPTHS[-1])


def _float_white(brightest: float) -> float:
    """What people save floats as, if it is at most four times the brightest; else that."""
    usual = (white for white in FLOAT_WHITES if white / 4 <= brightest <= white * 1.05)
    return next(usual, brightest if brightest > 0 else 1.0)


def _as_version_0_1(values: np.ndarray, is_float: bool) -> np.ndarray:
    values, top = np.nan_to_num(values), 65535.0
    if is_float:
        top = next((top for top in (1.0, 255.0) if values.max() <= top), 65535.0)
    return (values / top * 255.0).clip(0, 255).round().astype(np.uint8)
