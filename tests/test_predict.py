"""`python -m harmoniad_jax.predict`: what it reads, what it writes, and hostile images."""

import csv
import dataclasses
import functools
import io
import json
import os
import re
import struct
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image
from run_helpers import call_command
from tqdm import tqdm

from harmoniad_jax.data.preprocess import read_image
from harmoniad_jax.data.records import EncodedImage
from harmoniad_jax.errors import UserError
from harmoniad_jax.training import predict_files as module
from harmoniad_jax.training.inference import TrainedModel
from harmoniad_jax.training.predict_files import (
    find_files,
    guess_category,
    predict_files,
)

# Pillow warns of what it mends, such as EXIF data that are cut off.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

ROOT = Path(__file__).parents[1]
COLUMNS = [
    *("path", "score", "normalised_score", "threshold"),
    *("verdict", "category", "boxes", "error"),
]
# What a spreadsheet would compute instead of showing.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def noise(height=24, width=30, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write_image(path, image=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = noise() if image is None else image
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(path, **options)
    return path


def encoded(image, image_format, **options):
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def rows_of(folder):
    """The rows of predictions.csv, as another program reads them."""
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == COLUMNS
    assert all(None not in row and None not in row.values() for row in rows)
    return rows


def files_of(folder):
    """Relative path and content of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def model(trained_run):
    return TrainedModel(trained_run.workdir)


@pytest.fixture
def predict(model, monkeypatch):
    """`predict_files` with a model that was loaded once for all tests."""
    monkeypatch.setattr(module, "TrainedModel", lambda *_, **__: model)

    def call(source, output, **options):
        return predict_files(Path("unused"), str(source), output, **options)

    return call


@pytest.fixture
def photos(tmp_path):
    """Three images in two folders, and what is none."""
    folder = tmp_path / "photos"
    for seed, name in enumerate(("a.png", "sub/b.jpg", "sub/tablet/c.bmp")):
        write_image(folder / name, noise(24 + seed, 30, seed))
    for name in ("notes.txt", ".hidden.png", "sub/Thumbs.db"):
        (folder / name).write_bytes(b"Dear reader")
    return folder


# What is read.


def names_found(source):
    files, base = find_files(str(source))
    assert files == sorted(files)
    return [file.relative_to(base).as_posix() for file in files], base


def test_a_folder_is_read_with_all_that_is_below(photos):
    assert names_found(photos) == (["a.png", "sub/b.jpg", "sub/tablet/c.bmp"], photos)
    assert names_found(f"{photos}/")[0] == names_found(photos)[0]


def test_a_file_is_read_whatever_it_is_called(photos):
    assert names_found(photos / "sub/b.jpg") == (["b.jpg"], photos / "sub")
    os.rename(photos / "a.png", photos / "image")
    assert names_found(photos / "image") == (["image"], photos)


@pytest.mark.parametrize(
    ("pattern", "names", "base"),
    [
        ("*.png", ["a.png"], ""),
        ("**/*.??[gp]", ["a.png", "sub/b.jpg", "sub/tablet/c.bmp"], ""),
        ("sub/*.jpg", ["b.jpg"], "sub"),
        ("*/*", ["Thumbs.db", "b.jpg"], "sub"),
        ("sub/**/*.[jb]*", ["b.jpg", "tablet/c.bmp"], "sub"),
    ],
)
def test_a_pattern_is_read_as_a_shell_does(photos, monkeypatch, pattern, names, base):
    assert names_found(photos / pattern) == (names, photos / base)
    monkeypatch.chdir(photos)
    assert names_found(pattern) == (names, Path(base))


@pytest.mark.parametrize("name", ["a[1].png", "what?.png", "x*y.png", "[abc]/a.png"])
def test_names_that_look_like_patterns_are_names(tmp_path, name):
    path = write_image(tmp_path / "photos" / name)
    write_image(tmp_path / "photos" / "a1.png")
    assert names_found(path)[0] == [path.name]
    assert name in names_found(tmp_path / "photos")[0]
    assert names_found(path.parent)[1] == path.parent


def test_the_users_own_folder_is_known(photos, monkeypatch):
    monkeypatch.setenv("HOME", str(photos.parent))
    assert names_found("~/photos")[1] == photos
    assert names_found("~/photos/*.png")[0] == ["a.png"]


@pytest.mark.parametrize("source", ["nowhere", "nowhere/*.png", "empty", "x" * 5000, ""])
def test_what_is_not_there_is_refused(tmp_path, monkeypatch, predict, source):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").write_text("Dear reader")
    monkeypatch.chdir(tmp_path / "empty" if not source else tmp_path)
    with pytest.raises(UserError, match="--input=") as error:
        predict(source, tmp_path / "out")
    assert "is no image file, no folder with images" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_links_in_circles_and_pipes_are_passed_over(photos):
    (photos / "sub/loop.png").symlink_to(photos)
    (photos / "gone.png").symlink_to(photos / "nowhere.png")
    os.mkfifo(photos / "pipe.png")
    assert names_found(photos)[0] == ["a.png", "sub/b.jpg", "sub/tablet/c.bmp"]


@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("tablet/a.png", "tablet"),
        ("day/tablet/test/a.png", "tablet"),
        ("visa/pcb1/a.png", "visa/pcb1"),
        ("tablet.png", None),
        ("tablets/a.png", None),
        ("Tablet/a.png", None),
        ("tablet/fabric/a.png", None),
        ("a.png", None),
    ],
)
def test_the_category_is_a_folder_of_the_path(name, category):
    categories = ("fabric", "tablet", "visa/pcb1")
    assert guess_category(PurePosixPath(name), categories) == category


def test_of_a_single_category_every_image_is():
    assert guess_category(PurePosixPath("today/a.png"), ("tablet",)) == "tablet"


# What is written.


def test_a_row_says_what_the_model_says(predict, model, photos, tmp_path, capsys):
    assert predict(photos, tmp_path / "out") == 0
    rows = rows_of(tmp_path / "out")
    assert [row["path"] for row in rows] == ["a.png", "sub/b.jpg", "sub/tablet/c.bmp"]
    assert [row["category"] for row in rows] == ["", "", "tablet"]
    for row in rows:
        (result,) = model.predict([photos / row["path"]], category=row["category"] or None)
        for name in ("score", "normalised_score", "threshold"):
            assert float(row[name]) == pytest.approx(getattr(result, name), rel=1e-5)
        assert row["verdict"] == ("defective" if result.is_defective else "good")
        assert json.loads(row["boxes"]) == [list(box) for box in result.boxes]
        assert row["error"] == ""
    defective = sum(row["verdict"] == "defective" for row in rows)
    said = f"3 images: {defective} defective, {3 - defective} good; see {tmp_path}/out"
    assert said in capsys.readouterr().out


def test_a_bar_shows_the_progress(predict, photos, tmp_path, monkeypatch):
    shown = io.StringIO()

    def on_a_terminal(*arguments, **options):
        return tqdm(*arguments, **{**options, "disable": False, "file": shown})

    monkeypatch.setattr(module, "tqdm", on_a_terminal)
    predict(photos, tmp_path / "out")
    last = shown.getvalue().split("\r")[-1]
    assert "predicting" in last
    assert "3/3" in last


def test_category_rate_and_threshold_are_passed_on(predict, model, photos, tmp_path):
    options = {"category": "washer", "false_positive_rate": 0.4}
    predict(photos, tmp_path / "one", **options)
    (expected,) = model.predict([photos / "a.png"], **options)
    for row in rows_of(tmp_path / "one"):
        assert row["category"] == "washer"
        assert float(row["threshold"]) == pytest.approx(expected.threshold, rel=1e-5)
    for threshold, verdict in ((-1e6, "defective"), (1e6, "good")):
        predict(photos, tmp_path / verdict, threshold=threshold)
        assert {row["verdict"] for row in rows_of(tmp_path / verdict)} == {verdict}


def test_every_image_has_a_map_and_an_overlay_by_its_name(predict, photos, tmp_path):
    predict(photos, tmp_path / "out")
    assert set(files_of(tmp_path / "out")) == {
        "predictions.csv",
        *(f"maps/{n}.png" for n in ("a.png", "sub/b.jpg", "sub/tablet/c.bmp")),
        *(f"overlays/{n}.jpg" for n in ("a.png", "sub/b.jpg", "sub/tablet/c.bmp")),
    }


def test_namesakes_of_other_formats_have_their_own_maps(predict, tmp_path):
    for suffix in (".png", ".jpg"):
        write_image(tmp_path / f"photos/a{suffix}")
    predict(tmp_path / "photos", tmp_path / "out")
    maps = {path.name for path in (tmp_path / "out/maps").iterdir()}
    assert maps == {"a.png.png", "a.jpg.png"}


@pytest.mark.parametrize("map_size", ["image", "model"])
def test_maps_are_sixteen_bit_pictures(predict, model, photos, tmp_path, map_size):
    predict(photos, tmp_path / "out", map_size=map_size)
    side = model.config.evaluation.map_side
    for row in rows_of(tmp_path / "out"):
        with Image.open(tmp_path / f"out/maps/{row['path']}.png") as image:
            assert image.mode == "I;16"
            levels = np.asarray(image)
        (result,) = model.predict([photos / row["path"]], category=row["category"] or None)
        size = result.size if map_size == "image" else (side, side)
        assert (levels.dtype, levels.shape) == (np.uint16, size[::-1])
        expected = Image.fromarray(result.normalised_map).resize(
            size, Image.Resampling.BILINEAR
        )
        np.testing.assert_allclose(levels, 65535 * np.asarray(expected), atol=0.51)
        assert levels.max() > 255
        if map_size == "model":
            above = result.anomaly_map > 1.001 * result.pixel_threshold
            assert (levels[above] >= 32768).all()


def test_maps_may_be_raw_numbers(predict, model, photos, tmp_path):
    predict(photos / "a.png", tmp_path / "model", maps="npy", map_size="model")
    predict(photos / "a.png", tmp_path / "image", maps="npy")
    (result,) = model.predict([photos / "a.png"])
    stored = np.load(tmp_path / "model/maps/a.png.npy", allow_pickle=False)
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, result.anomaly_map)
    stored = np.load(tmp_path / "image/maps/a.png.npy", allow_pickle=False)
    assert (stored.dtype, stored.shape) == (np.float32, (24, 30))
    assert result.anomaly_map.min() <= stored.min() < stored.max()


def test_maps_and_overlays_may_be_left_away(predict, photos, tmp_path):
    predict(photos, tmp_path / "out", maps="none", overlays=False)
    assert set(files_of(tmp_path / "out")) == {"predictions.csv"}


def test_overlays_show_the_image_upright_beside_itself(predict, tmp_path):
    image = np.zeros((60, 40, 3), np.uint8)
    image[:30] = [200, 30, 30]
    write_image(tmp_path / "a.png", image)
    predict(tmp_path / "a.png", tmp_path / "out")
    with Image.open(tmp_path / "out/overlays/a.png.jpg") as overlay:
        assert overlay.mode == "RGB"
        pixels = np.asarray(overlay)
    assert pixels.shape[1] == 80
    assert pixels.shape[0] >= 60
    np.testing.assert_allclose(pixels[5:25, 5:35].mean((0, 1)), [200, 30, 30], atol=6)
    np.testing.assert_allclose(pixels[35:55, 5:35].mean((0, 1)), 0, atol=6)


def test_a_model_without_thresholds_leaves_scores_and_says_so(
    predict, model, photos, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(model, "_calibration", None)
    assert predict(photos, tmp_path / "out", maps="npy") == 0
    said = capsys.readouterr().out
    assert "3 without threshold" in said
    assert "no verdict without --threshold=SCORE" in said
    for row in rows_of(tmp_path / "out"):
        assert np.isfinite(float(row["score"]))
        assert row["threshold"] == row["normalised_score"] == row["verdict"] == ""
        assert row["boxes"] == "[]"
        assert (tmp_path / f"out/maps/{row['path']}.npy").is_file()


def test_a_category_of_one_photo_is_judged_by_the_threshold_of_all(
    predict, model, photos, tmp_path, monkeypatch, capsys
):
    """Its only image was trained on, so that none could be held out."""
    known = model._calibration
    rest = {name: known.of(name) for name in ("fabric", "washer")}
    alone = dataclasses.replace(known, per_category=rest, others=("tablet",))
    monkeypatch.setattr(model, "_calibration", alone)
    predict(photos, tmp_path / "out")
    said = capsys.readouterr().out
    assert "Of tablet there was a single training image" in said
    row = rows_of(tmp_path / "out")[2]
    rate = model.config.calibration.false_positive_rate
    assert row["category"] == "tablet"
    assert row["verdict"] in ("good", "defective")
    assert float(row["threshold"]) == pytest.approx(alone.overall.threshold(rate), rel=1e-5)
    predict(photos, tmp_path / "washer", category="washer")
    assert "single training image" not in capsys.readouterr().out


# Where it is written.


@pytest.mark.parametrize("name", ["mine.txt", "predictions.csv", "maps/a.png.png", ".git"])
def test_nothing_is_overwritten_unasked(predict, photos, tmp_path, name):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(UserError, match="out holds files; .*--overwrite"):
        predict(photos, tmp_path / "out")
    assert files_of(tmp_path / "out") == {name: b"mine"}


def test_overwriting_replaces_its_own_files_and_no_others(predict, photos, tmp_path):
    predict(photos, tmp_path / "fresh")
    predict(photos, tmp_path / "out", threshold=1e6)
    assert files_of(tmp_path / "out") != files_of(tmp_path / "fresh")
    (tmp_path / "out/mine.txt").write_text("mine")
    predict(photos, tmp_path / "out", overwrite=True)
    expected = {**files_of(tmp_path / "fresh"), "mine.txt": b"mine"}
    assert files_of(tmp_path / "out") == expected


def test_an_empty_folder_may_be_there_and_parents_need_not(predict, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    assert predict(photos, tmp_path / "empty") == 0
    assert predict(photos, tmp_path / "new/deep/out") == 0
    assert files_of(tmp_path / "empty") == files_of(tmp_path / "new/deep/out")


def test_whoever_interrupts_is_told_what_is_left(
    predict, model, photos, tmp_path, monkeypatch, capsys
):
    stream = model.stream

    def interrupted(queries, **options):
        yield next(stream(queries, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "stream", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict(photos, tmp_path / "out")
    partial = tmp_path / "out/predictions.partial.csv"
    assert len(partial.read_text().splitlines()) == 2
    said = capsys.readouterr().err
    assert f"not finished: what was judged so far is in {partial}; add --overwrite" in said


def test_an_output_that_is_a_file_is_refused(predict, photos, tmp_path):
    (tmp_path / "out").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="out cannot be made"):
            predict(photos, tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "out").read_text() == "mine"


def test_images_that_are_judged_are_left_as_they_are(predict, photos, tmp_path):
    before = files_of(photos)
    predict(photos, tmp_path / "out")
    assert files_of(photos) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"category": "tabelt"}, "Did you mean 'tablet'?"),
        ({"false_positive_rate": 1.0}, "between 0 and 1"),
        ({"false_positive_rate": -1.0}, "between 0 and 1"),
    ],
)
def test_a_mistake_leaves_nothing_behind(predict, photos, tmp_path, options, message):
    """Or the mended command would be told that the output holds files."""
    with pytest.raises(UserError, match=re.escape(message)):
        predict(photos, tmp_path / "out", **options)
    assert files_of(tmp_path / "out") == {}
    assert predict(photos, tmp_path / "out") == 0


def test_a_run_that_is_none_leaves_nothing_behind(photos, tmp_path):
    with pytest.raises(UserError, match="holds no checkpoints"):
        predict_files(tmp_path / "nowhere", str(photos), tmp_path / "out")
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
    assert not (tmp_path / "nowhere").exists()


def test_what_it_wrote_is_not_taken_for_photos(predict, photos):
    """The output may lie below the input, and the command be repeated."""
    assert predict(photos, photos / "out") == 0
    first = rows_of(photos / "out")
    assert predict(photos, photos / "out", overwrite=True) == 0
    assert rows_of(photos / "out") == first


# Hostile names.

NAMES = [
    "with space.png",
    " leading and trailing .png",
    "comma,semicolon;tab\tbar|.png",
    "tab\t.png",
    '"quoted".png',
    "it's.png",
    'half"quote,.png',
    "new\nline.png",
    "\nfirst.png",
    "carriage\rreturn.png",
    "both\r\n.png",
    "=1+1.png",
    "=cmd|' !A0'.png",
    "+1.png",
    "-1.png",
    "@SUM(A1).png",
    "\t=1.png",
    "\r=1.png",
    "=folder/=1.png",
    "--overwrite.png",
    "back\\slash.png",
    "percent%s%d{0}.png",
    "schräg ß ø 产品 изделие.png",
    unicodedata.normalize("NFC", "composed é.png"),
    unicodedata.normalize("NFD", "decomposed é.png"),
    "emoji 😀🔧.png",
    "right to left ‮gnp.png",
    "zero​width.png",
    "a.b.c..png",
    "UPPER.PNG",
    "predictions.csv.png",
    "maps/overlays.png",
    "~.png",
    "$HOME `id`.png",
    "a[1]*?.png",
]


@pytest.fixture(scope="module")
def named(model, tmp_path_factory):
    """A folder of images with hostile names, and what was predicted of them."""
    folder = tmp_path_factory.mktemp("named")
    for name in NAMES:
        write_image(folder / "photos" / name, format="PNG")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TrainedModel", lambda *_, **__: model)
        assert predict_files(Path(), f"{folder}/photos", folder / "out") == 0
    return folder


def test_every_name_comes_back_from_the_table(named):
    rows = rows_of(named / "out")
    assert len(rows) == len(NAMES)
    assert all((named / "photos" / row["path"]).is_file() for row in rows)
    assert {os.path.normpath(row["path"]) for row in rows} == set(NAMES)
    assert {row["verdict"] for row in rows} <= {"good", "defective"}


def test_every_name_has_its_map_and_overlay(named):
    for kind, suffix in (("maps", ".png"), ("overlays", ".jpg")):
        found = {name.removeprefix(f"{kind}/") for name in files_of(named / "out")}
        assert {name + suffix for name in NAMES} <= found
        for name in NAMES:
            with Image.open(named / "out" / kind / (name + suffix)) as image:
                image.load()


def is_number(cell):
    try:
        return np.isfinite(float(cell))
    except ValueError:
        return False


def check_no_formulas(folder):
    cells = [(row["path"], c) for row in rows_of(folder) for c in row.values()]
    formulas = [(p, c) for p, c in cells if c.startswith(FORMULA) and not is_number(c)]
    assert formulas == []


def test_no_name_becomes_a_formula(named):
    check_no_formulas(named / "out")


@pytest.mark.parametrize("source", [".", "*.png", "=cmd.png"])
def test_no_error_becomes_a_formula(predict, tmp_path, monkeypatch, source):
    """An error begins with the path, which is as short as it was given."""
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path / "photos")
    for name in ("=cmd.png", "@x.png", "-1+1.png"):
        Path(name).write_text("no image")
    assert predict(source, tmp_path / "out") == (1 if source == "=cmd.png" else 3)
    check_no_formulas(tmp_path / "out")


def test_no_category_becomes_a_formula(predict, model, photos, tmp_path, monkeypatch):
    """Names of products are names of folders, which anyone may choose."""
    per_category = dict(model._calibration.per_category)
    per_category["=1+1"] = per_category["tablet"]
    monkeypatch.setattr(model, "_calibration", _with(model._calibration, per_category))
    (photos / "sub/tablet").rename(photos / "sub/=1+1")
    predict(photos, tmp_path / "out")
    assert any("1+1" in row["category"] for row in rows_of(tmp_path / "out"))
    check_no_formulas(tmp_path / "out")


def _with(calibration, per_category):
    return type(calibration)(calibration.settings, calibration.overall, per_category)


def test_a_newline_in_an_unreadable_name_keeps_one_row(predict, tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("a\nb.png", 'a",b\r.png'):
        (tmp_path / "photos" / name).write_text("no image")
    assert predict(tmp_path / "photos", tmp_path / "out") == 2
    rows = rows_of(tmp_path / "out")
    assert {row["path"] for row in rows} == {"a\nb.png", 'a",b\r.png'}
    for row in rows:
        assert "cannot be read as an image" in row["error"]
        assert "\n" not in row["error"]
        assert row["score"] == row["verdict"] == row["boxes"] == ""


@pytest.mark.parametrize(
    "name", [b"latin \xe4\xff.png", b"x" * 251 + b".png", "ä".encode() * 125 + b".png"]
)
def test_names_that_are_no_text_or_very_long_stop_nothing(predict, tmp_path, name):
    """A file system takes any 255 bytes: also those that are no UTF-8, and names to
    which nothing can be added."""
    folder = tmp_path / "photos"
    write_image(folder / "a.png")
    write_image(folder / "z.png")
    with open(os.path.join(os.fsencode(folder), name), "wb") as file:
        file.write((folder / "a.png").read_bytes())
    predict(folder, tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 3
    judged = {row["path"] for row in rows if row["verdict"]}
    assert {"a.png", "z.png"} <= judged


# Hostile images.


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
    yield "32.tif", encoded(Image.fromarray(deep.astype(np.int32)), "TIFF"), size
    floats = np.float32(deep)
    floats[0, :3] = [np.nan, np.inf, -np.inf]
    yield "float.tif", encoded(Image.fromarray(floats), "TIFF"), size
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


GOOD = {name: (content, size) for name, content, size in good_images()}
DAMAGED = dict(damaged_images())


@pytest.fixture(scope="module")
def hostile(model, tmp_path_factory):
    """All of them in one folder, judged together: rows, and the folder."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "photos").mkdir()
    assert GOOD.keys().isdisjoint(DAMAGED)
    for name, content in (
        DAMAGED | {n: content for n, (content, _) in GOOD.items()}
    ).items():
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


