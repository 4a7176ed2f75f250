"""Distances, upsampling and image scores against numpy, scipy and jax.image."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from harmoniad_jax.model.scoring import (
    Statistics,
    cosine_distance,
    fuse,
    group_mean,
    image_scores,
    lower_background,
    map_shape,
    standardise,
    upsample,
    upsampling_matrix,
)
from harmoniad_jax.steps.step import measure_statistics


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_cosine_distance_oracle(scale, axis):
    first, second = scale * normal(3, 5, 4), normal(3, 5, 4, seed=1)
    a, b = first.astype(float), second.astype(float)
    cosine = (a * b).sum(axis) / np.sqrt((a**2).sum(axis) * (b**2).sum(axis))
    got = cosine_distance(first, second, axis=axis)
    np.testing.assert_allclose(got, 1 - cosine, atol=2e-6)


def test_cosine_distance_of_known_angles():
    one = normal(7)
    other = one[[1, 0, 3, 2, 5, 4, 6]] * [1, -1, 1, -1, 1, -1, 0]
    assert float(cosine_distance(one, 5 * one)) == pytest.approx(0, abs=1e-6)
    assert float(cosine_distance(one, -0.1 * one)) == pytest.approx(2, abs=1e-6)
    assert float(cosine_distance(one, other)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("zero", ["first", "second", "both"])
def test_a_zero_vector_has_no_direction(zero):
    first, second = normal(3, 4), normal(3, 4, seed=1)
    if zero != "second":
        first[1] = 0
    if zero != "first":
        second[1] = 0

    def distance(first, second):
        distances = cosine_distance(first, second)
        return distances.sum(), distances

    gradients, distances = jax.grad(distance, argnums=(0, 1), has_aux=True)(first, second)
    assert distances[1] == 1
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize(
    ("decay", "weights"),
    [(1.0, [1 / 3] * 3), (0.5, [4 / 7, 2 / 7, 1 / 7]), (0.0, [1, 0, 0])],
)
def test_deeper_groups_count_less(decay, weights):
    maps = normal(2, 3, 4, 5)
    got = group_mean(maps, decay)
    np.testing.assert_allclose(got, np.average(maps, 1, weights), atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 1 / 3, 1.0])
def test_a_single_group_is_its_own_mean(decay):
    maps = normal(2, 1, 4, 5)
    np.testing.assert_array_equal(group_mean(maps, decay), maps[:, 0])


def test_fusion_oracle():
    maps = {"fused": normal(2, 2, 3, 3), "high": normal(2, 2, 3, 3, seed=1)}
    statistics = Statistics(
        {"fused": np.float32([0.5, 1.0]), "high": np.float32([-1.0, 0.0])},
        {"fused": np.float32([2.0, 1.0]), "high": np.float32([0.25, 4.0])},
    )
    weights = {"fused": 1.0, "high": 0.5, "low": 7.0}
    got = fuse(standardise(maps, statistics), weights, 1 / 3)
    shallow = (maps["fused"][:, 0] - 0.5) / 2 + 0.5 * (maps["high"][:, 0] + 1) / 0.25
    deep = (maps["fused"][:, 1] - 1) / 1 + 0.5 * (maps["high"][:, 1] - 0) / 4
    np.testing.assert_allclose(got, 0.75 * shallow + 0.25 * deep, rtol=1e-5, atol=1e-5)


def test_standardise_survives_a_deviation_of_zero():
    maps = {"fused": np.full((1, 1, 2, 2), 0.5, np.float32)}
    statistics = Statistics({"fused": np.float32([0.5])}, {"fused": np.float32([0])})
    np.testing.assert_array_equal(standardise(maps, statistics)["fused"], 0)


def test_standardised_training_maps_have_mean_zero_and_deviation_one():
    """In every group."""
    scale = np.float32([0.2, 5.0])[:, None, None]
    maps = {"fused": 3 + scale * normal(4, 2, 8, 8)}
    statistics = measure_statistics([maps])
    got = np.asarray(standardise(maps, statistics)["fused"])
    np.testing.assert_allclose(got.mean(axis=(0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(got.std(axis=(0, 2, 3)), 1, rtol=1e-5)


@pytest.mark.parametrize("sigma", [0, 1.0, 20.0])
@pytest.mark.parametrize(("source", "target"), [(1, 5), (4, 4), (7, 32), (16, 10)])
def test_upsampling_rows_are_averages(source, target, sigma):
    matrix = upsampling_matrix(source, target, sigma)
    assert matrix.shape == (target, source) and matrix.dtype == np.float32
    assert matrix.min() >= 0
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-5)
    # The two ends of an axis are alike.
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-6)


def test_upsampling_to_the_same_size_is_the_identity():
    np.testing.assert_array_equal(upsampling_matrix(6, 6, 0), np.eye(6))


@pytest.mark.parametrize("sigma", [0, 1.5, 4.0])
@pytest.mark.parametrize(
    ("grid", "shape"), [((4, 4), (32, 32)), ((5, 7), (24, 31)), ((9, 6), (5, 4))]
)
def test_upsample_equals_resize_and_gaussian_filter(grid, shape, sigma):
    maps = normal(2, *grid)
    expected = jax.image.resize(maps, (2, *shape), "linear", antialias=False)
    if sigma:
        filtered = [
            scipy.ndimage.gaussian_filter(each, sigma, mode="reflect")
            for each in np.asarray(expected, np.float64)
        ]
        expected = np.stack(filtered)
    got = upsample(maps, shape, sigma)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("side", [1, 32, 256])
def test_maps_of_a_square_grid_are_square(side):
    assert map_shape((16, 16), side) == map_shape((5, 5), side) == (side, side)


@pytest.mark.parametrize("grid", [(10, 25), (25, 10), (11, 23), (6, 45), (17, 15)])
def test_a_patch_has_as_many_cells_along_both_axes_in_any_grid(grid):
    """So a Gaussian of some cells is as wide in patches as on a square."""
    shape = map_shape(grid, 256)
    assert shape == map_shape(grid[::-1], 256)[::-1]
    cells = np.array(shape) / grid
    np.testing.assert_allclose(cells, 256 / np.sqrt(np.prod(grid)), rtol=0.01)
    np.testing.assert_allclose(np.prod(shape), 256**2, rtol=0.01)


@pytest.mark.parametrize("sigma", [0, 4.0])
def test_constant_maps_stay_constant(sigma):
    maps = np.full((1, 5, 5), -2.5, np.float32)
    np.testing.assert_allclose(upsample(maps, (32, 32), sigma), -2.5, rtol=1e-5)


def test_symmetric_maps_stay_symmetric():
    maps = normal(1, 5, 5)
    maps = maps + maps[:, ::-1] + maps[:, :, ::-1] + maps[:, ::-1, ::-1]
    maps += maps.transpose(0, 2, 1)
    fine = upsample(maps, (17, 17), 2.0)
    for mirrored in (fine[:, ::-1], fine[:, :, ::-1], fine.transpose(0, 2, 1)):
        np.testing.assert_allclose(fine, mirrored, atol=1e-5)


def test_upsample_keeps_places():
    maps = np.zeros((1, 4, 4), np.float32)
    maps[0, 1, 3] = 1.0
    fine = np.asarray(upsample(maps, (40, 40), 2.0))[0]
    row, column = np.unravel_index(fine.argmax(), fine.shape)
    assert 10 <= row < 20 and 30 <= column < 40


@pytest.mark.parametrize("share", [1 / 64, 0.3, 0.75, 1.0])
def test_a_raised_map_is_lowered_until_the_share_no_longer_lies_above_zero(share):
    maps = normal(5, 8, 8) + np.float32([-9, -0.5, 0, 0.5, 9])[:, None, None]
    got = np.asarray(lower_background(maps, share))
    ordered = np.sort(maps.reshape(5, 64), axis=1)[:, ::-1]
    reached = ordered[:, math.ceil(share * 64) - 1]
    expected = maps - np.maximum(reached, 0)[:, None, None]
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert (np.sum(got > 1e-6, axis=(1, 2)) < math.ceil(share * 64)).all()
    np.testing.assert_array_equal(got[reached <= 0], maps[reached <= 0])


def test_what_raises_all_of_a_map_is_taken_off_and_a_defect_is_kept():
    maps = normal(1, 8, 8)
    maps -= np.quantile(maps, 0.25)  # three quarters lie above zero
    maps[0, 2:4, 2:6] += 20
    lowered = lower_background(maps, 0.75)
    np.testing.assert_allclose(lower_background(maps + 5, 0.75), lowered, atol=1e-5)
    assert np.asarray(lowered)[0, 2:4, 2:6].min() > 15


@pytest.mark.parametrize(
    ("top_share", "count"), [(0.0, 1), (1e-6, 1), (0.1, 6), (0.5, 32), (1.0, 64)]
)
def test_image_score_is_the_mean_of_the_largest_pixels(top_share, count):
    maps = normal(3, 8, 8)
    ordered = np.sort(maps.reshape(3, -1), axis=1)[:, ::-1]
    got = image_scores(maps, top_share)
    assert got.shape == (3,)
    np.testing.assert_allclose(got, ordered[:, :count].mean(1), rtol=1e-5, atol=1e-6)


def test_image_score_does_not_depend_on_places():
    maps = normal(2, 6, 6)
    shuffled = np.random.default_rng(1).permutation(maps.reshape(2, 36), axis=1)
    np.testing.assert_allclose(
        image_scores(maps, 0.2), image_scores(shuffled.reshape(2, 4, 9), 0.2), rtol=1e-6
    )


def test_a_spot_has_its_size_in_patches_on_every_grid():
    """So a finer grid shows smaller defects: cells and smoothing are of the patch."""
    spots = []
    for side in (6, 9):
        maps = np.zeros((1, side, side), np.float32)
        maps[0, 3, 3] = 1
        shape = map_shape((side, side), 0)
        assert shape == (16 * side, 16 * side)
        spots.append(upsample(maps, shape, 2.0)[0, 16:96, 16:96])
    np.testing.assert_allclose(*spots, atol=1e-6)
    assert map_shape((10, 25), 0) == (160, 400)
