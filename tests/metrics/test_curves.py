"""Curves against scikit-learn, against the areas under them, and thinned."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from sklearn import metrics as sk

from harmoniad_jax.metrics import (
    aupro,
    precision_recall_curve,
    pro_curve,
    ranking_metrics,
    roc_curve,
)
from harmoniad_jax.metrics.curves import thin

ALL = 10**9


@st.composite
def scored_labels(draw):
    size = draw(st.integers(2, 40))
    levels = draw(hnp.arrays(np.int64, size, elements=st.integers(-4, 4)))
    labels = draw(hnp.arrays(np.bool_, size))
    assume(labels.any() and not labels.all())
    return levels.astype(np.float32), labels


def make_maps(seed=0, num_images=12, side=64):
    """Smooth maps with two discs of defect in most images."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    masks = np.zeros((num_images, side, side), bool)
    for mask in masks[num_images // 4 :]:
        for cy, cx, radius in rng.uniform([5, 5, 2], [side - 5, side - 5, 9], (2, 3)):
            mask |= (y - cy) ** 2 + (x - cx) ** 2 < radius**2
    noise = ndimage.gaussian_filter(rng.standard_normal(masks.shape), (0, 2, 2))
    bumps = ndimage.gaussian_filter(masks.astype(float), (0, 2, 2))
    return (4 * noise + 2 * bumps).astype(np.float32), masks


def distance_to(curve, x, y):
    """The largest distance, over both axes, of points to a polyline."""
    corners = np.stack(curve, axis=1)
    start, step = corners[:-1], np.diff(corners, axis=0)
    length = np.maximum((step**2).sum(1), 1e-300)
    worst = 0.0
    for point in np.stack([x, y], axis=1):
        along = np.clip(((point - start) * step).sum(1) / length, 0, 1)
        nearest = start + along[:, None] * step
        worst = max(worst, np.abs(nearest - point).max(axis=1).min())
    return worst


@given(scored_labels())
@settings(deadline=None)
def test_roc_is_that_of_scikit_learn(case):
    scores, labels = case
    curve = roc_curve(scores, labels, max_points=ALL)
    expected = sk.roc_curve(labels, scores, drop_intermediate=False)[:2]
    assert distance_to(curve, *expected) < 1e-12
    assert distance_to(expected, *curve) < 1e-12
    assert sk.auc(*curve) == pytest.approx(ranking_metrics(*case).auroc, abs=1e-12)


@given(scored_labels())
@settings(deadline=None)
def test_precision_recall_is_that_of_scikit_learn(case):
    scores, labels = case
    curve = recall, precision = precision_recall_curve(scores, labels, max_points=ALL)
    expected = sk.precision_recall_curve(labels, scores)[1::-1]
    assert distance_to(curve, *expected) < 1e-12
    assert distance_to(expected, *curve) < 1e-12
    assert np.all(np.diff(recall) >= 0)
    steps = np.sum(np.diff(recall) * precision[1:])
    assert steps == pytest.approx(ranking_metrics(*case).average_precision, abs=1e-12)


@pytest.mark.parametrize("fpr_limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("levels", [4, 10**6])
def test_the_area_under_the_pro_curve_is_aupro(fpr_limit, levels):
    maps, masks = make_maps()
    maps = np.floor(maps * levels)
    curve = fpr, overlap = pro_curve(maps, masks, fpr_limit=fpr_limit, max_points=ALL)
    expected = aupro(maps, masks, fpr_limit)
    assert sk.auc(*curve) / fpr_limit == pytest.approx(expected, abs=1e-12)
    assert fpr[0] == overlap[0] == 0
    assert fpr[-1] == fpr_limit
    assert np.all(np.diff(fpr) >= 0) and np.all(np.diff(overlap) >= 0)
    assert overlap[-1] <= 1


def test_one_region_over_all_false_positive_rates_is_the_roc_curve():
    maps, masks = make_maps()
    masks = np.zeros_like(masks)
    masks[2, 10:30, 5:50] = True
    pro = pro_curve(maps, masks, fpr_limit=1.0, max_points=ALL)
    roc = roc_curve(maps, masks, max_points=ALL)
    assert distance_to(pro, *(axis[::25] for axis in roc)) < 1e-12
    assert sk.auc(*pro) == pytest.approx(sk.auc(*roc), abs=1e-12)


@pytest.mark.parametrize("max_points", [50, 200, 1000])
@pytest.mark.parametrize("name", ["roc", "precision_recall", "pro"])
def test_a_thinned_curve_is_short_and_where_it_was(name, max_points):
    maps, masks = make_maps()
    draw = {
        "roc": roc_curve,
        "precision_recall": precision_recall_curve,
        "pro": pro_curve,
    }[name]
    whole = draw(maps, masks, max_points=ALL)
    curve = draw(maps, masks, max_points=max_points)
    assert len(whole[0]) > 2 * max_points
    assert len(curve[0]) == len(curve[1]) <= max_points
    vertices = set(zip(*whole, strict=True))
    assert vertices.issuperset(zip(*curve, strict=True))
    for axis, all_of_it in zip(curve, whole, strict=True):
        assert (axis[0], axis[-1]) == (all_of_it[0], all_of_it[-1])
    assert distance_to(curve, *(axis[::7] for axis in whole)) <= 6 / max_points
    assert sk.auc(*curve) == pytest.approx(sk.auc(*whole), abs=0.5 / max_points)


def test_long_lines_stay_where_they_are():
    # A steep curve of many points in either corner, and one line between them.
    part = np.linspace(0, 1e-4, 500)
    x = np.concatenate([part, 1 - part[::-1]])
    y = np.concatenate([part, 1 - part[::-1]])
    y[500:] = 0.75 + y[500:] / 4
    thinned = np.stack(thin(x, y, 20), axis=1).tolist()
    assert [x[499], y[499]] in thinned and [x[500], y[500]] in thinned


@given(
    hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 1)),
    st.integers(2, 20),
)
@settings(deadline=None)
def test_thinning_keeps_to_the_count_the_ends_and_the_order(y, max_points):
    x = np.linspace(0, 1, len(y) + 1)[1:]
    thin_x, thin_y = thin(x, y, max_points)
    assert min(len(x), 2) <= len(thin_x) <= max_points
    rows = np.searchsorted(x, thin_x)
    np.testing.assert_array_equal(x[rows], thin_x)
    np.testing.assert_array_equal(y[rows], thin_y)
    assert rows[0] == 0 and rows[-1] == len(x) - 1
    assert np.all(np.diff(rows) > 0)


@pytest.mark.parametrize("draw", [roc_curve, precision_recall_curve, pro_curve])
@pytest.mark.parametrize("label", [False, True])
@pytest.mark.parametrize("num_images", [0, 2])
def test_undefined_curves_have_no_points(draw, label, num_images):
    shape = (num_images, 3, 3)
    x, y = draw(np.zeros(shape), np.full(shape, label))
    assert x.shape == y.shape == (0,)


def test_bad_input_is_refused():
    maps, masks = make_maps(num_images=4, side=16)
    with pytest.raises(ValueError, match="max_points: received 1, allowed 2 or more"):
        roc_curve(maps, masks, max_points=1)
    with pytest.raises(ValueError, match="fpr_limit: received 2, allowed"):
        pro_curve(maps, masks, fpr_limit=2)
    with pytest.raises(ValueError, match=r"allowed \[N, H, W\]"):
        pro_curve(maps[0], masks[0])
    with pytest.raises(ValueError, match="allowed the shape of the scores"):
        precision_recall_curve(maps, masks[1:])
