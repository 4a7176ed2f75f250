"""From a mask file to defective pixels.

People paint masks in many ways: white or red on black, class numbers, palettes, black on a
transparent layer. Nothing is scaled here: `masks.py` brings masks to the grid of the
anomaly maps.
"""

import dataclasses
import io
from pathlib import Path

import numpy as np
import scipy.ndimage
from PIL import Image

from harmoniad_jax.data.deep import JPEG_SIGNATURE
from harmoniad_jax.data.images import open_image, open_with_pillow
from harmoniad_jax.data.levels import RawImage
from harmoniad_jax.data.records import ImageFile
from harmoniad_jax.errors import UserError

# Formats that may change pixels when they are written. WebP, JPEG 2000 and TIFF may also
# keep them, see `_is_lossy`.
LOSSY_FORMATS = frozenset(
    ("AVIF", "BLP", "DDS", "FTEX", "HEIF", "JPEG", "JXL", "MPEG", "MPO", "PCD")
)
LOSSLESS_TIFF = frozenset(
    ("raw", "tiff_raw_16", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate")
    + ("tiff_ccitt", "group3", "group4", "tiff_thunderscan", "lzma", "zstd")
)
# Of 255. A lossy file adds that much noise to black, and smaller numbers are lost in it.
NOISE = 16
# Fewer values below half of the largest are class numbers.
SHADES = 3
EIGHT_CONNECTED = np.ones((3, 3), int)
# The least share of a region that is not at its edge, for squares of four pixels and more.
INNER_SHARE = 0.1
# Values in a JPEG 2000 file of class numbers, at most.
MOST_CLASSES = 16


@dataclasses.dataclass(frozen=True)
class MaskUnion:
    """Several masks of one image: what any of them marks is defective.

    Attributes:
      folder: that holds them.
      files: the masks, one or more.
    """

    folder: Path
    files: tuple[Path, ...]

    @property
    def name(self) -> str:
        return self.folder.name

    def read_bytes(self) -> bytes:
        """The union as a PNG of 0 and 255.

        Raises:
          UserError: a mask cannot be read, or they differ in size.
        """
        masks = [read_mask(file) for file in self.files]
        for file, mask in zip(self.files, masks, strict=True):
            if mask.shape != masks[0].shape:
                raise UserError(
                    f"the masks {self.files[0]} ({_size(masks[0])}) and {file} "
                    f"({_size(mask)}) are of one image but of two sizes; save them in the "
                    "size of the image"
                )
        return encode_mask(np.logical_or.reduce(masks))

    def __str__(self) -> str:
        return str(self.folder)


def read_mask(file: ImageFile) -> np.ndarray:
    """Decodes a mask file: [H0, W0] bool, upright; True where it is defective.

    - Masks hold 255 in some data sets and small class numbers in others: any value but
      zero counts. Of colours the brightest channel counts. Negative values and NaN are
      background.
    - The colours of a palette count. If all are black, its numbers do.
    - An alpha channel that varies: what is transparent is background. What is painted
      counts as above, or all of it counts if it is black throughout.
    - Shades are cut at half of the largest value (of each region, if the file is lossless):
      smooth edges, the noise of a lossy file that was saved as PNG, and that of lossy
      formats (JPEG, also within TIFF, MPO, JPEG 2000, AVIF, HEIC, lossy WebP). If a format
      can be lossy and the file does not say, it is taken as lossy.

    Raises:
      UserError: the file is missing, truncated or no image; or it is lossy and so dark that
        its values cannot be told from noise.
    """
    values, alpha, lossy = _opened(file)
    painted = np.ones(values.shape, bool)
    if alpha is not None and alpha.min() != alpha.max():
        painted = _marked(alpha, lossy)
        values = np.where(painted, values, 0)
        if not values.any():
            return painted
    if lossy and values.max() < NOISE:
        if values.min() == values.max():
            return np.zeros(values.shape, bool)  # black, but for the rounding of the format
        raise UserError(
            f"the brightest pixel of the mask {file} is {values.max()} of 255, which its "
            "lossy format does not keep apart from noise; save the mask as PNG, or paint "
            "defects white"
        )
    return _marked(values, lossy) & painted


def encode_mask(mask: np.ndarray) -> bytes:
    """[H0, W0] bool -> PNG of 0 and 255."""
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, "PNG")
    return buffer.getvalue()


