"""From an image file to pixels, and from a mask file to defective pixels.

Nothing is scaled here: `preprocess.py` makes the encoder's input of an image, `masks.py`
brings masks to the grid of the anomaly maps.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from harmoniad_jax.data.records import ImageFile
from harmoniad_jax.errors import UserError

EXIF_ORIENTATION = 0x0112
EXIF_ON_ITS_SIDE = (5, 6, 7, 8)


def read_image(file: ImageFile) -> np.ndarray:
    """Decodes an image file: [H0, W0, 3] uint8 RGB, upright; greyscale is repeated.

    Raises:
      UserError: the file is missing, truncated or no image.
    """
    return np.asarray(decode(file))


def read_mask(file: ImageFile) -> np.ndarray:
    """Decodes a mask file: [H0, W0] bool, upright; True where it is not black.

    Masks hold 255 in some data sets and small class numbers in others, so any value but
    zero counts. Only JPEG, which smears zeros, is cut at half.

    Raises:
      UserError: the file is missing, truncated or no image.
    """
    image, file_format = _open(file)
    pixels = np.asarray(image)
    if image.mode not in ("1", "L") and not image.mode.startswith(("I", "F")):
        colours = np.asarray(image.convert("RGBA").convert("RGB"))
        # A palette that is black throughout was never meant to be looked at.
        pixels = pixels if image.mode == "P" and not colours.any() else colours
    pixels = pixels if pixels.ndim == 2 else pixels.max(axis=-1)
    return pixels >= 128 if file_format == "JPEG" else pixels != 0


def read_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels, upright, from the file's header alone.

    Raises:
      UserError: the file is missing or no image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            # The base class's method: that of PNG files decodes the whole image.
            orientation = Image.Image.getexif(image).get(EXIF_ORIENTATION)
    except Exception as error:  # see `_open`
        raise UserError(f"{path} cannot be read as an image ({error})") from None
    return (height, width) if orientation in EXIF_ON_ITS_SIDE else (width, height)


def decode(file: ImageFile) -> Image.Image:
    """An image file as an upright image of mode RGB.

    Raises:
      UserError: the file is missing, truncated or no image.
    """
    image, _ = _open(file)
    if image.mode.startswith(("I", "F")):
        image = _to_eight_bits(image)
    if image.mode == "P":
        # By way of RGBA: a palette may hold transparent colours.
        image = image.convert("RGBA")
    # To convert RGB to RGB would copy it.
    return image if image.mode == "RGB" else image.convert("RGB")


def _open(file: ImageFile) -> tuple[Image.Image, str | None]:
    """Decodes the first frame of an image file, upright; and the file's format."""
    try:
        with Image.open(io.BytesIO(file.read_bytes())) as image:
            image.load()
            file_format = image.format
            ImageOps.exif_transpose(image, in_place=True)
            return image, file_format
    except UserError:
        raise  # the file's own words
    except Exception as error:
        # Pillow's decoders raise anything for what is missing, truncated, absurd or no
        # image; it names the buffer where it knows no format.
        reason = "unknown format" if "BytesIO" in str(error) else error
        raise UserError(f"{file} cannot be read as an image ({reason})") from None


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scales 16-bit and float greyscale, which Pillow would clip, into 8 bits."""
    pixels = np.nan_to_num(np.asarray(image).astype(np.float64))
    top = 65535.0
    if image.mode == "F":
        # Floats are shares of one or of 255 as often as 16-bit counts.
        top = next((top for top in (1.0, 255.0) if pixels.max() <= top), 65535.0)
    return Image.fromarray((pixels / top * 255.0).clip(0, 255).round().astype(np.uint8))
