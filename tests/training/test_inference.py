"""A trained model for new images: the same figures as evaluation, for any input."""

import dataclasses
import hashlib
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
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from run_helpers import changed, rewritten

import harmoniad_jax
from harmoniad_jax.config import parse_config
from harmoniad_jax.data.pipeline import read_masks
from harmoniad_jax.data.preprocess import read_image
from harmoniad_jax.errors import UserError
from harmoniad_jax.training.calibration import Calibration
from harmoniad_jax.training.checkpoints import Checkpoints
from harmoniad_jax.training.evaluation import evaluate_run
from harmoniad_jax.training.features import training_data
from harmoniad_jax.training.inference import Query, find_boxes
from harmoniad_jax.training.loop import train_and_evaluate
from harmoniad_jax.training.prediction import Predictor, calibrate
from harmoniad_jax.training.setup import prepare_run
from harmoniad_jax.training.sharding import replicate

RATE = 0.3  # that three and nine held-out images support


def calibration_of(workdir: Path) -> Calibration | None:
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.read_calibration()


def assert_same(first, second):
    """Two results of the same image, bit for bit."""
    for field in dataclasses.fields(first):
        one, other = getattr(first, field.name), getattr(second, field.name)
        np.testing.assert_array_equal(one, other, err_msg=field.name)


@pytest.fixture(scope="module")
def run(trained_run):
    return prepare_run(trained_run.config)


@pytest.fixture(scope="module")
def model(trained_run):
    return harmoniad_jax.load(trained_run.workdir)


@pytest.fixture(scope="module")
def paths(run):
    """Test images of all categories, good and defective: more than two batches."""
    found = [record.image for record in run.dataset.test]
    assert len(found) > 2 * run.config.evaluation.batch_size
    return found


@pytest.fixture(scope="module")
def results(model, paths):
    return model.predict(paths)


@pytest.fixture(scope="module")
def evaluated(run, trained_run):
    """What evaluation makes of the test images."""
    with Checkpoints(trained_run.workdir, read_only=True) as checkpoints:
        state = checkpoints.restore(run.abstract_state()).state
    predictor = Predictor(run, state, replicate(run.mesh, run.encoder.params))
    return predictor(run.dataset.test, "test")


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
        (mask,), _, _ = read_masks([record], result.anomaly_map.shape[0], "half")
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


def test_half_is_the_threshold_of_normalised_scores_and_maps(results):
    assert len({result.is_defective for result in results}) == 2
    for result in results:
        assert result.is_defective == (result.score > result.threshold)
        assert (result.normalised_score > 0.5) == result.is_defective
        above = result.anomaly_map > result.pixel_threshold
        close = np.isclose(result.anomaly_map, result.pixel_threshold, rtol=1e-5)
        np.testing.assert_array_equal((result.normalised_map > 0.5)[~close], above[~close])
        assert bool(result.boxes) == above.any()


# Thresholds.


def test_a_category_has_its_own_threshold_and_no_category_the_shared(model, trained_run):
    calibration = calibration_of(trained_run.workdir)
    image = np.zeros((20, 20, 3), np.uint8)
    assert model.categories == ("fabric", "tablet", "washer")
    thresholds = {}
    for category in (None, *model.categories):
        (result,) = model.predict([image], category=category)
        normality = calibration.of(category)
        assert result.category == category
        assert result.threshold == normality.threshold(0.01) == max(normality.scores)
        assert result.pixel_threshold == normality.pixel_threshold(0.001)
        thresholds[category] = result.threshold
    assert len(set(thresholds.values())) == 3
    assert thresholds[None] == max(thresholds.values())


def test_categories_may_differ_from_image_to_image(model, paths):
    queries = [Query(paths[0], category) for category in ("washer", None, "tablet")]
    for query, result in zip(queries, model.stream(queries), strict=True):
        (alone,) = model.predict([query.image], category=query.category)
        assert_same(result, alone)