def _opened(file: ImageFile) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """What a mask file holds.

    Returns:
      What is painted, [H0, W0], zero for background; the alpha channel, if any; and whether
      the file's format may have changed its pixels.
    """
    found = open_image(file).image
    image = found
    if isinstance(found, RawImage):
        try:
            image = open_with_pillow(file)
        except UserError:  # a layout that Pillow does not know
            image = None
        pixels = found.values
    else:
        pixels = np.asarray(image)
        if image.mode not in ("1", "L"):
            colours = np.asarray(image.convert("RGBA").convert("RGB"))
            # A palette that is black throughout was never meant to be looked at.
            pixels = pixels if image.mode == "P" and not colours.any() else colours
    if pixels.ndim == 3:
        pixels = pixels.max(axis=-1)
    alpha = None
    if image is not None and image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    # Programs write -1 or NaN where they found nothing.
    return np.where(pixels > 0, pixels, 0), alpha, _is_lossy(image, file)


def _marked(values: np.ndarray, lossy: bool) -> np.ndarray:
    """[H0, W0] of no negative values -> bool: those that are no background.

    All but zero; or, where values below half of the largest are shades, those from half on.
    """
    # Not twice the values: eight bits would overflow.
    half = values.max() / 2
    if lossy:
        return (values >= half) & (values > 0)
    if not _has_shades(values, half):
        return values > 0
    # Half of each region's own largest value, so that a blurred scratch stays beside a spot
    # that is brighter. What is dark throughout is noise.
    regions, count = scipy.ndimage.label(values > 0, EIGHT_CONNECTED)
    largest = scipy.ndimage.maximum(values, regions, np.arange(count + 1)).astype(float)
    largest[largest < half / 4] = np.inf
    return (values >= largest[regions] / 2) & (values > 0)


def _has_shades(values: np.ndarray, half: float) -> bool:
    """Whether what is below half is a smooth edge or noise, and not class numbers.

    Class numbers fill regions, or lie apart as scratches. Shades do neither: they change
    from pixel to pixel, and most of them have a brighter neighbour.
    """
    faint = (values > 0) & (values < half)
    kinds, kind = np.unique(values[faint], return_inverse=True)
    if len(kinds) < SHADES:
        return False
    highest, lowest = (
        function(values, 3, mode="nearest")
        for function in (scipy.ndimage.maximum_filter, scipy.ndimage.minimum_filter)
    )
    inner = (highest == lowest)[faint]  # in the middle of nine pixels of one value
    of_each_kind = np.bincount(kind, inner) / np.bincount(kind)
    has_brighter_neighbour = (highest > values)[faint]
    return of_each_kind.mean() < INNER_SHARE and has_brighter_neighbour.mean() > 0.5


def _is_lossy(image: Image.Image | None, file: ImageFile) -> bool:
    """Whether a file's format may have changed its pixels; `image`: as Pillow opens it."""
    if image is None:
        return file.read_bytes()[:2] == JPEG_SIGNATURE
    file_format = image.format
    if file_format == "TIFF":
        return image.info.get("compression", "raw") not in LOSSLESS_TIFF
    if file_format == "WEBP":
        return b"VP8L" not in _webp_chunks(file.read_bytes())
    if file_format == "JPEG2000":
        # Of the marker COD (ISO 15444-1, A.6.1) byte 13 names the wavelet: 1 is reversible.
        _, marker, rest = file.read_bytes().partition(b"\xff\x52\x00")
        if not marker or rest[10:11] != b"\1":
            return True
        # A reversible file may have been cut, which leaves noise.
        return len(np.unique(np.asarray(image))) > MOST_CLASSES
    return file_format in LOSSY_FORMATS


def _webp_chunks(data: bytes) -> set[bytes]:
    """The names of the chunks of a WebP file."""
    names, place = set(), 12
    while place + 8 <= len(data):
        names.add(data[place : place + 4])
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        place += 8 + size + size % 2
    return names


def _size(mask: np.ndarray) -> str:
    return f"{mask.shape[1]} x {mask.shape[0]} px"
