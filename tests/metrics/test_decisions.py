"""What a threshold achieves, against scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, f1_score, precision_score, recall_score

from harmoniad_jax.metrics.decisions import PixelDecisions, decision_metrics

FIGURES = {"precision", "recall", "f1", "false_positive_rate"}
# Few distinct scores, so that many equal the threshold.
IMAGES = st.lists(
    st.tuples(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 2.0]), st.booleans()),
    min_size=1,
    max_size=30,
)


@settings(deadline=None)
@given(IMAGES, st.sampled_from([-2.0, 0.0, 0.25, 0.3, 2.0]))
def test_same_as_scikit_learn(images, threshold):
    scores, labels = map(np.array, zip(*images, strict=True))
    called = scores > threshold
    figures = decision_metrics(scores.astype(np.float32), labels, threshold)
    negatives, alarms, _, _ = confusion_matrix(labels, called, labels=[False, True]).ravel()
    good = negatives + alarms
    expected = {
        "precision": precision_score(labels, called, zero_division=np.nan),
        "recall": recall_score(labels, called, zero_division=np.nan),
        "f1": f1_score(labels, called, zero_division=np.nan),
        "false_positive_rate": alarms / good if good else np.nan,
    }
    assert figures.keys() == expected.keys()
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, nan_ok=True), name
        assert type(figures[name]) is float  # goes into a JSON file


@pytest.mark.parametrize(
    ("scores", "labels", "undefined"),
    [
        ([0, 0], [True, False], {"precision"}),  # nothing was called defective
        ([0, 2], [False, False], {"recall"}),  # nothing is
        ([0, 2], [True, True], {"false_positive_rate"}),  # nothing is good
        ([0, 0], [False, False], {"precision", "recall", "f1"}),
        ([], [], FIGURES),
    ],
)
def test_what_is_undefined_is_no_number(scores, labels, undefined):
    figures = decision_metrics(np.float32(scores), np.array(labels, bool), 1.0)
    assert {name for name, value in figures.items() if math.isnan(value)} == undefined


def test_a_score_that_equals_the_threshold_is_good():
    figures = decision_metrics(np.float32([1.0, 1.5]), np.array([False, True]), 1.0)
    perfect = {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert figures == perfect | {"false_positive_rate": 0.0}


def test_labels_may_be_numbers():
    scores = np.float32([0.1, 0.9, 0.8, 0.2])
    labels = np.array([0, 1, 0, 1])
    assert decision_metrics(scores, labels, 0.5) == decision_metrics(
        scores, labels.astype(bool), 0.5
    )


@given(IMAGES, st.floats(-3, 3), st.floats(-3, 3))
def test_a_higher_threshold_calls_fewer(images, first, second):
    scores, labels = map(np.array, zip(*images, strict=True))
    low, high = sorted([first, second])
    for name in ("recall", "false_positive_rate"):
        more = decision_metrics(scores, labels, low)[name]
        fewer = decision_metrics(scores, labels, high)[name]
        assert math.isnan(more) or more >= fewer


def test_pixels_in_batches_are_decided_on_as_all_at_once():
    rng = np.random.default_rng(0)
    maps, masks = rng.random((5, 6, 7), np.float32), rng.random((5, 6, 7)) < 0.2
    pixels = PixelDecisions(0.6)
    for rows in (slice(0, 2), slice(2, 5)):
        pixels.update(maps[rows], masks[rows])
    figures = pixels.compute()
    expected = decision_metrics(maps.ravel(), masks.ravel(), 0.6)
    assert figures.pop("threshold") == 0.6
    assert figures == {name: expected[name] for name in figures}
    assert all(math.isnan(PixelDecisions(0.6).compute()[name]) for name in figures)