def test_the_rate_of_false_alarms_may_be_changed(model, trained_run, paths):
    calibration = calibration_of(trained_run.workdir)
    (usual,) = model.predict(paths[:1])
    (often,) = model.predict(paths[:1], false_positive_rate=RATE)
    assert often.threshold == calibration.overall.threshold(RATE) < usual.threshold
    assert (often.score, often.boxes) == (usual.score, usual.boxes)
    (own,) = model.predict(paths[:1], category="tablet", false_positive_rate=0.5)
    assert own.threshold == calibration.of("tablet").threshold(0.5)


def test_the_threshold_may_be_given(model, paths):
    (usual,) = model.predict(paths[:1])
    for category in (None, "tablet"):
        for threshold in (usual.score - 1, usual.score, usual.score + 1):
            (result,) = model.predict(
                paths[:1], category=category, threshold=threshold, false_positive_rate=0.1
            )
            assert result.threshold == threshold
            assert result.is_defective == (usual.score > threshold)
            # The division at a half is what a normalised score is for.
            assert (result.normalised_score > 0.5) == result.is_defective


def test_a_threshold_of_zero_is_a_threshold(model, paths):
    (result,) = model.predict(paths[:1], threshold=0.0)
    assert result.threshold == 0.0
    assert result.is_defective == (result.score > 0)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 5.0, math.nan])
def test_an_impossible_rate_is_refused(model, paths, rate):
    with pytest.raises(UserError, match="false positive rate is .* between 0 and 1"):
        model.predict(paths[:1], false_positive_rate=rate)


def test_a_threshold_that_is_no_number_is_refused(model, paths):
    """Nothing exceeds NaN: every image would be good."""
    with pytest.raises(UserError, match="threshold"):
        model.predict(paths[:1], threshold=math.nan)


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
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.uint16),
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
    with pytest.raises(ValueError, match="expected uint8") as error:
        model.predict([np.zeros((8, 8, 3), np.uint8), image])
    assert str(image.dtype) in str(error.value)


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


# Held-out images.


def test_held_out_images_are_never_trained_on(run, trained_run, tmp_path):
    """By what was encoded for training, and by the order in which it is read."""

    def hashes(records):
        return {hashlib.sha256(r.image.read_bytes()).hexdigest() for r in records}

    held_out, train = hashes(run.dataset.held_out), hashes(run.dataset.train)
    assert (len(held_out), len(train)) == (9, 15)
    assert held_out.isdisjoint(train)
    chunks = Path(trained_run.config.cache.folder).rglob("*.npy")
    stored = {row["image"].decode() for chunk in chunks for row in np.load(chunk)}
    assert stored == train

    encoder_params = replicate(run.mesh, run.encoder.params)
    for enabled in (True, False):
        config = changed(run.config, "cache", enabled=enabled)
        order = training_data(dataclasses.replace(run, config=config), encoder_params).order
        read = [order[i] for i in range(3 * len(train))]
        assert hashes(read) == train


def test_what_good_images_score_is_stored_with_the_checkpoint(run, trained_run, evaluated):
    stored = calibration_of(trained_run.workdir)
    with Checkpoints(trained_run.workdir, read_only=True) as checkpoints:
        state = checkpoints.restore(run.abstract_state()).state
    measured = calibrate(run, state, replicate(run.mesh, run.encoder.params))
    assert stored == measured
    assert stored.fits(run.config.evaluation)
    assert {name: len(n.scores) for name, n in stored.per_category.items()} == {
        "fabric": 3,
        "tablet": 3,
        "washer": 3,
    }


def test_a_model_judges_its_held_out_images_as_it_was_calibrated(model, run, trained_run):
    stored = calibration_of(trained_run.workdir)
    for category in model.categories:
        images = [r.image for r in run.dataset.held_out if r.category == category]
        judged = model.predict(images, category=category)
        assert tuple(sorted(r.score for r in judged)) == stored.of(category).scores
        assert not any(result.is_defective for result in judged)


# Changing one's mind without training.


