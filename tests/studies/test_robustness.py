"""Robustness: corruptions are what they say, and runs are compared."""

import dataclasses
import functools
import hashlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from run_helpers import call_command

from harmoniad_jax.config import Config, with_settings
from harmoniad_jax.data.images import read_image
from harmoniad_jax.data.mask_files import read_mask
from harmoniad_jax.data.records import Record
from harmoniad_jax.errors import UserError
from harmoniad_jax.metrics import METRIC_NAMES
from harmoniad_jax.model.encoders.encoder import Features
from harmoniad_jax.studies.bands import BANDS, mixed
from harmoniad_jax.studies.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    Condition,
    corrupted,
)
from harmoniad_jax.studies.robustness import Robustness, chosen_records, is_of
from harmoniad_jax.studies.robustness_tables import mean_change, plot, tables


@pytest.fixture
def record(tmp_path):
    """Grey hills, too smooth for chance to hide a shift, and a bright square as defect."""
    y, x = np.mgrid[:240, :320]
    hills = 100 + 30 * np.sin(x / 40) * np.cos(y / 50)
    image = np.stack([hills, hills + 5, hills + 10], axis=-1).astype(np.uint8)
    mask = np.zeros((240, 320), np.uint8)
    mask[80:120, 120:180] = 255
    image[mask > 0] = 220
    for name, pixels in (("image.png", image), ("mask.png", mask)):
        Image.fromarray(pixels).save(tmp_path / name)
    return Record(
        tmp_path / "image.png", "bottle", "bright", tmp_path / "mask.png", sha256="0"
    )


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_more_severe_is_farther_from_the_image(record, name):
    image = read_image(record.image).astype(int)
    distances = []
    for severity in SEVERITIES:
        changed = corrupted(record, name, severity)
        pixels = read_image(changed.image)
        assert pixels.shape == image.shape and pixels.dtype == np.uint8
        distances.append(np.abs(pixels - image).mean())
        # What was known of the file no longer holds.
        assert changed.sha256 is None and changed.is_anomalous
    assert distances[0] > 0
    assert distances[-1] > 1.5 * distances[0]
    if not CORRUPTIONS[name].move:
        assert distances == sorted(distances)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_in_one_way(record, name):
    first, again = (read_image(corrupted(record, name, 3).image) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_chance_is_that_of_the_image(record):
    twin = dataclasses.replace(record, category="pill")
    first, second = (read_image(corrupted(r, "noise", 3).image) for r in (record, twin))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_masks_follow_their_defects(record, name, severity):
    changed = corrupted(record, name, severity)
    mask = read_mask(changed.mask)
    if not CORRUPTIONS[name].move:
        np.testing.assert_array_equal(mask, read_mask(record.mask))
        return
    image = read_image(changed.image).min(axis=-1)
    # Where the mask is, the image is bright; at its border pixels were mixed.
    assert 0.95 * 2400 < mask.sum() < 1.05 * 2400
    bright = image > 175
    assert (mask & bright).sum() > 0.95 * (mask | bright).sum()


def test_levels_are_five():
    assert {len(one.levels) for one in CORRUPTIONS.values()} == {len(SEVERITIES)}


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        (["a"], {"corruptions": ["fog"]}, r"'fog' is unknown; there are noise"),
        (["a"], {"severities": [0, 1]}, "severity 0 is unknown; expected 1 to 5"),
        (["a", "other/a"], {}, "told apart by their names"),
        (["a", "nowhere"], {}, "nowhere holds no checkpoint"),
    ],
)
def test_a_mistake_is_found_at_once(trained_run, tmp_path, names, settings, message):
    for name in ("a", "other/a"):
        shutil.copytree(trained_run.workdir, tmp_path / name)
    workdirs = [tmp_path / name for name in names]
    with pytest.raises(UserError, match=message):
        Robustness(workdirs, tmp_path / "out", **settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output=out"], "name the folders of trained runs"),
        (["a"], "--output"),
        (
            ["a", "--output=out", "--severities=1,x"],
            "=1,x is not a list of numbers",
        ),
        (["a", "--output=out", "--images=0"], "images"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, arguments, message):
    done = call_command("robustness", *arguments, folder=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and message in line
    assert not list(tmp_path.iterdir())


def test_images_are_taken_evenly_from_each_category():
    records = [Record(f"{i}", "ab"[i % 2]) for i in range(20)]
    chosen = chosen_records(records, 3)
    assert [r.image for r in chosen["a"]] == ["0", "8", "18"]
    assert len(chosen_records(records, 100)["b"]) == 10


def figures_of(**changes):
    clean = dict.fromkeys(METRIC_NAMES, 0.9)
    falls = [clean | {"pixel_ap": 0.9 - 0.1 * severity} for severity in SEVERITIES]
    return {"a": {"clean": [clean | changes], "noise": [fall | changes for fall in falls]}}


def test_a_change_is_the_mean_over_severities():
    figures = figures_of()
    assert mean_change(figures["a"], "noise", "pixel_ap") == pytest.approx(-0.3)
    assert mean_change(figures["a"], "noise", "image_auroc") == pytest.approx(0)


def test_undefined_figures_are_dashes():
    figures = figures_of(image_auroc=None)
    assert mean_change(figures["a"], "noise", "image_auroc") is None
    assert "nan" not in tables(figures, {}, [Condition("noise")], SEVERITIES)
    assert plot(figures, [Condition("noise")], SEVERITIES).axes


def test_each_category_has_its_own_loss():
    """The mean hides that a single product suffers."""
    figures = figures_of()
    clean, falls = figures["a"]["clean"], figures["a"]["noise"]
    suffers = [{"pill": clean[0], "screw": fall} for fall in falls]
    of_each = {"a": {"clean": [{"pill": clean[0], "screw": clean[0]}], "noise": suffers}}
    for one in suffers:
        one["screw"] = one["screw"] | {"pixel_aupro": 0.4}
    text = tables(figures, of_each, [Condition("noise")], SEVERITIES)
    _, rest = text.split("### a, AUPRO\n\n")
    rows = [line.split() for line in rest.splitlines()[:4]]
    assert [row[1::2] for row in rows[2:]] == [
        ["pill", "90.0", "+0.0"],
        ["screw", "90.0", "-50.0"],
    ]
    # Without masks it is the ranking of images.
    for one in (*of_each["a"]["clean"], *suffers):
        for name in one:
            one[name] = one[name] | {"pixel_aupro": None}
    assert "### a, I-AUROC" in tables(figures, of_each, [Condition("noise")], SEVERITIES)
    single = {
        name: [{"pill": one["pill"]} for one in of] for name, of in of_each["a"].items()
    }
    assert "## By" not in tables(figures, {"a": single}, [Condition("noise")], SEVERITIES)


def test_what_an_earlier_version_kept_is_named():
    text = tables(figures_of(), {"a": {}}, [Condition("noise")], SEVERITIES)
    assert "a: an earlier version measured some of it, and kept the means alone" in text


def test_an_earlier_version_knew_a_run_by_its_hash():
    """It had not all of today's settings."""
    since = {"model.high_attention": False, "encoder.chroma_sigma": 0.0}
    config = with_settings(Config(), since)
    values = config.to_dict()
    del values["model"]["high_attention"], values["model"]["decimation"]
    del values["encoder"]["chroma_sigma"]
    text = json.dumps(values, sort_keys=True).encode()
    kept = {"step": 5, "config_hash": hashlib.sha256(text).hexdigest()[:12]}
    assert is_of(kept, 5, config)
    assert not is_of(kept, 6, config)
    assert not is_of(kept, 5, with_settings(config, {"train.seed": 1}))
    assert is_of({"step": 5, "settings": values}, 5, config)
    assert not is_of({"step": 5, "settings": values}, 5, Config())


def test_runs_are_evaluated_under_corruptions(trained_run, tmp_path):
    for name in ("first", "second"):
        shutil.copytree(trained_run.workdir, tmp_path / name)
    output, workdirs = tmp_path / "out", [tmp_path / "first", tmp_path / "second"]
    settings = {"corruptions": ["noise", "shift"], "severities": [1, 5]}
    printed = Robustness(workdirs, output, **settings).run()
    runs = json.loads((output / "robustness.json").read_text())["runs"]
    assert runs["first"] == runs["second"]  # the same run
    figures = runs["first"]["metrics"]
    (clean,) = figures["clean"]
    for name in METRIC_NAMES:
        assert clean[name] == pytest.approx(trained_run.results["mean"][name])
    assert len(figures["noise"]) == len(figures["shift"]) == 2
    assert figures["noise"][-1] != clean
    text = (output / "robustness.md").read_text()
    assert text == printed
    assert "| noise" in text and "0.15 of white" in text
    of_each = runs["first"]["categories"]
    for name, means in figures.items():
        for mean, one in zip(means, of_each[name], strict=True):
            scores = [metrics["pixel_ap"] for metrics in one.values()]
            assert mean["pixel_ap"] == pytest.approx(np.mean(scores))
    with Image.open(output / "robustness.png") as plot:
        assert plot.width > 500

    # What is there already is not evaluated again, and never taken for another's.
    path = output / "robustness.json"
    kept = json.loads(path.read_text())
    kept["runs"]["first"]["metrics"]["noise"][0]["pixel_ap"] = 0.125
    path.write_text(json.dumps(kept))
    Robustness(workdirs, output, **settings).run()
    assert "12.5" in (output / "robustness.md").read_text()
    kept["runs"]["second"]["run"]["step"] = 7
    path.write_text(json.dumps(kept))
    refusals = [
        ({}, "another run of that name"),
        ({"images": 2}, "made with all images, not with 2"),
        ({"severities": [3]}, r"made with \[1, 5\] severities, not with \[3\]"),
    ]
    for others, message in refusals:
        with pytest.raises(UserError, match=message):
            Robustness(workdirs, output, **settings | others).run()


@pytest.mark.slow
def test_the_command_evaluates_through_bands(trained_run, tmp_path):
    done = call_command(
        *("robustness", trained_run.workdir, f"--output={tmp_path}", "--bands"),
        *("--corruptions=noise,shift", "--severities=5", "--images=4"),
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "robustness.md").read_text()
    assert done.stdout == f"{text}\nEverything is in {tmp_path}\n"
    assert "In the rows of a band" in text
    (run,) = json.loads((tmp_path / "robustness.json").read_text())["runs"].values()
    figures = run["metrics"]
    # Bands of what moved mean nothing.
    names = {"clean", "noise", "noise, low band", "noise, high band", "shift"}
    assert set(figures) == names
    assert {len(of_one) for of_one in figures.values()} == {1}
    different = {json.dumps(figures[name]) for name in figures}
    assert len(different) == len(figures)


def test_bands_add_up_to_the_corruption():
    """A toy encoder, whose features are the image itself."""
    rng = np.random.default_rng(0)
    clean, other = rng.normal(size=(2, 3, 2, 6, 5, 4)).astype(np.float32)

    def encode(params, images):
        return Features(images, images[:, 0, 0, 0])

    low, high = (mixed(encode, None, b, None, clean, other) for b in BANDS)
    np.testing.assert_allclose(low.patches + high.patches, clean + other, atol=1e-5)
    # The mean of an image belongs to the low band.
    means = functools.partial(np.mean, axis=(2, 3))
    np.testing.assert_allclose(means(low.patches), means(other), atol=1e-5)
    np.testing.assert_allclose(means(high.patches), means(clean), atol=1e-5)
    np.testing.assert_array_equal(low.class_token, other[:, 0, 0, 0])
