"""`python -m harmoniad_jax.predict`: what it reads, what it writes, and where."""

import dataclasses
import functools
import io
import json
import os
import re
import sys
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image
from predict_helpers import files_of, ignore_pillow, rows_of, write_image
from run_helpers import call_command
from tqdm import tqdm

from harmoniad_jax.errors import UserError
from harmoniad_jax.inference import predict as module
from harmoniad_jax.inference.files import find_files, guess_category
from harmoniad_jax.inference.predict import predict_files

pytestmark = ignore_pillow


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


@pytest.mark.parametrize("source", ["nowhere", "nowhere/*.png", "empty", "x" * 5000])
def test_what_is_not_there_is_refused(tmp_path, monkeypatch, predict, source):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").write_text("Dear reader")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--input=") as error:
        predict(source, tmp_path / "out")
    assert "is no image file, no folder with images" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_links_in_circles_and_pipes_are_passed_over(photos):
    (photos / "sub/loop.png").symlink_to(photos)
    os.mkfifo(photos / "pipe.png")
    assert names_found(photos)[0] == ["a.png", "sub/b.jpg", "sub/tablet/c.bmp"]


def test_a_link_that_leads_nowhere_has_a_row(predict, photos, tmp_path):
    (photos / "gone.png").symlink_to(photos / "nowhere.png")
    assert predict(photos, tmp_path / "out") == 1
    row = {row["path"]: row for row in rows_of(tmp_path / "out")}["gone.png"]
    assert "gone.png cannot be read" in row["error"]


def test_folders_are_entered_where_a_pattern_matches_nothing_else(photos):
    expected = ["b.jpg", "tablet/c.bmp"], photos / "sub"
    assert names_found(f"{photos}/s*") == expected
    assert names_found(f"{photos}/**/[st]*") == expected  # each file once


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


@pytest.mark.parametrize(
    ("base", "name", "category"),
    [
        ("photos/tablet", "a.png", "tablet"),
        ("photos/tablet", "day1/a.png", "tablet"),
        ("photos/tablet/today", "a.png", "tablet"),
        ("tablet/fabric", "a.png", "fabric"),
        ("data/visa/pcb1", "a.png", "visa/pcb1"),
        # What is nearer to the image counts, and two of equal right are none.
        ("photos/tablet", "fabric/a.png", "fabric"),
        ("photos/tablet", "tablet/fabric/a.png", None),
        ("photos/Tablet", "a.png", None),
        ("photos/tablets", "a.png", None),
        ("photos/pcb1", "a.png", None),
        ("photos", "a.png", None),
    ],
)
def test_the_folder_of_the_input_may_be_a_category(base, name, category):
    categories = ("fabric", "tablet", "visa/pcb1")
    assert guess_category(PurePosixPath(name), categories, Path(base)) == category


def test_the_current_folder_may_be_a_category(tmp_path, monkeypatch):
    (tmp_path / "tablet").mkdir()
    monkeypatch.chdir(tmp_path / "tablet")
    found = guess_category(PurePosixPath("a.png"), ("fabric", "tablet"), Path())
    assert found == "tablet"


@pytest.mark.parametrize("source", ["tablet", "tablet/a.png", "tablet/*.png"])
def test_images_of_the_folder_of_a_product_are_of_it(predict, tmp_path, capsys, source):
    write_image(tmp_path / "photos/tablet/a.png")
    predict(tmp_path / "photos" / source, tmp_path / "out")
    (row,) = rows_of(tmp_path / "out")
    assert row["category"] == "tablet"
    said = capsys.readouterr().out
    assert "1 image in" in said and "taken as tablet" in said
    assert "not known" not in said


@pytest.mark.parametrize("name", ["a.HEIC", "b.cr2", "sub/c.jxl", "d.mpo"])
def test_what_looks_like_a_photo_has_a_row(predict, photos, tmp_path, name):
    (photos / name).write_bytes(b"no photo that is read")
    assert predict(photos, tmp_path / "out") == 1
    row = {row["path"]: row for row in rows_of(tmp_path / "out")}[name]
    assert f"{photos / name} cannot be read" in row["error"]
    assert row["verdict"] == ""


def test_heic_without_its_plugin_is_explained_whatever_its_name(
    predict, photos, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (photos / "iphone.jpg").write_bytes(b"\0\0\0\x18ftypheic")
    predict(photos, tmp_path / "out")
    row = {row["path"]: row for row in rows_of(tmp_path / "out")}["iphone.jpg"]
    assert "pip install pillow-heif" in row["error"]


def test_a_folder_that_may_not_be_listed_has_a_row(predict, photos, tmp_path, monkeypatch):
    scandir = os.scandir

    def closed(folder):
        if Path(folder) == photos / "sub/tablet":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", closed)
    assert predict(photos, tmp_path / "out") == 1
    row = {row["path"]: row for row in rows_of(tmp_path / "out")}["sub/tablet"]
    assert "cannot be read" in row["error"]


def test_links_to_folders_are_followed(photos, tmp_path):
    write_image(tmp_path / "elsewhere/d.png")
    (photos / "link").symlink_to(tmp_path / "elsewhere")
    assert "link/d.png" in names_found(photos)[0]


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


def test_an_unknown_product_is_said(predict, photos, tmp_path, capsys):
    predict(photos, tmp_path / "out")
    said = capsys.readouterr().out
    assert "Of 2 images the product is not known" in said
    assert "There are fabric, tablet, washer." in said
    for number, options in enumerate(({"category": "tablet"}, {"threshold": 3.0})):
        predict(photos, tmp_path / f"{number}", **options)
        assert "not known" not in capsys.readouterr().out


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

    def interrupted(queries, *options):
        yield next(stream(queries, *options))
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
        with pytest.raises(UserError, match="out is a file"):
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


# The command itself.


command = functools.partial(call_command, "predict")


def test_the_command_judges_what_it_can_and_its_status_tells(
    trained_run, model, photos, tmp_path
):
    (photos / "sub/damaged.png").write_text("no image")
    done = command(
        *("--workdir", trained_run.workdir, "--input", "photos", "--output", "out"),
        *("--maps=npy", "--map_size=model", "--nooverlays", "--category=tablet"),
        "--profile_startup",
        folder=tmp_path,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "4 images: " in done.stdout
    assert "1 unreadable; see out/predictions.csv" in done.stdout
    phases = re.findall(r"^(\w+).* (\d+\.\d\d) s$", done.stdout, re.MULTILINE)
    names = [name for name, _ in phases]
    assert names[0] == "importing"
    assert {"restoring", "compiling", "judging"} < set(names)
    *parts, total = (float(seconds) for _, seconds in phases)
    assert sum(parts) == pytest.approx(total, abs=0.1)
    rows = {row["path"]: row for row in rows_of(tmp_path / "out")}
    assert "cannot be read as an image" in rows["sub/damaged.png"]["error"]
    (result,) = model.predict([photos / "a.png"], category="tablet")
    assert float(rows["a.png"]["score"]) == pytest.approx(result.score, rel=1e-4)
    assert float(rows["a.png"]["threshold"]) == pytest.approx(result.threshold, rel=1e-5)
    assert set(files_of(tmp_path / "out")) == {
        "predictions.csv",
        *(f"maps/{name}.npy" for name in rows if name != "sub/damaged.png"),
    }


@pytest.mark.slow
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