def forbid_training(monkeypatch):
    def train(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr("harmoniad_jax.training.loop._train", train)


def test_the_rate_of_a_run_changes_without_training(
    trained_run, paths, tmp_path, monkeypatch
):
    workdir = tmp_path / "run"
    shutil.copytree(trained_run.workdir, workdir)
    calibration = calibration_of(workdir)
    config = changed(
        trained_run.config,
        "calibration",
        false_positive_rate=RATE,
        pixel_false_positive_rate=0.05,
    )
    forbid_training(monkeypatch)
    results = train_and_evaluate(config, workdir)
    assert calibration_of(workdir) == calibration
    assert results["decisions"]["false_positive_rate"] == RATE
    expected = calibration.overall.threshold(RATE)
    for figures in results["decisions"]["shared"].values():
        assert figures["threshold"] == expected
    assert results["per_category"] == trained_run.results["per_category"]
    often = evaluate_run(workdir, false_positive_rate=0.5)["decisions"]
    assert often["false_positive_rate"] == 0.5
    for category, figures in often["per_category"].items():
        assert figures["threshold"] == calibration.of(category).threshold(0.5)
        assert figures["keeps_rate"]
    # And the model that is loaded from there follows.
    (result,) = harmoniad_jax.load(workdir).predict(paths[:1])
    assert result.threshold == expected
    assert result.pixel_threshold == calibration.overall.pixel_threshold(0.05)


def test_other_smoothing_is_calibrated_anew(trained_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained_run.workdir, workdir)
    config = changed(trained_run.config, "evaluation", smoothing_sigma=0.0)
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))
    decisions = evaluate_run(workdir)["decisions"]
    run = prepare_run(config)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        state = checkpoints.restore(run.abstract_state()).state
    calibration = calibrate(run, state, replicate(run.mesh, run.encoder.params))
    assert calibration.fits(config.evaluation)
    before = trained_run.results["decisions"]
    for category, figures in decisions["per_category"].items():
        assert figures["threshold"] == calibration.of(category).threshold(0.01)
        assert figures["threshold"] != before["per_category"][category]["threshold"]


def test_images_that_were_trained_on_never_set_a_threshold(
    trained_run, run, products, tmp_path, monkeypatch
):
    """A finished run may be evaluated though its training images changed. Which of those
    that are left were held out must not be decided anew then."""
    root, workdir = tmp_path / "photos", tmp_path / "run"
    shutil.copytree(products, root)
    (root / "tablet/train/good/000.png").unlink()
    shutil.copytree(trained_run.workdir, workdir)
    config = changed(trained_run.config, "evaluation", smoothing_sigma=0.0)
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))
    trained_on = {record.key for record in run.dataset.train}
    used = set()

    def spy(run, *_):
        used.update(record.key for record in run.dataset.held_out)
        raise UserError("seen")

    monkeypatch.setattr("harmoniad_jax.training.evaluation.calibrate", spy)
    # To refuse, or to calibrate with what is left of the held-out images, is right.
    with pytest.raises(UserError):
        evaluate_run(workdir, root=str(root))
    assert used.isdisjoint(trained_on)


