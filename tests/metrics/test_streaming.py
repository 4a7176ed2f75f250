"""Streamed figures: the exact ones lie within their bounds, whatever is streamed."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from harmoniad_jax.metrics import METRIC_NAMES, StreamingMetrics, category_metrics
from harmoniad_jax.metrics.streaming import NUM_BINS, score_bins

PIXEL_NAMES = METRIC_NAMES[3:]
EXTREMES = [0.0, -0.0, 1e-45, -1e-45, 2.0**-20, 1e-8, 2.0**20, 3e38, -3e38, 1.0, -1.0]


def make_category(seed=0, num_images=24, side=64, contrast=3.0):
    """Smooth maps in deviations of the noise; most images have two discs of defect."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    masks = np.zeros((num_images, side, side), bool)
    for mask in masks[num_images // 4 :]:
        for cy, cx, radius in rng.uniform([5, 5, 2], [side - 5, side - 5, 9], (2, 3)):
            mask |= (y - cy) ** 2 + (x - cx) ** 2 < radius**2
    noise = ndimage.gaussian_filter(rng.standard_normal(masks.shape), (0, 2, 2))
    bumps = ndimage.gaussian_filter(masks.astype(float), (0, 2, 2))
    strength = contrast * rng.gamma(2.0, 1.0, (num_images, 1, 1))
    maps = (noise / noise.std() + strength * bumps).astype(np.float32)
    order = rng.permutation(num_images)
    maps, masks = maps[order], masks[order]
    return maps, masks, maps.max(axis=(1, 2)), masks.any(axis=(1, 2))


def stream(category, batch_size=5, **options):
    metrics = StreamingMetrics()
    for start in range(0, len(category[0]), batch_size):
        rows = slice(start, start + batch_size)
        known = {name: array[rows] for name, array in options.items()}
        metrics.update(*(array[rows] for array in category), **known)
    return metrics


def assert_within_bounds(result, exact):
    """The figures of `category_metrics`, within the bounds that are reported."""
    assert tuple(result.metrics) == tuple(exact)
    assert tuple(result.bounds) == METRIC_NAMES
    for name in METRIC_NAMES:
        value, bound = result.metrics[name], result.bounds[name]
        assert type(value) is type(bound) is float
        if math.isnan(exact[name]):
            assert math.isnan(value) and math.isnan(bound)
        elif name in PIXEL_NAMES:
            assert abs(value - exact[name]) <= bound
        else:
            assert (value, bound) == (exact[name], 0.0)
    assert result.metrics["num_images"] == exact["num_images"]


@st.composite
def categories(draw):
    """Scores of few levels, of one bin, of every magnitude, or all of these together."""
    shape = draw(st.tuples(st.integers(0, 4), st.integers(1, 5), st.integers(1, 5)))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    level = st.integers(-3, 3).map(float)
    one_bin = st.integers(0, 9).map(lambda step: 1 + step * 2.0**-23)
    anything = st.floats(-(2.0**127), 2.0**127, width=32) | st.sampled_from(EXTREMES)
    elements = draw(st.sampled_from([level, one_bin, anything, level | one_bin | anything]))
    maps = draw(hnp.arrays(np.float64, shape, elements=elements)).astype(dtype)
    masks = draw(hnp.arrays(np.bool_, shape))
    labels = draw(hnp.arrays(np.bool_, shape[0])) | masks.any(axis=(1, 2))
    scores = draw(hnp.arrays(np.float32, shape[0], elements=st.integers(0, 3)))
    return maps, masks, scores, labels


@given(categories(), st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_the_exact_figures_lie_within_the_bounds(category, batch_size):
    result = stream(category, batch_size).compute()
    assert_within_bounds(result, category_metrics(*category))


def one_bin_category(order):
    """One image whose scores are all in one bin: its pixels, highest first."""
    masks = np.array([[[pixel == "+" for pixel in order]]])
    scores = 1 + np.arange(len(order), 0, -1) * np.float32(2.0**-23)
    maps = scores.astype(np.float32)[None, None]
    assert len(np.unique(maps)) == len(order) and len(np.unique(score_bins(maps))) == 1
    return maps, masks, np.zeros(1, np.float32), np.ones(1, bool)


@pytest.mark.parametrize(
    "order",
    ["+++-----", "-----+++", "+-+-+---", "--+++---", "-++++++++++", "---+++++++++++++"],
)
def test_any_order_within_a_bin_is_within_the_bounds(order):
    category = one_bin_category(order)
    result = stream(category).compute()
    assert_within_bounds(result, category_metrics(*category))
    # It is what all of them as one tie would give.
    tied = category_metrics(np.ones_like(category[0]), *category[1:])
    expected = [tied[name] for name in PIXEL_NAMES]
    assert [result.metrics[name] for name in PIXEL_NAMES] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("pixel_auroc", "+++-----"),
        ("pixel_auroc", "-----+++"),
        ("pixel_ap", "+++-----"),
        ("pixel_f1max", "+++-----"),
        ("pixel_aupro", "+++-----"),
    ],
)
def test_bounds_are_no_wider_than_they_have_to_be(name, order):
    category = one_bin_category(order)
    result = stream(category).compute()
    error = abs(result.metrics[name] - category_metrics(*category)[name])
    assert error == pytest.approx(result.bounds[name], abs=1e-7)


