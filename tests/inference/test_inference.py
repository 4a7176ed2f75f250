"""A trained model for new images: the same figures as evaluation, for any input."""

import dataclasses
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.ndimage
import transformers
from PIL import Image
from run_helpers import rewritten

import harmoniad_jax
from harmoniad_jax.data.images import read_image
from harmoniad_jax.data.masks import read_masks
from harmoniad_jax.errors import UserError
from harmoniad_jax.inference.image_model import Query


def assert_same(first, second):
    """Two results of the same image, bit for bit."""
    for field in dataclasses.fields(first):
        one, other = getattr(first, field.name), getattr(second, field.name)
        np.testing.assert_array_equal(one, other, err_msg=field.name)


@pytest.fixture(scope="module")
def results(model, paths):
    return model.predict(paths)


# The same as evaluation.


def test_maps_and_scores_are_those_of_evaluation(results, evaluated):
    maps = np.stack([result.anomaly_map for result in results])
    np.testing.assert_array_equal(maps, evaluated.anomaly_maps)
    scores = np.float32([result.score for result in results])
    np.testing.assert_array_equal(scores, evaluated.image_scores)


def test_verdicts_are_those_that_evaluation_reports(model, run, trained_run):
    """Precision, recall and false alarms of its thresholds, counted again."""
    decisions = trained_run.results["decisions"]
    for category in run.dataset.categories:
        records = [r for r in run.dataset.test if r.category == category]
        images = [record.image for record in records]
        labels = np.array([record.is_anomalous for record in records])
        for kind, own in (("per_category", category), ("shared", None)):
            expected = decisions[kind][category]
            judged = model.predict(images, category=own)
            called = np.array([result.is_defective for result in judged])
            assert {result.threshold for result in judged} == {expected["threshold"]}
            assert expected["recall"] == (called & labels).sum() / labels.sum()
            assert (
                expected["false_positive_rate"]
                == (called & ~labels).sum() / (~labels).sum()
            )
            if called.any():
                assert expected["precision"] == (called & labels).sum() / called.sum()
            else:
                assert expected["precision"] is None or math.isnan(expected["precision"])


def test_a_defect_is_found_where_it_gets_a_box(run, model, trained_run):
    """`defect_sizes` counts as `predict` draws, at the same threshold."""
    sizes, found, defects = trained_run.results["defect_sizes"], 0, 0
    for record in run.dataset.test:
        if record.mask is None:
            continue
        (result,) = model.predict([record.image], category=record.category)
        (mask,), _, _ = read_masks([record], result.anomaly_map.shape, "half")
        regions, count = scipy.ndimage.label(mask, np.ones((3, 3)))
        above = result.anomaly_map > result.pixel_threshold
        found += len(set(regions[above & mask]))
        defects += count
    assert sum(size["num_defects"] for size in sizes["all"]) == defects
    assert 0 < found < defects
    recalled = sum(s["num_defects"] * (s["recall"] or 0) for s in sizes["all"])
    assert recalled == pytest.approx(found)


def test_results_say_what_thresholds_achieve(run, trained_run):
    stored = json.loads((trained_run.workdir / "results.json").read_text())["decisions"]
    assert stored["false_positive_rate"] == 0.01
    assert set(stored) == {"false_positive_rate", "per_category", "shared"}
    for kind, held_out in (("per_category", 3), ("shared", 9)):
        assert set(stored[kind]) == set(run.dataset.categories)
        for figures in stored[kind].values():
            assert figures["held_out"] == held_out
            assert not figures["keeps_rate"]  # that takes 99
            for name in ("precision", "recall", "false_positive_rate"):
                assert figures[name] is None or 0 <= figures[name] <= 1
    assert len({figures["threshold"] for figures in stored["shared"].values()}) == 1


# Any images, any order.


def test_arrays_are_judged_as_files_are(model, paths, results):
    for result, again in zip(
        results[:5], model.predict([read_image(path) for path in paths[:5]]), strict=True
    ):
        assert_same(result, again)


def test_paths_may_be_text(model, paths, results):
    assert_same(model.predict([str(paths[0])])[0], results[0])


def test_grey_arrays_are_images_whose_channels_are_alike(model):
    grey = np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)
    flat, deep = model.predict([grey, np.repeat(grey[..., None], 3, axis=-1)])
    assert_same(flat, deep)
    assert flat.size == (50, 40)


