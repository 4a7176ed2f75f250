"""What may happen to an image between the product and the model, at five severities.

Every corruption is a function of an image [H, W, 3] uint8, a severity and a generator of
random numbers, and gives an image of the same shape. Blur and shift are measured by the
image's longer side. Noise and JPEG work on pixels: the more an image is scaled down
afterwards, the less is left of them.
"""

import dataclasses
import functools
import io
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from harmoniad_jax.data.images import UNKNOWN_LEVELS, decode
from harmoniad_jax.data.levels import Levels
from harmoniad_jax.data.mask_files import read_mask
from harmoniad_jax.data.records import ImageFile, Record

SEVERITIES = (1, 2, 3, 4, 5)

Pixels = np.ndarray


class Motion(NamedTuple):
    """Where each pixel comes from: matrix [2, 2] @ (row, column) + offset [2]."""

    matrix: np.ndarray
    offset: np.ndarray


class Corruption(NamedTuple):
    """A corruption, of one of two kinds.

    Attributes:
      levels: its strength at each severity.
      unit: of the levels, for a reader.
      change: (image, level, generator) -> image, where pixels stay in their places.
      move: (height, width, level, generator) -> `Motion`, where they do not, so that
        masks have to follow.
    """

    levels: tuple[float, ...]
    unit: str
    change: Callable[[Pixels, float, np.random.Generator], Pixels] | None = None
    move: Callable[[int, int, float, np.random.Generator], Motion] | None = None


def _to_bytes(pixels: np.ndarray) -> Pixels:
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def noise(image: Pixels, deviation: float, random: np.random.Generator) -> Pixels:
    """Gaussian noise of every channel; the deviation is a share of white."""
    drawn = random.standard_normal(image.shape, np.float32)
    return _to_bytes(image + 255 * deviation * drawn)


def blur(image: Pixels, sigma: float, random: np.random.Generator) -> Pixels:
    """A Gaussian blur."""
    del random
    sigma *= max(image.shape)
    blurred = ndimage.gaussian_filter(image.astype(np.float32), (sigma, sigma, 0))
    return _to_bytes(blurred)


def jpeg(image: Pixels, quality: float, random: np.random.Generator) -> Pixels:
    """Compression as JPEG."""
    del random
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=int(quality))
    return np.asarray(Image.open(file).convert("RGB"))


def brightness(image: Pixels, change: float, random: np.random.Generator) -> Pixels:
    """More or less light, by chance; the change is a share of the exposure."""
    factor = 1 + change if random.random() < 0.5 else 1 - change
    return _to_bytes(image * np.float32(factor))


def contrast(image: Pixels, loss: float, random: np.random.Generator) -> Pixels:
    """Closer to the image's mean by a share of the distance."""
    del random
    pixels = image.astype(np.float32)
    mean = pixels.mean()
    return _to_bytes(mean + (1 - loss) * (pixels - mean))


def lighting(image: Pixels, change: float, random: np.random.Generator) -> Pixels:
    """Light that falls off from one side to the other, in a direction by chance."""
    height, width = image.shape[:2]
    angle = random.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    slope = (np.cos(angle) * x + np.sin(angle) * y) / np.sqrt(2)
    return _to_bytes(image * (1 + change * slope)[..., None])


def rotation(
    height: int, width: int, degrees: float, random: np.random.Generator
) -> Motion:
    """A turn around the middle, to one side by chance."""
    angle = np.radians(degrees) * (1 if random.random() < 0.5 else -1)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = (np.array([height, width]) - 1) / 2
    return Motion(turn, middle - turn @ middle)


def shift(height: int, width: int, share: float, random: np.random.Generator) -> Motion:
    """A move by whole pixels in a direction by chance."""
    angle = random.uniform(0, 2 * np.pi)
    distance = share * max(height, width)
    return Motion(np.eye(2), np.round(distance * np.array([np.sin(angle), np.cos(angle)])))


def moved(pixels: np.ndarray, motion: Motion, *, order: int) -> np.ndarray:
    """[H, W, ...] resampled with splines of an order; mirrored beyond its border."""
    channels = pixels.reshape(*pixels.shape[:2], -1)
    resampled = [
        ndimage.affine_transform(
            channels[..., index], motion.matrix, motion.offset, order=order, mode="mirror"
        )
        for index in range(channels.shape[-1])
    ]
    return np.stack(resampled, axis=-1).reshape(pixels.shape)


CORRUPTIONS = {
    "noise": Corruption((0.02, 0.04, 0.06, 0.1, 0.15), "of white", noise),
    "blur": Corruption((0.002, 0.004, 0.006, 0.009, 0.013), "of the side", blur),
    "jpeg": Corruption((70, 45, 25, 15, 8), "quality", jpeg),
    "brightness": Corruption((0.05, 0.1, 0.2, 0.3, 0.4), "of the exposure", brightness),
    "contrast": Corruption((0.1, 0.2, 0.35, 0.5, 0.65), "of the contrast", contrast),
    "lighting": Corruption((0.05, 0.1, 0.2, 0.3, 0.45), "of the exposure", lighting),
    "rotation": Corruption((1, 2, 4, 7, 10), "degrees", move=rotation),
    "shift": Corruption((0.01, 0.02, 0.04, 0.07, 0.1), "of the side", move=shift),
}


class Condition(NamedTuple):
    """What test images are evaluated under.

    Attributes:
      corruption: its name.
      band: the frequency band that it is let through, see bands.py; None: both.
    """

    corruption: str
    band: str | None = None

    @property
    def name(self) -> str:
        return f"{self.corruption}, {self.band} band" if self.band else self.corruption


def corrupted(
    record: Record, name: str, severity: int, levels: Levels = UNKNOWN_LEVELS
) -> Record:
    """The record with its image corrupted, and its mask where pixels move.

    Chance is that of the image's name: every call gives the same image.

    Args:
      record: to corrupt.
      name: one of `CORRUPTIONS`.
      severity: 1 to 5.
      levels: of the run, for images deeper than 8 bits.
    """
    make = functools.partial(
        Corrupted,
        corruption=name,
        severity=severity,
        key=record.key,
        levels=levels,
    )
    mask = record.mask
    if mask is not None and CORRUPTIONS[name].move:
        mask = make(mask, is_mask=True)
    return dataclasses.replace(record, image=make(record.image), mask=mask, sha256=None)


@dataclasses.dataclass(frozen=True)
class Corrupted:
    """An image file that is corrupted when it is read; `file` is the clean one."""

    file: ImageFile
    _: dataclasses.KW_ONLY
    corruption: str
    severity: int
    key: str
    levels: Levels = dataclasses.field(repr=False, compare=False)
    is_mask: bool = False

    @property
    def name(self) -> str:
        return self.file.name

    def __str__(self) -> str:
        return str(self.file)

    def read_bytes(self) -> bytes:
        corruption = CORRUPTIONS[self.corruption]
        level = corruption.levels[self.severity - 1]
        seed = zlib.crc32(f"{self.corruption} {self.key}".encode())
        random = np.random.default_rng(seed)
        if self.is_mask:
            pixels = read_mask(self.file).astype(np.uint8)
        else:
            pixels = np.asarray(decode(self.file, self.levels).image.convert("RGB"))
        if corruption.move:
            motion = corruption.move(*pixels.shape[:2], level, random)
            pixels = moved(pixels, motion, order=0 if self.is_mask else 1)
        else:
            pixels = corruption.change(pixels, level, random)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", compress_level=0)
        return file.getvalue()
