"""Hostile images: odd ones are judged, damaged ones are rows, and none stops the rest."""

import io
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from predict_helpers import COLUMNS, ignore_pillow, noise, rows_of, write_image

from harmoniad_jax.data.images import read_image
from harmoniad_jax.data.records import EncodedImage
from harmoniad_jax.errors import UserError
from harmoniad_jax.inference import predict as module
from harmoniad_jax.inference.predict import predict_files

pytestmark = ignore_pillow


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


GOOD = {name: (content, size) for name, content, size in good_images()}
DAMAGED = dict(damaged_images())
UNSCALED = {name: (content, said) for name, content, said in images_without_scale()}


@pytest.fixture(scope="module")
def hostile(model, tmp_path_factory):
    """All of them in one folder, judged together: rows, and the folder."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "photos").mkdir()
    others = {name: content for name, (content, _) in (GOOD | UNSCALED).items()}
    assert others.keys().isdisjoint(DAMAGED)
    for name, content in (DAMAGED | others).items():
        (folder / "photos" / name).write_bytes(content)
    (folder / "photos/folder.png").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TrainedModel", lambda *_, **__: model)
        unreadable = predict_files(Path(), f"{folder}/photos", folder / "out")
    rows = {row["path"]: row for row in rows_of(folder / "out")}
    assert unreadable == sum(bool(row["error"]) for row in rows.values())
    return folder, rows


def test_every_file_has_a_row(hostile):
    folder, rows = hostile
    files = {path.name for path in (folder / "photos").iterdir() if path.is_file()}
    assert set(rows) == files


@pytest.mark.parametrize("name", GOOD)
def test_an_odd_image_is_judged(hostile, model, name):
    folder, rows = hostile
    _, size = GOOD[name]
    assert rows[name]["error"] == ""
    (result,) = model.predict([folder / "photos" / name])
    assert result.size == size
    assert np.isfinite(float(rows[name]["score"]))
    assert float(rows[name]["score"]) == pytest.approx(result.score, rel=1e-5)
    for left, top, right, bottom in json.loads(rows[name]["boxes"]):
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
    with Image.open(folder / f"out/maps/{name}.png") as image:
        assert (image.size, image.mode) == (size, "I;16")
    with Image.open(folder / f"out/overlays/{name}.jpg") as image:
        image.load()
        assert image.width <= 2048


@pytest.mark.parametrize("name", UNSCALED)
def test_an_image_without_a_scale_is_a_row_with_its_error(hostile, name):
    _, rows = hostile
    _, said = UNSCALED[name]
    assert name in rows[name]["error"]
    assert said in rows[name]["error"]
    assert rows[name]["score"] == ""


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_image_is_a_row_with_its_error(hostile, name):
    folder, rows = hostile
    row = rows[name]
    assert f"{name} cannot be read as an image" in row["error"]
    assert {row[column] for column in COLUMNS[1:-1]} == {""}
    assert not (folder / f"out/maps/{name}.png").exists()
    assert not (folder / f"out/overlays/{name}.jpg").exists()


@pytest.mark.slow
def test_a_wide_scan_is_judged(predict, tmp_path):
    """Eighty million pixels, as a line camera takes them."""
    write_image(tmp_path / "scan.png", Image.new("RGB", (20_000, 4_000), "grey"))
    assert predict(tmp_path / "scan.png", tmp_path / "out") == 0
    (row,) = rows_of(tmp_path / "out")
    assert row["verdict"]
    with Image.open(tmp_path / "out/maps/scan.png.png") as image:
        assert image.size == (20_000, 4_000)


def test_an_animation_is_judged_by_its_first_frame(hostile, model):
    folder, _ = hostile
    first, animation = model.predict(
        [noise(), folder / "photos/animated.png"],
    )
    assert animation.score == first.score


def stumbling_blocks():
    """Name and content of files that Pillow answers with errors of other kinds."""
    colour = Image.fromarray(noise(64, 64))
    yield "odd tag.jpg", turned_photo()
    yield "LAB.tif", encoded(Image.new("LAB", (8, 8)), "TIFF")
    yield "half.dds", encoded(colour, "DDS")[:76] + bytes(200)
    if "AVIF" in Image.SAVE:
        content = encoded(colour, "AVIF")
        yield "half.avif", content[: len(content) // 2]


BLOCKS = dict(stumbling_blocks())


@pytest.mark.parametrize("name", BLOCKS)
def test_what_pillow_stumbles_over_stops_nothing(predict, tmp_path, name):
    for good in ("a.png", "z.png"):
        write_image(tmp_path / "photos" / good)
    (tmp_path / "photos" / name).write_bytes(BLOCKS[name])
    predict(tmp_path / "photos", tmp_path / "out")
    rows = {row["path"]: row for row in rows_of(tmp_path / "out")}
    assert set(rows) == {"a.png", name, "z.png"}
    assert rows["a.png"]["verdict"] and rows["z.png"]["verdict"]
    assert bool(rows[name]["error"]) != bool(rows[name]["verdict"])


def test_damage_anywhere_is_an_error_and_never_a_crash():
    """Bytes changed, cut out or cut off, in every format that is written here."""
    random = np.random.default_rng(0)
    formats = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "AVIF", "PPM", "TGA", "DDS")
    exif = Image.Exif()
    exif[0x0112] = 6
    crashes = set()
    for image_format in formats:
        if image_format not in Image.SAVE:
            continue
        options = {"exif": exif} if image_format in ("JPEG", "PNG", "WEBP") else {}
        whole = encoded(Image.fromarray(noise(10, 12)), image_format, **options)
        for _ in range(150):
            content = bytearray(whole)
            place = int(random.integers(min(len(content), 400)))
            length = int(random.integers(1, 5))
            kind = random.integers(3)
            if kind == 0:
                content[place : place + length] = random.bytes(length)
            elif kind == 1:
                del content[place : place + length]
            else:
                del content[place:]
            try:
                read_image(EncodedImage("damaged", bytes(content)))
            except UserError as error:
                assert str(error).startswith("damaged cannot be read")
            except Exception as error:
                crashes.add((image_format, type(error).__name__, str(error)))
    assert crashes == set()
