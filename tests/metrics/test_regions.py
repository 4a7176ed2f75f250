"""AUPRO against a slow literal reference, by hand, and by its invariances."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from harmoniad_jax.metrics import aupro, ranking_metrics


def regions_of(mask):
    """8-connected regions of one mask [H, W], as lists of pixels, by flood fill."""
    unseen = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    regions = []
    while unseen:
        stack, region = [unseen.pop()], []
        while stack:
            y, x = stack.pop()
            region.append((y, x))
            around = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)}
            stack.extend(around & unseen)
            unseen -= around
        regions.append(region)
    return regions


def literal_aupro(maps, masks, fpr_limit=0.3):
    """One point of the curve for each distinct score, one region at a time."""
    regions = [
        (image, region) for image, mask in enumerate(masks) for region in regions_of(mask)
    ]
    fprs, overlaps = [0.0], [0.0]
    for threshold in sorted(set(maps.ravel().tolist()), reverse=True):
        detected = maps >= threshold
        shares = [
            sum(bool(detected[image, y, x]) for y, x in region) / len(region)
            for image, region in regions
        ]
        fprs.append(detected[~masks].mean())
        overlaps.append(sum(shares) / len(shares))
    area = 0.0
    for x0, x1, y0, y1 in zip(
        fprs[:-1], fprs[1:], overlaps[:-1], overlaps[1:], strict=True
    ):
        if x1 > fpr_limit:
            y_limit = y0 + (y1 - y0) * (fpr_limit - x0) / (x1 - x0)
            area += (fpr_limit - x0) * (y0 + y_limit) / 2
            break
        area += (x1 - x0) * (y0 + y1) / 2
    return area / fpr_limit


@st.composite
def maps_and_masks(draw):
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)))
    levels = draw(hnp.arrays(np.int64, shape, elements=st.integers(-4, 4)))
    masks = draw(hnp.arrays(np.bool_, shape))
    assume(masks.any() and not masks.all())
    return levels.astype(np.float32), masks


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_levels", [4, 10**6])
@pytest.mark.parametrize("fpr_limit", [0.05, 0.3, 1.0])
def test_equals_the_literal_reference(seed, num_levels, fpr_limit):
    rng = np.random.default_rng(seed)
    masks = rng.random((3, 9, 11)) < 0.2
    masks[0] = False
    maps = np.floor(rng.normal(masks, 1.0) * num_levels).astype(np.float32)
    expected = literal_aupro(maps, masks, fpr_limit)
    assert aupro(maps, masks, fpr_limit) == pytest.approx(expected, abs=1e-12)


@given(maps_and_masks(), st.floats(0.01, 1))
@settings(deadline=None)
def test_equals_the_literal_reference_with_many_ties(case, fpr_limit):
    expected = literal_aupro(*case, fpr_limit)
    assert aupro(*case, fpr_limit) == pytest.approx(expected, abs=1e-12)


def test_regions_weigh_the_same_whatever_their_size():
    masks = np.zeros((2, 4, 5), bool)
    masks[0, :2, :3] = True
    masks[1, 3, 4] = True
    # The large region is found without a false positive, the small one never before
    # the last defect-free pixel: half of the mean overlap at every rate.
    maps = np.zeros((2, 4, 5), np.float32)
    maps[0, :2, :3] = 1
    maps[1, 3, 4] = -1
    assert aupro(maps, masks) == pytest.approx(0.5, abs=1e-15)


def test_two_diagonal_pixels_are_one_region():
    masks = np.zeros((1, 5, 5), bool)
    masks[0, [0, 1, 4], [0, 1, 4]] = True
    # Pixel (1, 1) is found first, the two others last: half of the first of two
    # regions. Were only sides connected, it would be the whole of one of three.
    maps = np.zeros((1, 5, 5), np.float32)
    maps[0, 1, 1] = 1
    maps[0, [0, 4], [0, 4]] = -1
    assert aupro(maps, masks) == pytest.approx(0.25, abs=1e-15)


def test_regions_of_neighbouring_images_are_apart():
    masks = np.zeros((2, 3, 4), bool)
    masks[0, 1, 1] = masks[1, 1, 1] = masks[1, 1, 2] = True
    maps = np.zeros((2, 3, 4), np.float32)
    maps[0, 1, 1] = 1
    maps[1, 1, 1:3] = -1
    assert aupro(maps, masks) == pytest.approx(0.5, abs=1e-15)


def test_a_defect_touching_the_border_counts_whole():
    masks = np.zeros((1, 4, 4), bool)
    masks[0, 0] = True
    masks[0, :, 3] = True
    maps = masks.astype(np.float32)
    assert aupro(maps, masks) == 1.0
    maps[0, 0, :] = -1  # Four of the seven pixels of the region are lost.
    assert aupro(maps, masks) == pytest.approx(3 / 7, abs=1e-15)


def test_interpolation_at_the_limit():
    # One region of four pixels, then ten defect-free pixels.
    scores = [3, 2, 2, 1] + [2.5] * 2 + [2] * 4 + [1] * 4
    maps = np.array(scores, np.float32).reshape(1, 1, 14)
    masks = np.arange(14).reshape(1, 1, 14) < 4
    # The curve: (0, 1/4), (0.2, 1/4), the tie (0.6, 3/4), (1, 1). The limit cuts the
    # third line at a quarter of its way, at an overlap of 3/8.
    area = 0.2 * 1 / 4 + 0.1 * (1 / 4 + 3 / 8) / 2
    assert aupro(maps, masks, 0.3) == pytest.approx(area / 0.3, abs=1e-12)
    # A limit on a vertex, where nothing is to be interpolated.
    assert aupro(maps, masks, 0.2) == pytest.approx(1 / 4, abs=1e-12)


def test_constant_maps_are_one_tie():
    masks = np.zeros((1, 4, 4), bool)
    masks[0, 1, 1] = True
    # The curve is the diagonal: the mean overlap up to the limit is half of it.
    assert aupro(np.ones((1, 4, 4)), masks, 0.3) == pytest.approx(0.15, abs=1e-15)


@pytest.mark.parametrize("defective", [False, True])
@pytest.mark.parametrize("num_images", [0, 2])
def test_undefined_without_regions_or_defect_free_pixels(defective, num_images):
    shape = (num_images, 3, 3)
    assert math.isnan(aupro(np.zeros(shape), np.full(shape, defective)))


@given(maps_and_masks())
@settings(deadline=None)
def test_strictly_monotone_transforms_change_nothing(case):
    maps, masks = case
    assert aupro(np.exp(maps), masks) == aupro(maps, masks)


@given(maps_and_masks(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_order_of_images_changes_nothing(case, random):
    maps, masks = case
    order = random.sample(range(len(maps)), len(maps))
    expected = pytest.approx(aupro(maps, masks), abs=1e-12)
    assert aupro(maps[order], masks[order]) == expected


@given(maps_and_masks())
@settings(deadline=None)
def test_flipped_maps_mirror_the_area_over_all_rates(case):
    maps, masks = case
    flipped = aupro(-maps, masks, 1.0)
    assert flipped == pytest.approx(1 - aupro(maps, masks, 1.0), abs=1e-12)


@given(maps_and_masks())
@settings(deadline=None)
def test_the_area_of_one_region_over_all_rates_is_auroc(case):
    # One row of pixels, in which all that is defective stands together.
    order = np.argsort(~case[1].ravel(), kind="stable")
    maps, masks = (array.ravel()[order][None, None] for array in case)
    expected = ranking_metrics(maps, masks).auroc
    assert aupro(maps, masks, 1.0) == pytest.approx(expected, abs=1e-12)


@given(maps_and_masks(), st.floats(0.01, 1))
@settings(deadline=None)
def test_inverted_maps_give_zero(case, fpr_limit):
    _, masks = case
    inverted = (~masks).astype(np.float32)
    assert aupro(inverted, masks, fpr_limit) == pytest.approx(0.0, abs=1e-12)


@given(maps_and_masks(), st.floats(0.01, 1))
@settings(deadline=None)
def test_perfect_maps_give_one(case, fpr_limit):
    _, masks = case
    assert aupro(masks.astype(np.float32), masks, fpr_limit) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("maps", "masks", "fpr_limit", "message"),
    [
        (np.zeros((3, 3)), np.zeros((3, 3), bool), 0.3, r"allowed \[N, H, W\]"),
        (np.zeros((1, 2, 2)), np.zeros((1, 2, 3), bool), 0.3, "received shape"),
        (np.full((1, 1, 2), np.nan), np.zeros((1, 1, 2), bool), 0.3, "received 2 NaN"),
        (np.zeros((1, 1, 2)), np.zeros((1, 1, 2), bool), 0, "fpr_limit: received 0"),
        (np.zeros((1, 1, 2)), np.zeros((1, 1, 2), bool), 30, "fpr_limit: received 30"),
    ],
)
def test_bad_input_is_refused(maps, masks, fpr_limit, message):
    with pytest.raises(ValueError, match=message):
        aupro(maps, masks, fpr_limit)
