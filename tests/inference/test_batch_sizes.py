"""New images are judged in batches of a few sizes, and the size changes nothing."""

import dataclasses

import jax
import numpy as np
import pytest

import harmoniad_jax
from harmoniad_jax.devices.mesh import make_mesh
from harmoniad_jax.inference.predictor import batch_sizes

# A batch of another size is another program, which may add in another order.
TOLERANCE = 1e-6


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


@pytest.fixture(scope="module")
def alone(trained_run):
    """The run on a single device, and the sizes of the batches that it was asked for."""
    with pytest.MonkeyPatch.context() as patch:
        one = make_mesh(devices=jax.devices()[:1])
        patch.setattr("harmoniad_jax.run.run.make_mesh", lambda _: one)
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
    for result, path in zip(whole[:count], paths, strict=False):
        others = [path, *paths[8 : 7 + count]]
        found, *_ = model.predict(others)
        np.testing.assert_allclose(found.score, result.score, atol=TOLERANCE)
        np.testing.assert_allclose(found.anomaly_map, result.anomaly_map, atol=TOLERANCE)
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
