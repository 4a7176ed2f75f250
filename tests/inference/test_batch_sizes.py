"""New images are judged in batches of a few sizes, and the size changes nothing."""

import contextlib
import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from run_helpers import changed

import harmoniad_jax
from harmoniad_jax.devices.mesh import make_mesh
from harmoniad_jax.inference import trained_model
from harmoniad_jax.inference.predictor import batch_sizes
from harmoniad_jax.run.run import prepare_run
from harmoniad_jax.training.loop import train_and_evaluate

# A batch of another size is another program, which may add in another order. Scores of
# either sign are compared by their size, and near 0 in the unit of the scores.
TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}
# Of the largest value of all maps: rounding of the distances does not shrink with them.
SHARE = 1e-6


@pytest.mark.parametrize(
    ("largest", "devices", "sizes"),
    [
        (16, 1, (1, 2, 4, 8, 16)),
        (1, 1, (1,)),
        (24, 1, (1, 2, 4, 8, 16, 24)),
        (16, 8, (8, 16)),
        (18, 3, (3, 6, 12, 18)),
    ],
)
def test_each_size_is_twice_the_one_before(largest, devices, sizes):
    assert batch_sizes(largest, devices) == sizes


@contextlib.contextmanager
def a_single_device():
    """What is opened within is on one device, which can have batches of any size."""
    with pytest.MonkeyPatch.context() as patch:
        one = make_mesh(devices=jax.devices()[:1])
        patch.setattr("harmoniad_jax.run.run.make_mesh", lambda *_, **__: one)
        yield


@pytest.fixture(scope="module")
def alone(trained_run):
    """The run on a single device, and the sizes of the batches that it was asked for."""
    with a_single_device():
        model = harmoniad_jax.load(trained_run.workdir)
    predict, sizes = model._predictor.predict_batch, []

    def noting(images):
        sizes.append(len(images))
        return predict(images)

    model._predictor.predict_batch = noting
    return model, sizes


def test_a_batch_is_as_small_as_its_images_allow(alone, paths):
    model, sizes = alone
    assert model.batch_sizes == (1, 2, 4, 8)
    for count, expected in ((1, [1]), (2, [2]), (3, [4]), (8, [8]), (9, [8, 1])):
        sizes.clear()
        model.predict(paths[:count])
        assert sizes == expected


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_numbers_and_verdicts_are_those_of_the_largest_batch(alone, paths, count):
    model, _ = alone
    whole = model.predict(paths[:8])
    largest = max(np.abs(result.anomaly_map).max() for result in whole)
    for result, path in zip(whole[:count], paths, strict=False):
        others = [path, *paths[8 : 7 + count]]
        found, *_ = model.predict(others)
        np.testing.assert_allclose(found.score, result.score, **TOLERANCE)
        assert np.abs(found.anomaly_map - result.anomaly_map).max() <= SHARE * largest
        assert found.is_defective == result.is_defective
        assert found.boxes == result.boxes


def test_the_image_that_sets_the_threshold_is_good_in_every_batch(alone, paths):
    """Its score is the threshold, but for rounding."""
    model, _ = alone
    normality = model.calibration.overall
    for shift in (0.0, -1e-6, 1e-6):
        (result,) = model.predict(paths[:1])
        level = result.score + shift
        own = dataclasses.replace(normality, scores=(*normality.scores[:-1], level))
        model.use(dataclasses.replace(model.own_calibration, overall=own))
        try:
            (again,) = model.predict(paths[:1])
        finally:
            model.use(model.own_calibration)
        assert not again.is_defective
        assert again.score == again.threshold == level


def test_a_run_in_bfloat16_scores_an_image_alike_in_any_company(
    trained_run, paths, tmp_path
):
    """Its sums of other batches differ by far more than the rounding of float32."""
    config = changed(trained_run.config, "encoder", dtype="bfloat16")
    with a_single_device():
        train_and_evaluate(config, tmp_path / "run")
        model = harmoniad_jax.load(tmp_path / "run")
    assert model.batch_sizes == (8,) and model.score_tolerance == 0.0
    whole = model.predict(paths[:8])
    for expected, path in zip(whole, paths, strict=False):
        (found,) = model.predict([path])
        assert found.score == expected.score
        np.testing.assert_array_equal(found.anomaly_map, expected.anomaly_map)
    held_out = prepare_run(config).dataset.held_out
    for record in held_out:
        (found,) = model.predict([record.image], category=record.category)
        assert not found.is_defective, "it helped to set the threshold"


@pytest.mark.parametrize(
    ("dtype", "platform", "sizes"),
    [
        ("float32", "cpu", (1, 2, 4, 8)),
        ("bfloat16", "cpu", (8,)),
        ("float32", "gpu", (8,)),
        ("bfloat16", "tpu", (8,)),
    ],
)
def test_other_sizes_are_for_where_they_score_alike(dtype, platform, sizes):
    run = SimpleNamespace(
        evaluation_batch_size=8,
        config=SimpleNamespace(encoder=SimpleNamespace(dtype=dtype)),
        mesh=SimpleNamespace(
            size=1, devices=np.array([[SimpleNamespace(platform=platform)]])
        ),
    )
    assert trained_model._batch_sizes(run) == sizes
