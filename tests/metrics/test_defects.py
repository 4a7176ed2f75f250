"""Figures of single defects: their mean is AUPRO, and sizes are quartiles of all."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from harmoniad_jax.metrics import (
    Defects,
    StreamingMetrics,
    aupro,
    defect_size_metrics,
    defects_of,
)

LEVELS = st.integers(-3, 3).map(float) | st.floats(-2, 2, width=32)


@st.composite
def maps_and_masks(draw):
    shape = draw(st.tuples(st.integers(0, 3), st.integers(1, 6), st.integers(1, 6)))
    maps = draw(hnp.arrays(np.float32, shape, elements=LEVELS))
    return maps, draw(hnp.arrays(np.bool_, shape))


def random_category(seed=0, shape=(6, 40, 40)):
    rng = np.random.default_rng(seed)
    masks = np.zeros(shape, bool)
    masks[0, 2:5, 3:7] = masks[1, 10:38, 1:30] = masks[2, 0, 0] = masks[2, 20:, 20:] = True
    return rng.normal(size=shape).astype(np.float32) + masks, masks


@given(maps_and_masks())
@settings(deadline=None, max_examples=60)
def test_the_mean_overlap_of_all_defects_is_aupro(category):
    maps, masks = category
    overlaps, expected = defects_of(maps, masks).overlaps, aupro(maps, masks)
    if math.isnan(expected):
        assert np.isnan(overlaps).all()  # none, or none that is defined
    else:
        assert overlaps.mean() == pytest.approx(expected, abs=1e-9)


def test_areas_and_peaks_are_those_of_the_regions():
    maps, masks = random_category()
    defects = defects_of(maps, masks)
    assert sorted(defects.areas * 1600) == pytest.approx([1, 12, 400, 812])
    assert defects.peaks[0] == maps[0, 2:5, 3:7].max()
    # Only the corners touch: one region, as AUPRO counts it.
    touching = np.zeros((1, 4, 4), bool)
    touching[0, 0, 0] = touching[0, 1, 1] = True
    assert defects_of(np.zeros((1, 4, 4), np.float32), touching).areas.tolist() == [2 / 16]


def test_an_overlap_by_hand():
    """Good pixels 1, 2, 3, 4; the curve of the defect ends at a false-positive rate of 0.3.

    4.5 is found at rate 0; 3.5 from rate 0.25 on; 0 at rate 1.
    """
    maps = np.array([[[1, 2, 3, 4, 4.5, 3.5, 0]]], np.float32)
    masks = np.array([[[0, 0, 0, 0, 1, 1, 1]]], bool)
    expected = (1 + (0.3 - 0.25) / 0.3 + 0) / 3
    np.testing.assert_allclose(defects_of(maps, masks).overlaps, [expected])


def test_streamed_defects_are_those_of_the_whole_within_a_quantile():
    maps, masks = random_category()
    metrics = StreamingMetrics()
    for rows in (slice(0, 2), slice(2, 6)):
        labels = masks[rows].any(axis=(1, 2))
        metrics.update(maps[rows], masks[rows], labels.astype(np.float32), labels)
    exact, streamed = defects_of(maps, masks), metrics.defects()
    np.testing.assert_array_equal(streamed.areas, exact.areas)
    np.testing.assert_array_equal(streamed.peaks, exact.peaks)
    # Bins of good pixels are 1/8192 of their score wide: far below a quantile.
    np.testing.assert_allclose(streamed.overlaps, exact.overlaps, atol=1 / 64)
    assert not np.array_equal(streamed.overlaps, exact.overlaps)


def test_sizes_are_quartiles_over_all_categories():
    small = Defects(np.array([1, 2, 3, 4]) / 100, np.full(4, 5.0), np.full(4, 0.25))
    large = Defects(np.array([5, 6, 7, 8]) / 100, np.arange(4.0), np.full(4, 0.75))
    figures = defect_size_metrics({"a": small, "b": large}, {"a": 4.0, "b": 1.5})
    assert figures["edges"] == pytest.approx([0.01, 0.0275, 0.045, 0.0625, 0.08])
    assert [size["num_defects"] for size in figures["all"]] == [2, 2, 2, 2]
    assert [size["overlap"] for size in figures["all"]] == [0.25, 0.25, 0.75, 0.75]
    assert [size["recall"] for size in figures["all"]] == [1, 1, 0, 1]
    a, b = figures["per_category"].values()
    assert [size["num_defects"] for size in a] == [2, 2, 0, 0]
    assert math.isnan(a[3]["overlap"]) and math.isnan(a[3]["recall"])
    assert [size["recall"] for size in b[2:]] == [0, 1]


def test_without_a_threshold_no_recall_is_claimed():
    maps, masks = random_category()
    defects = defects_of(maps, masks)
    figures = defect_size_metrics({"a": defects, "b": defects}, {"a": -100.0})
    (with_one, without) = figures["per_category"].values()
    assert with_one[0]["recall"] == 1 and math.isnan(without[0]["recall"])
    assert figures["all"][0]["recall"] == 1


@pytest.mark.parametrize("shape", [(0, 3, 3), (2, 3, 3)])
def test_no_defects_no_figures(shape):
    defects = defects_of(np.zeros(shape, np.float32), np.zeros(shape, bool))
    assert [len(column) for column in defects] == [0, 0, 0]
    assert defect_size_metrics({"a": defects}, {}) == {}
