"""Image files deeper than 8 bits a sample, which Pillow reads in part or wrongly.

TIFF is read by tifffile, PNG with several 16-bit channels and 12-bit JPEG by imagecodecs.
Everything else is left to Pillow.
"""

import io
from collections.abc import Callable
from typing import BinaryIO

import imagecodecs
import numpy as np
import tifffile

from harmoniad_jax.data.levels import RawImage

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8"
DEEP = b"\x10"  # 16 bits
GREY = 0  # the colour type of a PNG, which Pillow reads in 16 bits
ORIENTATION, MAX_SAMPLE_VALUE = 274, 281
PHOTOMETRICS = ("MINISBLACK", "MINISWHITE", "RGB")


class Unsupported(ValueError):
    """A part of a format that is not read; the message says which."""


def read_deep(
    name: str, data: bytes, check: Callable[[int, int], None]
) -> tuple[RawImage | None, int]:
    """Decodes an encoded image if it is deeper than 8 bits and Pillow does not do it well.

    Args:
      name: of the file, for messages.
      data: the encoded image.
      check: of width and height, before anything is decoded; raises what it likes.

    Returns:
      The image, upright, or None: leave it to Pillow; and the number of its pages.

    Raises:
      Unsupported: a layout that is not read.
      Exception: whatever the libraries raise for what is damaged.
    """
    if data[:4] in TIFF_SIGNATURES:
        with tifffile.TiffFile(io.BytesIO(data)) as tiff:
            check(tiff.pages[0].imagewidth, tiff.pages[0].imagelength)
            return _from_tiff(name, tiff), _count_pages(tiff)
    if data[:8] == PNG_SIGNATURE and data[24:25] == DEEP and data[25] != GREY:
        check(*(int.from_bytes(data[start : start + 4], "big") for start in (16, 20)))
        return RawImage(name, _colours(imagecodecs.png_decode(data))), 1
    if data[:2] == JPEG_SIGNATURE and _jpeg_depth(data) == 12:
        values = imagecodecs.jpeg_decode(data, bitspersample=12)
        return RawImage(name, _colours(values), 4095.0), 1
    return None, 1


def stated_depth(stream: BinaryIO) -> int | None:
    """Bits a sample of a TIFF or PNG, from its header; None for other formats."""
    head = stream.read(32)
    if head[:8] == PNG_SIGNATURE:
        return head[24]
    if head[:4] in TIFF_SIGNATURES:
        stream.seek(0)
        with tifffile.TiffFile(stream) as tiff:
            return tiff.pages[0].bitspersample
    return None


def _count_pages(tiff: tifffile.TiffFile) -> int:
    """Pages without previews of smaller size."""
    counted: dict[int, bool] = {}
    for page in tiff.pages:
        if page.offset in counted:
            break  # a damaged chain that runs in a circle
        counted[page.offset] = not page.is_reduced
    return sum(counted.values())


def _from_tiff(name: str, tiff: tifffile.TiffFile) -> RawImage | None:
    page = tiff.pages[0]
    bits = page.bitspersample
    if bits <= 8:
        return None
    photometric = getattr(page.photometric, "name", str(page.photometric))
    if photometric not in PHOTOMETRICS:
        raise Unsupported(
            f"a TIFF of {bits} bits in {photometric} colours is not supported; save it as "
            "grey or RGB"
        )
    values = page.asarray()
    if page.axes.startswith("S"):  # separate planes
        values = np.moveaxis(values, 0, -1)
    values = _upright(_colours(values), _tag(page, ORIENTATION) or 1)
    white = _stated_white(page, values)
    if photometric == "MINISWHITE":
        if values.dtype.kind == "f":
            raise Unsupported("a TIFF of floats that are stored inverted is not supported")
        values = values.dtype.type(white or np.iinfo(values.dtype).max) - values
    return RawImage(name, values, white)


def _stated_white(page: tifffile.TiffPage, values: np.ndarray) -> float | None:
    """By the depth of a packed image, or the tag MaxSampleValue."""
    if values.dtype.kind == "f":
        return None
    if page.bitspersample not in (16, 32, 64):
        return float(2**page.bitspersample - 1)
    stated = _tag(page, MAX_SAMPLE_VALUE)
    stated = max(stated) if isinstance(stated, tuple) else stated
    return float(stated) if stated and stated < np.iinfo(values.dtype).max else None


def _tag(page: tifffile.TiffPage, code: int):
    tag = page.tags.get(code)
    return None if tag is None else tag.value


def _colours(values: np.ndarray) -> np.ndarray:
    """[H, W] or [H, W, 3]: without alpha."""
    if values.ndim == 2:
        return values
    if values.ndim != 3:
        raise Unsupported(f"an image of {values.ndim} axes is not supported")
    channels = values.shape[-1]
    return values[..., 0] if channels < 3 else values[..., :3]


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """By the orientation of TIFF and EXIF, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values


def _jpeg_depth(data: bytes) -> int:
    """Bits a sample, from the frame header; 8 where there is none."""
    position = 2
    while position + 5 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return data[position + 4]
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return 8
