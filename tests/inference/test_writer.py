"""What predictions leave on disk, written without a model."""

import csv
import dataclasses
import json
from pathlib import PurePosixPath

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from harmoniad_jax.errors import UserError
from harmoniad_jax.inference.result import ImageResult
from harmoniad_jax.inference.writer import (
    COLUMNS,
    CSV_FILE,
    PARTIAL_FILE,
    PredictionWriter,
    draw_overlay,
)


def drawn(side=8, **changes):
    """A result of an image of 30 x 20 px."""
    values = np.linspace(-3, 5, side * side, dtype=np.float32).reshape(side, side)
    share = np.linspace(0, 0.999, side * side, dtype=np.float32).reshape(side, side)
    result = ImageResult(
        anomaly_map=values,
        normalised_map=share,
        size=(30, 20),
        score=1.25,
        category=None,
        threshold=1.0,
        pixel_threshold=1.0,
        normalised_score=0.6,
        boxes=((1, 2, 3, 4),),
    )
    return dataclasses.replace(result, **changes)


def picture(height=20, width=30, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def read_rows(folder, name=CSV_FILE):
    with (folder / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def written(folder, prediction, name="a.png", image=None, **options):
    with PredictionWriter(folder, **options) as writer:
        result = dataclasses.replace(prediction, thumbnail=image)
        writer.write(PurePosixPath(name), result)
    (row,) = read_rows(folder)
    return row


# The table.


@pytest.mark.parametrize(
    ("score", "verdict"), [(1.25, "defective"), (1.0, "good"), (-7.5, "good")]
)
def test_a_row(tmp_path, score, verdict):
    row = written(tmp_path / "out", drawn(score=score, category="pipe fryum"))
    assert row == {
        "path": "a.png",
        "score": f"{score:g}",
        "normalised_score": "0.6",
        "threshold": "1",
        "verdict": verdict,
        "category": "pipe fryum",
        "boxes": "[[1, 2, 3, 4]]",
        "note": "",
        "error": "",
    }
    assert tuple(row) == COLUMNS


def test_what_is_not_known_is_empty(tmp_path):
    prediction = drawn(threshold=None, normalised_score=None, normalised_map=None, boxes=())
    row = written(tmp_path / "out", prediction, image=picture())
    assert row["threshold"] == row["normalised_score"] == row["verdict"] == ""
    assert row["category"] == ""
    assert json.loads(row["boxes"]) == []


@given(st.floats(-1e6, 1e6, width=32))
def test_numbers_keep_six_digits(tmp_path_factory, score):
    folder = tmp_path_factory.mktemp("out")
    row = written(folder, drawn(score=score), maps="none", overlays=False)
    assert float(row["score"]) == pytest.approx(score, rel=1e-5)


def test_an_error_is_a_row_of_one_line(tmp_path):
    with PredictionWriter(tmp_path / "out") as writer:
        writer.write_error(PurePosixPath("a.png"), "no\n\timage\r\nat all")
    (row,) = read_rows(tmp_path / "out")
    assert row.pop("error") == "no image at all"
    assert row.pop("path") == "a.png"
    assert set(row.values()) == {""}


def test_rows_are_on_disk_as_soon_as_they_are_written(tmp_path):
    """Whoever is killed, or looks in meanwhile, has what is done, and sees that it is not
    all: the table gets its name at the end."""
    out = tmp_path / "out"
    with PredictionWriter(out, maps="none") as writer:
        assert read_rows(out, PARTIAL_FILE) == []
        for done in range(1, 4):
            writer.write(PurePosixPath(f"{done}.png"), drawn())
            assert len(read_rows(out, PARTIAL_FILE)) == done
        assert not (out / CSV_FILE).exists()
    assert len(read_rows(out)) == 3
    assert not (out / PARTIAL_FILE).exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_table_that_was_not_finished_is_not_taken_for_one(tmp_path, error):
    written(tmp_path, drawn(), "old.png")
    with pytest.raises(error), PredictionWriter(tmp_path, overwrite=True) as writer:
        writer.write(PurePosixPath("new.png"), drawn())
        raise error
    assert not (tmp_path / CSV_FILE).exists()  # nor the old one beside newer maps
    assert [row["path"] for row in read_rows(tmp_path, PARTIAL_FILE)] == ["new.png"]
    with pytest.raises(UserError, match="of a call that did not finish; .*--overwrite"):
        PredictionWriter(tmp_path)
    assert written(tmp_path, drawn(), "all.png", overwrite=True)["path"] == "all.png"
    assert not (tmp_path / PARTIAL_FILE).exists()


NAMES = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="/\x00"),
    min_size=1,
    max_size=20,
).filter(lambda name: name not in (".", ".."))