@pytest.mark.parametrize("value", EXTREMES)
def test_constant_maps_are_one_tie(value):
    maps, masks, scores, labels = make_category(num_images=4, side=16)
    category = np.full_like(maps, value), masks, scores, labels
    result, exact = stream(category).compute(), category_metrics(*category)
    assert_within_bounds(result, exact)
    for name in PIXEL_NAMES:  # A bin cannot tell a tie from an order.
        assert result.metrics[name] == pytest.approx(exact[name], abs=1e-12)
    assert result.bounds["pixel_auroc"] == pytest.approx(0.5)


@pytest.mark.parametrize("contrast", [0.5, 2.0, 6.0])
@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (1e-3, 0), (300, 0), (1, 5)])
def test_bounds_are_small_on_realistic_maps(contrast, scale, shift):
    maps, *others = make_category(contrast=contrast)
    category = (np.float32(scale) * maps + np.float32(shift), *others)
    result = stream(category).compute()
    assert_within_bounds(result, category_metrics(*category))
    assert max(result.bounds.values()) < 1e-3


def test_bounds_are_small_on_distances_too():
    maps, *others = make_category()
    category = (0.01 * np.exp(maps / 3), *others)
    result = stream(category).compute()
    assert_within_bounds(result, category_metrics(*category))
    assert max(result.bounds.values()) < 1e-3


def test_scores_of_different_bins_are_exact():
    rng = np.random.default_rng(0)
    _, masks, scores, labels = make_category()
    maps = (1.5 ** rng.integers(-20, 20, masks.shape)).astype(np.float32)
    maps *= rng.choice(np.array([-1, 0, 1], np.float32), masks.shape)
    category = maps, masks, scores, labels
    result, exact = stream(category).compute(), category_metrics(*category)
    assert result.metrics == pytest.approx(exact, abs=1e-12)


@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64]),
        30,
        elements=st.floats(-(2.0**127), 2.0**127, width=32),
    ),
    st.sampled_from([1e-300, 1e-9, 1.0, 1e100]),
)
@settings(deadline=None)
def test_bins_are_in_the_order_of_the_scores(scores, factor):
    if scores.dtype == np.float64:
        scores = scores * factor
    scores = np.sort(np.concatenate([scores, np.array(EXTREMES, scores.dtype)]))
    bins = score_bins(scores)
    assert bins.dtype == np.int32
    assert np.all(np.diff(bins) >= 0)
    assert 0 <= bins[0] and bins[-1] < NUM_BINS
    assert len(set(bins[scores == 0])) == 1


