"""Hostile images: odd ones are judged, damaged ones are rows, and none stops the rest."""

import json
from pathlib import Path

import numpy as np
import pytest
from hostile_images import (
    damaged_images,
    encoded,
    good_images,
    images_without_scale,
    turned_photo,
)
from PIL import Image
from predict_helpers import COLUMNS, ignore_pillow, noise, rows_of, write_image

from harmoniad_jax.data.images import read_image
from harmoniad_jax.data.records import EncodedImage
from harmoniad_jax.errors import UserError
from harmoniad_jax.inference import predict as module
from harmoniad_jax.inference.predict import predict_files

pytestmark = ignore_pillow


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
