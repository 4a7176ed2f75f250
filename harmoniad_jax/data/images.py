"""From an image file to pixels.

No image changes its size here: `preprocess.py` makes the encoder's input of an image.
Masks are read by `mask_files.py`.
"""

import contextlib
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from harmoniad_jax.data.deep import read_deep, stated_depth
from harmoniad_jax.data.levels import Levels, RawImage
from harmoniad_jax.data.records import ImageFile
from harmoniad_jax.data.suffixes import (
    REFUSED_FORMATS,
    advice_on,
    is_heif,
    reads_heif,
    register_heif,
)
from harmoniad_jax.errors import UserError
from harmoniad_jax.words import gigabytes

EXIF_ORIENTATION = 0x0112
EXIF_ON_ITS_SIDE = (5, 6, 7, 8)
# Formats whose stated depth Pillow spreads over 16 bits.
SPREAD_FORMATS = ("JPEG2000", "PPM")
JPEG_FORMATS = ("JPEG", "MPO")
# A larger JPEG is decoded smaller, whatever the limit is: pixels must not depend on that.
WHOLE_MEGAPIXELS = 500.0
# How libjpeg's warnings of lost data begin, and what cameras fill a file up with.
JPEG_DAMAGE = "Corrupt JPEG data"
JPEG_END, PADDING = b"\xff\xd9", b"\0"
# The limit of `decode` where no run sets one, and what takes the place of Pillow's own,
# which a line scan exceeds.
MAX_MEGAPIXELS = 500.0
Image.MAX_IMAGE_PIXELS = None
UNKNOWN_LEVELS = Levels()
# Share of values above white that is worth a word: more than hot pixels.
MOST_CLIPPED = 1e-3


def read_image(file: ImageFile) -> np.ndarray:
    """Decodes an image file: [H0, W0, 3] uint8 RGB, upright; greyscale is repeated.

    An image deeper than 8 bits has to use the range of its type, see `Levels`.

    Raises:
      UserError: the file is missing, truncated or no image.
    """
    return np.asarray(decode(file).image.convert("RGB"))


def read_size(file: ImageFile) -> tuple[int, int]:
    """(width, height) in pixels, upright, from the file's header alone.

    Raises:
      UserError: the file is missing or no image.
    """
    if is_heif(file.name):
        register_heif()
    try:
        source = file if isinstance(file, Path) else io.BytesIO(file.read_bytes())
        with Image.open(source, formats=_formats()) as image:
            width, height = image.size
            orientation = _orientation(image)
    except Exception as error:  # see `_reporting`
        raise UserError(f"{file} cannot be read as an image ({error})") from None
    return (height, width) if orientation in EXIF_ON_ITS_SIDE else (width, height)