def test_a_file_that_vanishes_meanwhile_stops_nothing(
    predict, photos, tmp_path, monkeypatch
):
    """It was judged, and is to be read once more for its overlay."""

    def vanished(file):
        if file.name == "b.jpg":
            raise UserError(f"{file} cannot be read as an image (it is gone)")
        return read_image(file)

    monkeypatch.setattr(module, "read_image", vanished)
    predict(photos, tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert [row["path"] for row in rows] == ["a.png", "sub/b.jpg", "sub/tablet/c.bmp"]
    assert rows[0]["verdict"] and rows[2]["verdict"]


# The command itself.


command = functools.partial(call_command, "predict")


def test_the_command_judges_what_it_can_and_its_status_tells(
    trained_run, model, photos, tmp_path
):
    (photos / "sub/damaged.png").write_text("no image")
    done = command(
        *("--workdir", trained_run.workdir, "--input", "photos", "--output", "out"),
        *("--maps=npy", "--map_size=model", "--nooverlays", "--category=tablet"),
        folder=tmp_path,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "4 images: " in done.stdout
    assert "1 unreadable; see out/predictions.csv" in done.stdout
    rows = {row["path"]: row for row in rows_of(tmp_path / "out")}
    assert "cannot be read as an image" in rows["sub/damaged.png"]["error"]
    (result,) = model.predict([photos / "a.png"], category="tablet")
    assert float(rows["a.png"]["score"]) == pytest.approx(result.score, rel=1e-4)
    assert float(rows["a.png"]["threshold"]) == pytest.approx(result.threshold, rel=1e-5)
    assert set(files_of(tmp_path / "out")) == {
        "predictions.csv",
        *(f"maps/{name}.npy" for name in rows if name != "sub/damaged.png"),
    }


def test_the_command_ends_well_when_all_is_well(trained_run, photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    done = command(
        *("--workdir", trained_run.workdir, "--input", photos / "**/*.[jp][pn]g"),
        *("--output", tmp_path / "out", "--overwrite", "--threshold=-1e6"),
    )
    assert done.returncode == 0, done.stderr
    assert "2 images: 2 defective, 0 good" in done.stdout
    assert {"mine.txt", "overlays/a.png.jpg", "maps/sub/b.jpg.png"} <= set(
        files_of(tmp_path / "out")
    )


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((), "--workdir"),
        (("--workdir=w", "--input=i"), "--output"),
        (("--workdir=w", "--input=i", "--output=o", "--maps=tiff"), "png"),
        (("--workdir=w", "--input=i", "--output=o", "--threshold=high"), "high"),
        (("--workdir=w", "--input=i", "--output=o", "more.png"), "more.png"),
    ],
)
def test_bad_flags_are_one_line_and_status_two(arguments, part):
    done = command(*arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert part in line
    assert done.stdout == ""
