"""Thresholds of a trained model: of images held out, changed without training, or none."""

import dataclasses
import hashlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from run_helpers import changed, rewritten

import harmoniad_jax
from harmoniad_jax.checkpoints.store import Checkpoints
from harmoniad_jax.config import parse_config
from harmoniad_jax.devices.mesh import replicate
from harmoniad_jax.errors import UserError
from harmoniad_jax.evaluation.evaluate import evaluate_run
from harmoniad_jax.inference.restore import open_trained
from harmoniad_jax.inference.trained import calibrated
from harmoniad_jax.run.calibration import Calibration
from harmoniad_jax.training.data import training_data
from harmoniad_jax.training.loop import train_and_evaluate

RATE = 0.3  # that three and nine held-out images support


def calibration_of(workdir: Path) -> Calibration | None:
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.read_calibration()


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


def test_what_good_images_score_is_stored_with_the_checkpoint(run, trained_run, trained):
    stored = calibration_of(trained_run.workdir)
    assert stored == calibrated(trained).calibration
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
    calibration = calibrated(open_trained(workdir)).calibration
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

    def spy(trained):
        used.update(record.key for record in trained.run.dataset.held_out)
        raise UserError("seen")

    monkeypatch.setattr("harmoniad_jax.evaluation.evaluate.calibrated", spy)
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