class Decoded(NamedTuple):
    """An image of 8 bits.

    Attributes:
      image: upright, of mode L or RGB.
      clipped: share of its values above the white level that it was scaled with.
      pages: of its file; the first one is the image.
      damaged: pixels were lost, and what stands in their place was made up.
      whole: (width, height) of the image in its file, if a smaller one was decoded.
    """

    image: Image.Image
    clipped: float = 0.0
    pages: int = 1
    damaged: bool = False
    whole: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the image in its file, in pixels, upright."""
        return self.whole or self.image.size

    @property
    def note(self) -> str:
        """What must be known of it, in words; mostly empty."""
        notes = []
        if self.pages > 1:
            notes.append(f"its file has {self.pages} pages: this is the first")
        if self.clipped > MOST_CLIPPED:
            notes.append(f"{100 * self.clipped:.2g} % of its values are above white")
        if self.damaged:
            notes.append("its file is damaged: a part of the image may be missing or grey")
        if self.whole:
            width, height = self.image.size
            notes.append(f"it is very large: it was read at {width} x {height} px")
        return "; ".join(notes)


def decode(
    file: ImageFile,
    levels: Levels = UNKNOWN_LEVELS,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> Decoded:
    """Decodes an image file, and scales it to 8 bits if it is deeper.

    Args:
      file: the encoded image.
      levels: what is black and white in images deeper than 8 bits.
      max_megapixels: a larger image is refused.

    Raises:
      UserError: the file is missing, truncated, too large or no image, or its white is
        not known.
    """
    opened = open_image(file, max_megapixels)
    found = opened.image
    if isinstance(found, RawImage):
        values, clipped = levels.to_eight_bits(found)
        return Decoded(Image.fromarray(values), clipped, opened.pages)
    if found.mode == "P":
        # By way of RGBA: a palette may hold transparent colours.
        found = found.convert("RGBA")
    # To convert a mode to itself would copy it; grey is repeated after it was scaled down.
    mode = "L" if found.mode in ("1", "L", "LA") else "RGB"
    image = found if found.mode == mode else found.convert(mode)
    _, pages, damaged, whole = opened
    return Decoded(image, pages=pages, damaged=damaged, whole=whole)


class Opened(NamedTuple):
    """An image as its file holds it, upright: of 8 bits in any mode, or deeper.

    Attributes:
      image: the pixels.
      pages, damaged, whole: see `Decoded`.
    """

    image: Image.Image | RawImage
    pages: int = 1
    damaged: bool = False
    whole: tuple[int, int] | None = None


def open_image(file: ImageFile, max_megapixels: float = MAX_MEGAPIXELS) -> Opened:
    """Decodes an image file to 8 bits in any mode, or to its values if it is deeper.

    Raises:
      UserError: the file is missing, truncated or no image, or too large.
    """
    with _reporting(file):
        data = file.read_bytes()
        raw, pages = read_deep(str(file), data, lambda *size: _check(size, max_megapixels))
        if raw is not None:
            return Opened(raw, pages)
        image, file_format, whole = _decode(data, max_megapixels)
        if image.mode.startswith(("I", "F")):
            # Pillow spreads what a Netpbm or JPEG 2000 file states over 16 bits.
            spread = image.mode != "F" and file_format in SPREAD_FORMATS
            white = 65535.0 if spread else None
            return Opened(RawImage(str(file), np.asarray(image), white), pages)
        damaged = file_format in JPEG_FORMATS and _lost_pixels(data)
        return Opened(image, pages, damaged, whole)


def decoded_size(file: ImageFile) -> tuple[int, int]:
    """(width, height) in pixels, upright, of an image that was decoded whole.

    Raises:
      UserError: the file is missing, truncated or no image.
    """
    opened = open_image(file)
    found = opened.image
    size = found.values.shape[1::-1] if isinstance(found, RawImage) else found.size
    return opened.whole or size


def image_size(file: ImageFile) -> tuple[int, int]:
    """(width, height) in pixels, upright: from the header, or where that fails decoded.

    Raises:
      UserError: the file is missing, truncated or no image.
    """
    try:
        return read_size(file)
    except UserError:
        return decoded_size(file)


def is_deep(file: ImageFile) -> bool:
    """Whether an image is deeper than 8 bits, from its header; True if that is unclear."""
    if is_heif(file.name):
        register_heif()
    source = file if isinstance(file, Path) else io.BytesIO(file.read_bytes())
    try:
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(
                source.open("rb") if isinstance(source, Path) else source
            )
            bits = stated_depth(stream)
            if bits is not None:
                return bits > 8
            stream.seek(0)
            with Image.open(stream, formats=_formats()) as image:
                return image.mode.startswith(("I", "F"))
    except Exception:  # see `_reporting`
        return True


def open_with_pillow(file: ImageFile) -> Image.Image:
    """Decodes an image file, upright, as Pillow does, which keeps alpha and `format`.

    Raises:
      UserError: the file is missing, truncated or no image, or too large.
    """
    with _reporting(file):
        return _decode(file.read_bytes())[0]


def _decode(
    data: bytes, max_megapixels: float = MAX_MEGAPIXELS
) -> tuple[Image.Image, str | None, tuple[int, int] | None]:
    """By Pillow: the upright image, its format, and `Decoded.whole`."""
    start = data[:12]
    if is_heif("", start):  # whatever its name: phones and messengers call it .jpg
        register_heif()
        if not reads_heif():
            raise ValueError(f"unknown format; {advice_on('', start)}")
    with Image.open(io.BytesIO(data), formats=_formats()) as image:
        width, height = image.size
        excess = math.sqrt(width * height / (WHOLE_MEGAPIXELS * 1e6))
        reduced = image.format in JPEG_FORMATS and excess > 1
        if reduced:  # JPEG alone can be decoded smaller: by 2, 4 or 8 on each side
            factor = min(2 ** math.ceil(math.log2(excess)), 8)
            image.draft(None, (width // factor, height // factor))
        _check(image.size, max_megapixels)
        image.load()
        file_format = image.format
        on_its_side = image.getexif().get(EXIF_ORIENTATION) in EXIF_ON_ITS_SIDE
        ImageOps.exif_transpose(image, in_place=True)
        whole = (height, width) if on_its_side else (width, height)
        return image, file_format, whole if reduced else None


def _lost_pixels(jpeg: bytes) -> bool:
    """Whether a JPEG file has lost pixels, which Pillow fills with grey without a word.

    A second decoder reads it again, at an eighth of the size, and is strict.
    """

    def damage(data: bytes) -> str:
        try:
            simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, strict=True)
        except ValueError as error:
            return str(error) if JPEG_DAMAGE in str(error) else ""
        return ""

    if "extraneous" not in (found := damage(jpeg)):
        return bool(found)
    # Bytes before the end that are no image: filling, or the rest of what was lost.
    body, end, _ = jpeg.rpartition(JPEG_END)
    return bool(damage(body.rstrip(PADDING) + end))


def _orientation(image: Image.Image) -> int | None:
    """The orientation of EXIF; None where there is none, or none that can be read."""
    try:
        # The base class's method: that of PNG files decodes the whole image.
        return Image.Image.getexif(image).get(EXIF_ORIENTATION)
    except Exception:  # whatever a damaged block raises: it says nothing of the pixels
        return None


def _formats() -> list[str]:
    """The formats of Pillow that are read."""
    return [name for name in Image.OPEN if name not in REFUSED_FORMATS]


def _check(size: tuple[int, int], max_megapixels: float) -> None:
    """Refuses an image that would take too much memory.

    Raises:
      ValueError: saying how much.
    """
    width, height = size
    if width * height > max_megapixels * 1e6:
        raise ValueError(
            f"it is {width} x {height} px, {width * height / 1e6:,.0f} megapixels, and "
            f"takes {gigabytes(3 * width * height)} of memory in each thread; the limit is "
            f"{max_megapixels:,g} megapixels, config.data.max_megapixels"
        )


@contextlib.contextmanager
def _reporting(file: ImageFile) -> Iterator[None]:
    """Turns whatever a decoder raises into one line about the file."""
    if is_heif(file.name):
        register_heif()
    try:
        yield
    except UserError:
        raise  # the file's own words
    except Exception as error:
        # Decoders raise anything for what is missing, truncated, absurd or no image;
        # Pillow names the buffer where it knows no format.
        reason = "unknown format" if "BytesIO" in str(error) else error
        advice = advice_on(file.name)
        reason = f"{reason}; {advice}" if advice and advice not in str(reason) else reason
        raise UserError(f"{file} cannot be read as an image ({reason})") from None
