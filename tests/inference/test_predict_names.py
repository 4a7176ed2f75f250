"""Hostile names: each comes back from the table, and none becomes a formula in it."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from predict_helpers import files_of, ignore_pillow, rows_of, write_image

from harmoniad_jax.inference import predict as module
from harmoniad_jax.inference.predict import predict_files

pytestmark = ignore_pillow

# What a spreadsheet would compute instead of showing.
FORMULA = ("=", "+", "-", "@", "\t", "\r")
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
