"""Odd and damaged image files, drawn: what whoever reads images must survive."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image


def noise(height=24, width=30, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(image, image_format, **options):
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def png_chunk(kind, data):
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def png(width, height, *chunks, data=b""):
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = png_chunk(b"IDAT", data or zlib.compress(bytes(1000)))
    body = b"".join([png_chunk(b"IHDR", header), *chunks, pixels])
    return b"\x89PNG\r\n\x1a\n" + body + png_chunk(b"IEND", b"")


def turned_photo():
    """A photo with one EXIF tag of an unusual type: a number that is stored as text."""
    entries = b"\x01\x1c\x00\x02\x00\x00\x00\x02x\x00\x00\x00"
    entries += b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00"
    exif = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x02" + entries + bytes(4)
    return encoded(Image.fromarray(noise()), "JPEG", exif=exif)


def rotated(image_format):
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.fromarray(noise()), image_format, exif=exif)


def animated(image_format):
    frames = [Image.fromarray(noise(seed=seed)) for seed in range(3)]
    return encoded(frames[0], image_format, save_all=True, append_images=frames[1:])


def good_images() -> Iterator[tuple[str, bytes, tuple[int, int]]]:
    """Name, content and upright size of images that can be judged."""
    colour = Image.fromarray(noise())
    deep = np.linspace(0, 65535, 24 * 30).reshape(24, 30)
    for width, height in ((1, 1), (1, 300), (300, 1), (20000, 3), (2, 20000)):
        image = Image.fromarray(noise(height, width))
        yield f"{width}x{height}.png", encoded(image, "PNG"), (width, height)
    size = colour.size
    for name, image_format in (("cmyk.jpg", "JPEG"), ("cmyk.tif", "TIFF")):
        yield name, encoded(colour.convert("CMYK"), image_format), size
    yield "16.png", encoded(Image.fromarray(deep.astype(np.uint16)), "PNG"), size
    yield "16.tif", encoded(Image.fromarray(deep.astype(np.uint16)), "TIFF"), size
    for mode in ("RGBA", "LA", "P", "1", "L"):
        yield f"{mode}.png", encoded(colour.convert(mode), "PNG"), size
    palette = encoded(colour.quantize(16), "PNG", transparency=bytes([0, 128, 255]))
    yield "transparent palette.png", palette, size
    yield "YCbCr.tif", encoded(colour.convert("YCbCr"), "TIFF"), size
    for image_format in ("GIF", "PNG", "WEBP", "TIFF"):
        yield f"animated.{image_format.lower()}", animated(image_format), size
    for image_format in ("JPEG", "PNG", "WEBP", "TIFF"):
        yield f"rotated.{image_format.lower()}", rotated(image_format), size[::-1]
    yield "really a.bmp.png", encoded(colour, "BMP"), size
    yield "no suffix but.ppm", encoded(colour, "PPM"), size
    yield "all black.png", encoded(Image.new("RGB", size), "PNG"), size
    yield "trailing bytes.png", encoded(colour, "PNG") + b"PK\x03\x04" * 100, size


def damaged_images() -> Iterator[tuple[str, bytes]]:
    """Name and content of files that no one can judge."""
    colour = Image.fromarray(noise(64, 64))
    yield "zero bytes.png", b""
    yield "zero bytes.tif", b""
    yield "text.png", b"Dear reader"
    yield "page.jpg", b"<html><body>404</body></html>"
    yield "drawing.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>"
    yield "archive.png", b"PK\x03\x04" + bytes(100)
    yield "random.png", np.random.default_rng(0).bytes(5000)
    yield "nulls.jpg", bytes(5000)
    for image_format in ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF"):
        content = encoded(colour, image_format)
        yield f"half.{image_format.lower()}", content[: len(content) // 2]
        yield f"start.{image_format.lower()}", content[:20]
    yield "bomb.png", png(50_000, 50_000)
    yield "absurd.png", png(2**31 - 1, 2**31 - 1)
    yield "no pixels.png", png(0, 0)
    # Ten megabytes of text in ten kilobytes.
    text = zlib.compress(bytes(10_000_000))
    yield "text bomb.png", png(8, 8, png_chunk(b"zTXt", b"Comment\x00\x00" + text))
    wide = struct.pack("<IHHIIIIII", 40, 0, 0, 40, 0, 0, 0, 0, 0)
    yield "nonsense.bmp", b"BM" + bytes(12) + wide
    tiff = b"II*\x00\x08\x00\x00\x00\x00\x00" + bytes(20)
    yield "no tags.tif", tiff
    yield "loop.tif", b"II*\x00\x08\x00\x00\x00\x00\x00\x08\x00\x00\x00"


def images_without_scale() -> Iterator[tuple[str, bytes, str]]:
    """Name and content of images whose white nobody can know, and what is said of each."""
    deep = np.linspace(0, 65535, 24 * 30).reshape(24, 30)
    whole = encoded(Image.fromarray(deep.astype(np.int32)), "TIFF")
    yield "32.tif", whole, "does not state what white is"
    floats = np.float32(deep)
    floats[0, :3] = [np.nan, np.inf, -np.inf]
    content = encoded(Image.fromarray(floats), "TIFF")
    yield "float.tif", content, "has 3 values that are not finite numbers"


def hostile_files() -> Iterator[tuple[str, bytes]]:
    """Name and content of all of them."""
    for name, content, _ in good_images():
        yield name, content
    yield from damaged_images()
    for name, content, _ in images_without_scale():
        yield name, content
