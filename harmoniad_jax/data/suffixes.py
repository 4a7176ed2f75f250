"""Which files are images, by their names.

Two answers: what can be read here, and what looks like a photo all the same. A file of the
second kind is never passed over without a word.
"""

import importlib.util
from pathlib import PurePath

from PIL import Image

HEIF_SUFFIXES = frozenset((".heic", ".heics", ".heif", ".heifs", ".hif"))
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
# What cameras and editors write and Pillow does not read: raw photos, layers, JPEG's heirs.
UNREAD_SUFFIXES = frozenset(
    (
        ".3fr .arw .avif .cr2 .cr3 .crw .dcr .dng .erf .exr .fff .hdp .hdr .iiq .jp2 .jph"
    ).split()
    + (
        ".jxl .jxr .kdc .mef .mos .mrw .nef .nrw .orf .pef .psb .psd .raf .raw .rw2 .rwl"
    ).split()
    + ".sr2 .srf .srw .svg .wdp .x3f .xcf".split()
)

# Formats that are programs, not photos: to decode them runs what the file says.
REFUSED_FORMATS = ("EPS", "WMF")
Image.init()  # fills the tables of formats
IMAGE_SUFFIXES = frozenset(
    suffix
    for suffix, image_format in Image.registered_extensions().items()
    # MPO is read by the reader of JPEG, which picks it up by content.
    if (image_format in Image.OPEN or image_format == "MPO")
    and image_format not in REFUSED_FORMATS
)


def is_image(path: PurePath) -> bool:
    """Whether a file is called as images are that can be read; hidden files are not."""
    suffix = path.suffix.lower()
    known = suffix in IMAGE_SUFFIXES or (suffix in HEIF_SUFFIXES and reads_heif())
    return known and not path.name.startswith(".")


def looks_like_photo(path: PurePath) -> bool:
    """Whether a file is called as images are, readable here or not."""
    named = IMAGE_SUFFIXES | HEIF_SUFFIXES | UNREAD_SUFFIXES
    return path.suffix.lower() in named and not path.name.startswith(".")


def reads_heif() -> bool:
    """Whether the plugin is installed that reads the photos of iPhones."""
    return importlib.util.find_spec("pillow_heif") is not None


def register_heif() -> None:
    """Makes Pillow read HEIC, if the plugin is installed. Calling it again does nothing."""
    if "HEIF" not in Image.OPEN and reads_heif():
        import pillow_heif  # late, since it is optional and loads a library

        pillow_heif.register_heif_opener()


def is_heif(name: str, start: bytes = b"") -> bool:
    """Whether a file is HEIC: by its name, or by its first 12 bytes under another name."""
    by_content = start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS
    return by_content or PurePath(name).suffix.lower() in HEIF_SUFFIXES


def advice_on(name: str, start: bytes = b"") -> str:
    """What to do with a file that looks like a photo but cannot be read; may be empty."""
    if is_heif(name, start) and not reads_heif():
        return "pip install pillow-heif, or convert to JPEG or PNG"
    if PurePath(name).suffix.lower() in UNREAD_SUFFIXES - IMAGE_SUFFIXES:
        return "convert to PNG, TIFF or JPEG"
    return ""