def test_arrays_may_be_views_and_are_left_as_they_were(model):
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    before = image.copy()
    flipped = image[::-1, ::-1, ::-1]
    frozen = flipped.copy()
    frozen.setflags(write=False)
    first, second = model.predict([flipped, frozen])
    assert_same(first, second)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 17])
def test_the_rest_of_the_batch_does_not_matter(model, paths, results, count):
    for result, again in zip(results, model.predict(paths[:count]), strict=False):
        assert_same(result, again)


def test_order_does_not_matter(model, paths, results):
    order = np.random.default_rng(0).permutation(len(paths))
    for i, again in zip(order, model.predict([paths[i] for i in order]), strict=True):
        assert_same(results[i], again)


def test_files_and_arrays_of_any_size_may_be_mixed(model, paths, results):
    odd = np.zeros((1, 300, 3), np.uint8)
    first, second, third = model.predict(iter([odd, paths[3], odd[:, :1]]))
    assert (first.size, third.size) == ((300, 1), (1, 1))
    assert_same(second, results[3])


def test_categories_may_differ_from_image_to_image(model, paths):
    queries = [Query(paths[0], category) for category in ("washer", None, "tablet")]
    for query, result in zip(queries, model.stream(queries), strict=True):
        (alone,) = model.predict([query.image], category=query.category)
        assert_same(result, alone)


def test_no_images_give_no_results(model):
    assert model.predict([]) == []


def test_results_come_while_later_images_are_not_read_yet(model, paths):
    """A stream: memory does not grow with the number of images."""
    unreadable = Path("nowhere.png")
    stream = model.stream([Query(path) for path in [*paths, unreadable]])
    first = next(stream)
    assert first.score == model.predict(paths[:1])[0].score
    *others, last = stream
    assert len(others) == len(paths) - 1
    assert isinstance(last, UserError)


# What a result holds.


def test_a_printed_result_is_a_line(results):
    """Whoever tries it out prints it: the verdict shall not drown in maps."""
    text = repr(results[0])
    assert "array" not in text and "\n" not in text
    assert "score=" in text and "boxes=" in text


def test_maps_have_the_models_resolution_and_sizes_the_images(model, results, paths):
    side = model.config.evaluation.map_side
    for path, result in zip(paths, results, strict=True):
        with Image.open(path) as image:
            assert result.size == image.size
        for values in (result.anomaly_map, result.normalised_map):
            assert (values.dtype, values.shape) == (np.float32, (side, side))
        assert result.normalised_map.min() >= 0
        assert result.normalised_map.max() < 1
        assert 0 <= result.normalised_score < 1


def test_half_is_the_threshold_of_normalised_scores_and_maps(model, paths, results):
    results = [*results, *model.predict(paths, false_positive_rate=0.5)]
    assert len({result.is_defective for result in results}) == 2
    for result in results:
        assert result.is_defective == (result.score > result.threshold)
        assert (result.normalised_score > 0.5) == result.is_defective
        above = result.anomaly_map > result.pixel_threshold
        close = np.isclose(result.anomaly_map, result.pixel_threshold, rtol=1e-5)
        np.testing.assert_array_equal((result.normalised_map > 0.5)[~close], above[~close])
        assert bool(result.boxes) == above.any()


# What is refused.


def test_loading_says_nothing_that_no_one_asked_for(trained_run, caplog, capfd):
    harmoniad_jax.load(trained_run.workdir)
    assert [record.getMessage() for record in caplog.records] == []
    assert capfd.readouterr() == ("", "")


def test_an_unknown_category_gets_a_suggestion(model, paths):
    pattern = "^category names 'tabelt'.* Did you mean 'tablet'?"
    with pytest.raises(UserError, match=pattern) as error:
        model.predict(paths[:1], category="tabelt")
    assert "fabric, tablet, washer" in str(error.value)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 3), bool),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 1), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((8, 0, 3), np.uint8),
        np.zeros((2, 8, 8, 3), np.uint8),
        np.zeros(8, np.uint8),
        np.array(3, np.uint8),
    ],
)
def test_arrays_that_are_no_images_are_refused(model, image):
    with pytest.raises(ValueError, match="expected numbers") as error:
        model.predict([np.zeros((8, 8, 3), np.uint8), image])
    assert str(image.dtype) in str(error.value)


