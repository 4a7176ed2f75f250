"""Which images the report shows."""

import numpy as np
import pytest

from harmoniad_jax.report.content import choose_samples

SCORES = np.array([0.1, 0.9, 0.3, 0.2, 0.8, 0.5, 0.7, 0.6, 0.4, 1.0], np.float32)
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1], bool)


def test_kinds_are_on_their_side_of_the_threshold():
    chosen = choose_samples(SCORES, LABELS, 0.55)
    assert chosen == [
        *((8, "miss"), (5, "miss"), (7, "hit")),
        *((1, "false_alarm"), (2, "correct"), (3, "correct")),
        # Median of the defective ones: 0.65.
        *((6, "hit"), (4, "hit"), (9, "hit")),
    ]


def test_a_score_equal_to_the_threshold_is_not_above_it():
    kinds = dict(choose_samples(np.array([0.5, 0.5]), np.array([False, True]), 0.5))
    assert kinds == {0: "correct", 1: "miss"}


def test_a_perfect_category_shows_its_closest_calls():
    kinds = [kind for _, kind in choose_samples(LABELS + SCORES, LABELS, 1.2)]
    assert kinds == ["hit"] * 3 + ["correct"] * 3 + ["hit"] * 3


def test_misses_are_not_typical_hits():
    chosen = choose_samples(SCORES, LABELS, 0.95, per_kind=1)
    assert chosen == [(8, "miss"), (1, "correct"), (9, "hit")]


def test_without_threshold_kinds_say_why_an_image_was_chosen():
    kinds = [kind for _, kind in choose_samples(SCORES, LABELS, None, per_kind=2)]
    assert kinds == ["miss"] * 2 + ["false_alarm"] * 2 + ["hit"] * 2


@pytest.mark.parametrize("threshold", [None, 0.0, 0.5, 2.0])
@pytest.mark.parametrize("labels", ["", "0", "1", "01", "00000", "11111", "1110"])
def test_few_images_are_each_chosen_at_most_once(labels, threshold):
    labels = np.array([label == "1" for label in labels], bool)
    scores = np.linspace(0, 1, len(labels))
    chosen = [index for index, _ in choose_samples(scores, labels, threshold)]
    assert len(set(chosen)) == len(chosen)
    assert len(chosen) >= min(len(labels), 3) if len(set(labels)) < 2 else chosen
    assert all(type(index) is int for index in chosen)


def test_equal_scores_keep_the_order_of_the_images():
    scores, labels = np.zeros(8), np.arange(8) >= 4
    assert [i for i, _ in choose_samples(scores, labels, None, 2)] == [4, 5, 0, 1, 6, 7]
