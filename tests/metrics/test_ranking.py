"""Ranking metrics against scikit-learn, by hand, and by their invariances."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as sk

from harmoniad_jax.metrics import RankingMetrics, ranking_metrics


def reference(scores, labels):
    precision, recall, _ = sk.precision_recall_curve(labels, scores)
    total = precision + recall
    f1 = 2 * precision * recall / np.where(total > 0, total, 1)
    return RankingMetrics(
        sk.roc_auc_score(labels, scores),
        sk.average_precision_score(labels, scores),
        f1.max(),
    )


@st.composite
def scored_labels(draw):
    """Few levels, so that ties within and between the classes are common."""
    size = draw(st.integers(2, 40))
    levels = draw(hnp.arrays(np.int64, size, elements=st.integers(-4, 4)))
    labels = draw(hnp.arrays(np.bool_, size))
    assume(labels.any() and not labels.all())
    return levels.astype(np.float32), labels


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("num_levels", [2, 50, 10**9])
@pytest.mark.parametrize("positive_share", [0.03, 0.5, 0.97])
def test_equals_scikit_learn(dtype, num_levels, positive_share):
    rng = np.random.default_rng(0)
    labels = rng.random((3, 40, 50)) < positive_share
    scores = np.floor(rng.normal(labels, 1.0) * num_levels).astype(dtype)
    expected = reference(scores.ravel(), labels.ravel())
    assert ranking_metrics(scores, labels) == pytest.approx(expected, abs=1e-12)


@given(scored_labels())
@settings(deadline=None)
def test_equals_scikit_learn_with_many_ties(case):
    assert ranking_metrics(*case) == pytest.approx(reference(*case), abs=1e-12)


def test_hand_computed_case_with_a_tie():
    # Descending: positive 3; positive and negative 2 together; negative 1.
    scores = np.array([3, 2, 2, 1], np.float32)
    labels = np.array([True, True, False, False])
    # Of four pairs three are in order and one is tied. Precision 1 at recall 1/2, then
    # 2/3 at recall 1, where F1 = 2 * 2 / (2 + 3).
    expected = RankingMetrics(3.5 / 4, 0.5 + 0.5 * 2 / 3, 0.8)
    assert ranking_metrics(scores, labels) == pytest.approx(expected, abs=1e-15)


def test_constant_scores_are_one_tie():
    labels = np.array([True, False, False, False])
    result = ranking_metrics(np.zeros(4, np.float32), labels)
    assert result == pytest.approx((0.5, 0.25, 0.4), abs=1e-15)


def test_negative_zero_ties_with_zero():
    labels = np.array([True, False])
    assert ranking_metrics(np.array([-0.0, 0.0]), labels).auroc == 0.5


def test_neighbouring_float32_values_are_not_tied():
    scores = np.array([1.0, np.nextafter(np.float32(1), np.float32(2))], np.float32)
    assert ranking_metrics(scores, np.array([False, True])) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("label", [False, True])
@pytest.mark.parametrize("size", [0, 1, 5])
def test_undefined_with_one_class_only(label, size):
    result = ranking_metrics(np.zeros(size), np.full(size, label))
    assert all(math.isnan(value) for value in result)


@given(scored_labels())
@settings(deadline=None)
def test_strictly_monotone_transforms_change_nothing(case):
    scores, labels = case
    expected = ranking_metrics(scores, labels)
    assert ranking_metrics(np.exp(scores), labels) == expected
    assert ranking_metrics(scores.astype(np.float64) ** 3 - 7, labels) == expected


@given(scored_labels(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_order_changes_nothing(case, random):
    scores, labels = case
    order = random.sample(range(len(scores)), len(scores))
    assert ranking_metrics(scores[order], labels[order]) == ranking_metrics(*case)


@given(scored_labels())
@settings(deadline=None)
def test_flipped_scores_mirror_auroc(case):
    scores, labels = case
    flipped = ranking_metrics(-scores, labels).auroc
    assert flipped == pytest.approx(1 - ranking_metrics(scores, labels).auroc)


@given(scored_labels())
@settings(deadline=None)
def test_perfect_scores_give_one(case):
    _, labels = case
    assert ranking_metrics(labels.astype(np.float32), labels) == (1.0, 1.0, 1.0)


def test_inputs_are_left_unchanged():
    scores = np.array([3, 1, 2], np.float32)
    scores.flags.writeable = False
    ranking_metrics(scores, np.array([True, False, False]))
    assert scores.tolist() == [3, 1, 2]


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros(3), np.zeros(4, bool), r"received shape \(4,\).*\(3,\)"),
        (np.zeros((2, 2)), np.zeros(4, bool), "received shape"),
        (np.array([0, np.nan]), np.zeros(2, bool), "received 1 NaN or infinite"),
        (np.array([np.inf, -np.inf]), np.zeros(2, bool), "received 2 NaN or infinite"),
        (np.zeros(2, np.float16), np.zeros(2, bool), "dtype float16, allowed float32"),
        (np.zeros(2), np.zeros(2, np.uint8), "dtype uint8, allowed bool"),
    ],
)
def test_bad_input_is_refused(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        ranking_metrics(scores, labels)