def test_a_bin_is_a_fixed_share_of_its_scores():
    scores = np.geomspace(2.0**-19, 2.0**19, 10**5, dtype=np.float32)
    for sign in (1, -1):
        bins = score_bins(sign * scores)
        wider = score_bins(sign * scores * np.float32(1 + 2.0**-12))
        assert np.all(bins != wider)
    assert {*score_bins(np.array([2.0**20, 3e38, np.finfo(np.float64).max]))} == {
        NUM_BINS - 1
    }
    assert {*score_bins(np.array([-(2.0**20), -3e38]))} == {0}


@given(st.integers(0, 9), st.permutations(range(8)), st.integers(1, 8))
@settings(deadline=None, max_examples=20)
def test_order_and_batches_change_nothing(seed, order, batch_size):
    category = make_category(seed, num_images=8, side=24)
    expected = stream(category, 8).compute()
    reordered = [array[order] for array in category]
    result = stream(reordered, batch_size).compute()
    assert result.metrics == pytest.approx(expected.metrics, abs=1e-12)
    assert result.bounds == pytest.approx(expected.bounds, abs=1e-12)


def test_figures_may_be_asked_for_on_the_way():
    category = make_category()
    metrics = stream([array[:9] for array in category])
    first = metrics.compute()
    assert_within_bounds(first, category_metrics(*(array[:9] for array in category)))
    assert metrics.compute() == first
    metrics.update(*(array[9:] for array in category))
    assert_within_bounds(metrics.compute(), category_metrics(*category))


def test_batches_may_be_overwritten():
    metrics, category = StreamingMetrics(), make_category()
    exact = category_metrics(*category)
    metrics.update(*category)
    for array in category:
        array[:] = 0
    assert_within_bounds(metrics.compute(), exact)


def test_memory_does_not_grow_with_the_maps():
    category = make_category(num_images=8)
    metrics = StreamingMetrics()
    tracemalloc.start()
    try:
        metrics.update(*category)
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(40):
            metrics.update(*category)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    defects = len(metrics.defects().areas)
    assert grown < category[0].nbytes / 4 + 500 * defects


def test_images_of_unknown_mask_count_in_the_image_figures_only():
    maps, masks, scores, labels = make_category()
    known = np.arange(len(maps)) % 3 != 0
    masks[np.flatnonzero(labels)[0]] = False  # lost, and nobody said so
    category = maps, masks, scores, labels
    result = stream(category, mask_known=known).compute()
    assert_within_bounds(result, category_metrics(*category, mask_known=known))


@pytest.mark.parametrize("rows", ["none", "good", "defective"])
def test_undefined_figures_are_those_of_the_exact_metrics(rows):
    category = make_category(num_images=8, side=24)
    labels = category[3]
    chosen = {"none": labels & ~labels, "good": ~labels, "defective": labels}[rows]
    category = [array[chosen] for array in category]
    result = stream(category).compute()
    assert_within_bounds(result, category_metrics(*category))
    undefined = [math.isnan(result.bounds[name]) for name in METRIC_NAMES]
    assert undefined == [True] * 3 + [rows != "defective"] * 4


def test_defect_pixels_alone_are_undefined():
    ones = np.ones((2, 3, 3))
    category = ones, ones > 0, np.zeros(2), np.ones(2, bool)
    result = stream(category).compute()
    assert all(math.isnan(result.metrics[name]) for name in METRIC_NAMES)
    assert result.metrics["num_images"] == 2


def test_a_refused_batch_leaves_nothing_behind():
    category = make_category()
    metrics = stream(category)
    before = metrics.compute()
    maps, masks, scores, labels = category
    for bad in (
        (np.full_like(maps, np.nan), masks, scores, labels),
        (maps, masks, np.full_like(scores, np.inf), labels),
        (maps, masks.astype(np.uint8), scores, labels),
        (maps, masks, scores, labels.astype(int)),
        (maps[0], masks[0], scores, labels),
        (maps, masks, scores[1:], labels),
    ):
        with pytest.raises(ValueError, match="received"):
            metrics.update(*bad)
    assert metrics.compute() == before