@settings(deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=4, unique=True))
def test_any_name_comes_back_and_is_no_formula(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("out")
    with PredictionWriter(folder) as writer:
        for name in names:
            writer.write_error(PurePosixPath(name), "no image")
    rows = read_rows(folder)
    assert [PurePosixPath(row["path"]) for row in rows] == [
        PurePosixPath(name) for name in names
    ]
    assert not any(row["path"].startswith(tuple("=+-@\t\r")) for row in rows)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_begins_a_formula(tmp_path, start):
    """Nor does an error, which begins with a path, or the name of a product."""
    text = f"{start}1+1"
    with PredictionWriter(tmp_path / "out", maps="none") as writer:
        writer.write(PurePosixPath(f"{text}.png"), drawn(category=text))
        writer.write_error(PurePosixPath(f"{text}/b.png"), f"{text} cannot be read")
    for row in read_rows(tmp_path / "out"):
        for name in ("path", "category", "error"):
            assert not row[name].startswith(start), name


# Maps.


def test_a_map_has_sixteen_bits_and_half_is_the_threshold(tmp_path):
    share = np.float32([[0.0, 0.5], [0.25, 0.99999]])
    written(tmp_path / "out", drawn(normalised_map=share), map_size="model")
    with Image.open(tmp_path / "out/maps/a.png.png") as image:
        levels = np.asarray(image)
    np.testing.assert_array_equal(levels, [[0, 32768], [16384, 65534]])


@pytest.mark.parametrize("size", [(1, 1), (300, 1), (1, 300), (64, 48)])
@pytest.mark.parametrize("maps", ["png", "npy"])
def test_a_map_has_the_size_that_is_asked_for(tmp_path, maps, size):
    def shape(folder):
        if maps == "npy":
            return np.load(folder / "maps/a.png.npy").shape
        with Image.open(folder / "maps/a.png.png") as image:
            return image.size[::-1]

    for map_size, expected in (("image", size[::-1]), ("model", (8, 8))):
        folder = tmp_path / map_size
        written(folder, drawn(size=size), maps=maps, map_size=map_size)
        assert shape(folder) == expected


def test_a_raw_map_is_the_models(tmp_path):
    prediction = drawn(threshold=None, normalised_score=None, normalised_map=None)
    written(tmp_path / "out", prediction, maps="npy", map_size="model")
    stored = np.load(tmp_path / "out/maps/a.png.npy", allow_pickle=False)
    np.testing.assert_array_equal(stored, prediction.anomaly_map)
    assert stored.dtype == np.float32


def test_a_constant_map_stays_constant_at_any_size(tmp_path):
    for share in (0.0, 0.5, 0.75):
        folder = tmp_path / str(share)
        constant = np.full((8, 8), share, np.float32)
        written(folder, drawn(normalised_map=constant, size=(301, 77)))
        with Image.open(folder / "maps/a.png.png") as image:
            assert len(np.unique(np.asarray(image))) == 1


@pytest.mark.parametrize(
    ("options", "folders"),
    [
        ({}, {"maps", "overlays"}),
        ({"maps": "none"}, {"overlays"}),
        ({"overlays": False}, {"maps"}),
        ({"maps": "none", "overlays": False}, set()),
    ],
)
def test_only_what_is_asked_for_is_written(tmp_path, options, folders):
    written(tmp_path / "out", drawn(), "sub/a.png", picture(), **options)
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == folders
    for folder in folders:
        (path,) = (tmp_path / "out" / folder / "sub").iterdir()
        assert path.name.startswith("a.png.")


# Where it is written.


def test_a_folder_with_files_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="holds files"):
        PredictionWriter(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert written(tmp_path, drawn(), overwrite=True)["path"] == "a.png"
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_shorter_table_replaces_a_longer_one_whole(tmp_path):
    with PredictionWriter(tmp_path / "out", maps="none") as writer:
        for i in range(10):
            writer.write(PurePosixPath(f"{i}.png"), drawn())
    row = written(tmp_path / "out", drawn(), "only.png", overwrite=True)
    assert row["path"] == "only.png"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(UserError, match="is a file|cannot be made|Not a directory"):
            PredictionWriter(folder, overwrite=True)


# Overlays.


@pytest.mark.parametrize("shape", [(20, 30), (1, 1), (1, 1024), (700, 2), (1024, 1024)])
def test_an_overlay_is_the_image_twice_and_a_bar(shape):
    image = picture(*shape)
    before = image.copy()
    share = drawn().normalised_map
    drawing = draw_overlay(image, share)
    height, width = shape
    assert drawing.dtype == np.uint8
    assert drawing.shape[1:] == (2 * width, 3)
    assert drawing.shape[0] > height
    np.testing.assert_array_equal(drawing[:height, :width], image)
    assert (drawing[height:, :width] == 255).all()
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(share, drawn().normalised_map)


def test_where_nothing_is_unusual_the_image_shows_through():
    image = picture(40, 60)
    drawing = draw_overlay(image, np.zeros((8, 8), np.float32))
    np.testing.assert_array_equal(drawing[:40, 60:], image)


def test_what_is_above_the_threshold_is_marked():
    image = np.full((64, 64, 3), 90, np.uint8)
    share = np.zeros((64, 64), np.float32)
    share[20:40, 20:40] = 0.9
    marked = draw_overlay(image, share)[:64, 64:]
    changed = (marked != image).any(axis=-1)
    assert changed[20:40, 20:40].all()
    assert not changed[:15].any()
    # Just below it there is heat, but no outline.
    below = draw_overlay(image, np.where(share > 0, np.float32(0.45), 0))[:64, 64:]
    assert (marked == 255).all(axis=-1).any()
    assert not (below == 255).all(axis=-1).any()


def test_an_overlay_is_a_picture_that_opens(tmp_path):
    written(tmp_path / "out", drawn(), "a.tif", picture(100, 200))
    with Image.open(tmp_path / "out/overlays/a.tif.jpg") as image:
        image.load()
        assert (image.format, image.mode) == ("JPEG", "RGB")
        assert image.width == 400
