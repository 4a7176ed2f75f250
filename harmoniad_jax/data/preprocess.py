"""From a file to the pixels that the encoder sees, and from a mask file to its cells.

`preprocess` is the only way from an image to the encoder's input, in training,
evaluation and prediction alike. It gives 8-bit pixels: the encoder itself subtracts its
mean and divides by its deviation on the device, which moves a quarter of the bytes.
"""

import io
from pathlib import Path

import numpy as np
import scipy.ndimage
from PIL import Image, ImageOps

from harmoniad_jax.data.records import ImageFile
from harmoniad_jax.errors import UserError

MASK_RULES = ("half", "any")
EIGHT_CONNECTED = np.ones((3, 3), int)
EXIF_ORIENTATION = 0x0112
EXIF_ON_ITS_SIDE = (5, 6, 7, 8)


def read_image(file: ImageFile) -> np.ndarray:
    """Decodes an image file: [H0, W0, 3] uint8 RGB, upright; greyscale is repeated.

    Raises:
      UserError: the file is missing, truncated or no image.
    """
    return np.asarray(_decode(file))


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


def preprocess(image: np.ndarray, side: int) -> np.ndarray:
    """Scales an image to the encoder's input, whole: no crop hides its border.

    Args:
      image: [H0, W0, 3] uint8.
      side: S in pixels.

    Returns:
      [S, S, 3] uint8, bicubic with antialiasing.
    """
    return _scale(Image.fromarray(image), side)


def load_image(file: ImageFile, side: int) -> np.ndarray:
    """`preprocess` of `read_image`, without the copies between the two.

    Raises:
      UserError: the file is missing, truncated or no image.
    """
    return _scale(_decode(file), side)


def resize_mask(mask: np.ndarray, side: int, rule: str = "half") -> tuple[np.ndarray, int]:
    """Scales a mask to the evaluation grid by area.

    Args:
      mask: [H0, W0] bool.
      side: side of the grid.
      rule: "half": a cell is defective where at least half of it is; "any": where any
        of it is, which grows every defect (only to compare with older tables).

    Returns:
      [side, side] bool, and the number of 8-connected defects that the rule would have
      lost; of each of these, the cell that it covers most is kept.
    """
    if not mask.any():
        return np.zeros((side, side), bool), 0
    vertical, horizontal = (averaging_matrix(length, side) for length in mask.shape)
    cover = vertical @ mask.astype(np.float32) @ horizontal.T
    # Sums of products round: a millionth decides neither half nor any.
    cells = cover > 1e-6 if rule == "any" else cover >= 0.5 - 1e-6

    lost = []
    regions, _ = scipy.ndimage.label(mask, EIGHT_CONNECTED)
    for number, (rows, columns) in enumerate(scipy.ndimage.find_objects(regions), 1):
        region = (regions[rows, columns] == number).astype(np.float32)
        cover = vertical[:, rows] @ region @ horizontal[:, columns].T
        if not cells[cover > 0].any():
            lost.append(cover.argmax())
    cells.ravel()[lost] = True
    return cells, len(lost)


def averaging_matrix(pixels: int, cells: int) -> np.ndarray:
    """[cells, pixels] float32: the share of every cell that each pixel covers.

    Exact for any ratio, where Pillow's box filter takes pixels whole, by their centres.
    """
    edges = np.arange(cells + 1) * pixels / cells
    first = np.maximum(edges[:-1, None], np.arange(pixels))
    last = np.minimum(edges[1:, None], np.arange(pixels) + 1)
    return (np.maximum(last - first, 0.0) * cells / pixels).astype(np.float32)


def _scale(image: Image.Image, side: int) -> np.ndarray:
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))


def _decode(file: ImageFile) -> Image.Image:
    """An upright image of mode RGB."""
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