def test_arrays_of_blue_first_are_turned_if_asked(model, paths):
    image = read_image(paths[0])
    (expected,) = model.predict([image])
    assert_same(model.predict([image[..., ::-1]], channels="BGR")[0], expected)
    with pytest.raises(ValueError, match="'RGB' or 'BGR'"):
        model.predict([image], channels="GBR")


def test_a_single_image_is_not_taken_for_many(model, paths):
    """Its rows would be judged as images, and the letters of a path as files."""
    with pytest.raises((TypeError, ValueError), match="list|sequence|several"):
        model.predict(read_image(paths[0]))
    with pytest.raises((TypeError, ValueError), match="list|sequence|several"):
        model.predict(str(paths[0]))


def test_an_unreadable_file_is_named(model, paths, tmp_path):
    (tmp_path / "text.png").write_text("Dear reader")
    with pytest.raises(UserError, match="text.png cannot be read as an image"):
        model.predict([paths[0], tmp_path / "text.png"])


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoints"):
        harmoniad_jax.load(tmp_path / "nowhere")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        harmoniad_jax.load(tmp_path)


def test_a_run_that_is_not_finished_is_refused(trained_run, tmp_path):
    shutil.copytree(trained_run.workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/6")
    with pytest.raises(UserError, match="is at step 4 of 6: finish its training"):
        harmoniad_jax.load(tmp_path / "run")


def save_encoder(run, folder, shift=0.0):
    """The run's encoder as a checkpoint of the library, with other weights or the same."""
    params = jax.tree.map(lambda leaf: leaf + np.float32(shift), run.encoder.params)
    network = transformers.FlaxCLIPVisionModel(
        run.encoder.description.hf_config, _do_init=False
    )
    network.save_pretrained(folder, params=params)
    return str(folder)


def test_the_encoder_may_be_moved_but_not_changed(
    run, trained_run, paths, results, tmp_path
):
    moved = save_encoder(run, tmp_path / "moved")
    assert_same(
        harmoniad_jax.load(trained_run.workdir, encoder=moved).predict(paths[:1])[0],
        results[0],
    )
    other = save_encoder(run, tmp_path / "other", 0.01)
    with pytest.raises(UserError, match=re.escape(f"{other!r} has other weights")):
        harmoniad_jax.load(trained_run.workdir, encoder=other)


def test_an_encoder_that_sees_other_colours_is_another(run, trained_run, tmp_path):
    """The same weights, and another mean in its preprocessor_config.json."""
    other = save_encoder(run, tmp_path / "other")
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "other/preprocessor_config.json").write_text(json.dumps(statistics))
    with pytest.raises(UserError, match="image_mean|preprocess|encoder"):
        harmoniad_jax.load(trained_run.workdir, encoder=other)


# Where a run may be used.


def test_a_run_is_all_that_is_needed(trained_run, paths, results, tmp_path, monkeypatch):
    """Not its training images, nor its old place; and nothing in it is changed."""
    workdir = tmp_path / "elsewhere"
    shutil.copytree(trained_run.workdir, workdir)
    for path in workdir.glob("checkpoints/[0-9]*"):
        with rewritten(path, "identity") as identity:
            assert identity["config"]["data"]["root"] == trained_run.config.data.root
            identity["config"]["data"]["root"] = "/gone"
    for name in ("config.json", "results.json", "metrics.jsonl"):
        (workdir / name).unlink()
    monkeypatch.chdir(tmp_path)
    files = sorted(path for path in workdir.rglob("*") if path.is_file())
    assert_same(harmoniad_jax.load("elsewhere").predict(paths[:1])[0], results[0])
    assert sorted(path for path in workdir.rglob("*") if path.is_file()) == files


SCORES = """
import json, sys, jax, harmoniad_jax
model = harmoniad_jax.load(sys.argv[1])
results = model.predict(sys.argv[2:])
print(json.dumps([jax.device_count(), *[[r.score, r.threshold] for r in results]]))
"""


def test_a_run_of_eight_devices_may_be_used_on_three(trained_run, paths, results):
    """The batches that it was trained and evaluated with do not split into three."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=3")
    done = subprocess.run(
        [sys.executable, "-c", SCORES, trained_run.workdir, *paths[:4]],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    devices, *found = json.loads(done.stdout)
    assert devices == 3
    expected = [[result.score, result.threshold] for result in results[:4]]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