def test_a_loaded_model_compares_only_what_can_be_compared(
    trained_run, paths, tmp_path, monkeypatch
):
    """Whatever settings the run was last evaluated with."""
    workdir = tmp_path / "run"
    shutil.copytree(trained_run.workdir, workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["evaluation"]["smoothing_sigma"] = 0.0
    (workdir / "config.json").write_text(json.dumps(parse_config(config).to_dict()))
    model = harmoniad_jax.load(workdir)
    assert calibration_of(workdir).fits(model.config.evaluation)


def test_another_share_needs_another_run(trained_run):
    config = changed(trained_run.config, "calibration", holdout=0.2)
    with pytest.raises(UserError, match="config.calibration.holdout is 0.2 but was 0.4"):
        train_and_evaluate(config, trained_run.workdir)


# A run that holds nothing out.


@pytest.fixture(scope="module")
def uncalibrated(trained_run, tmp_path_factory):
    """The run as if it had held nothing out: the last test here trains such a one."""
    workdir = tmp_path_factory.mktemp("uncalibrated") / "run"
    shutil.copytree(trained_run.workdir, workdir)
    with rewritten(workdir / "checkpoints/6", "calibration") as calibration:
        calibration.clear()
    return workdir


def check_scores_without_verdict(workdir, image):
    model = harmoniad_jax.load(workdir)
    (result,) = model.predict([image])
    assert np.isfinite(result.score)
    assert np.isfinite(result.anomaly_map).all()
    for name in ("threshold", "pixel_threshold", "normalised_score", "normalised_map"):
        assert getattr(result, name) is None
    assert result.is_defective is None
    assert result.boxes == ()


def test_a_run_that_holds_nothing_out_gives_scores_without_verdict(uncalibrated, paths):
    check_scores_without_verdict(uncalibrated, paths[0])


def test_it_can_be_given_a_threshold_all_the_same(uncalibrated, paths):
    model = harmoniad_jax.load(uncalibrated)
    (score,) = [result.score for result in model.predict(paths[:1])]
    for threshold, verdict in ((score - 1, True), (score + 1, False)):
        (result,) = model.predict(paths[:1], threshold=threshold)
        assert (result.threshold, result.is_defective) == (threshold, verdict)


def test_its_category_is_not_refused_as_unknown(uncalibrated, paths):
    """There is no threshold for it, but it is what the model was trained on."""
    model = harmoniad_jax.load(uncalibrated)
    (result,) = model.predict(paths[:1], category="tablet")
    assert (result.category, result.threshold) == ("tablet", None)


@pytest.mark.slow
def test_nothing_held_out(trained_run, paths, tmp_path):
    config = changed(trained_run.config, "calibration", holdout=0.0)
    results = train_and_evaluate(config, tmp_path)
    assert results["decisions"] == {}
    assert calibration_of(tmp_path) is None
    assert evaluate_run(tmp_path)["per_category"] == results["per_category"]
    check_scores_without_verdict(tmp_path, paths[0])


# Boxes.

SIZES = st.integers(1, 3000)
MAPS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 50), st.integers(1, 20)),
    elements=st.sampled_from([0.0, 1.0]),
)


@settings(deadline=None, max_examples=50)
@given(MAPS, SIZES, SIZES)
def test_boxes_lie_in_the_image_and_cover_all_that_is_above(values, width, height):
    boxes = find_boxes(values, 0.5, (width, height))
    for box in boxes:
        assert 0 <= box.left < box.right <= width
        assert 0 <= box.top < box.bottom <= height
        assert all(type(edge) is int for edge in box)
    rows, columns = values.shape
    for row, column in np.argwhere(values > 0.5).tolist():
        # The part of the image that this pixel of the map stands for, in whole pixels.
        left, right = column * width // columns, -(-(column + 1) * width // columns)
        top, bottom = row * height // rows, -(-(row + 1) * height // rows)
        assert any(
            box.left <= left
            and right <= box.right
            and box.top <= top
            and bottom <= box.bottom
            for box in boxes
        ), (row, column)


@pytest.mark.parametrize("side", [37, 49, 256, 392, 448, 518])
def test_boxes_stay_inside_whatever_the_sides(side):
    """A region at the end of the map, and images of every size."""
    values = np.zeros((1, side), np.float32)
    values[0, -1] = 1.0
    for turned in (False, True):
        for size in range(1, 3001):
            shape = (1, size) if turned else (size, 1)
            ((left, top, right, bottom),) = find_boxes(
                values.T if turned else values, 0.5, shape
            )
            assert (right, bottom) == shape
            assert (top if turned else left) == size * (side - 1) // side


def test_each_region_has_its_box_largest_first():
    values = np.zeros((10, 20), np.float32)
    values[1:3, 2:4] = 1.0
    values[5:9, 10:19] = 0.7
    values[0, 19] = 0.9
    assert find_boxes(values, 0.5, (200, 100)) == (
        (100, 50, 190, 90),
        (20, 10, 40, 30),
        (190, 0, 200, 10),
    )


def test_pixels_that_touch_at_a_corner_are_one_region():
    assert find_boxes(np.eye(4, dtype=np.float32), 0.5, (4, 4)) == ((0, 0, 4, 4),)


@pytest.mark.parametrize("threshold", [None, 1.0, 2.0])
def test_nothing_above_the_threshold_is_no_box(threshold):
    assert find_boxes(np.ones((4, 4), np.float32), threshold, (9, 9)) == ()
