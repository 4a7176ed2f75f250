"""Metrics of how well scores rank defective above defect-free: AUROC, AP, F1-max."""

import math
from typing import NamedTuple

import numpy as np


class RankingMetrics(NamedTuple):
    """Three metrics in [0, 1]; NaN where only one class of label is present."""

    auroc: float
    average_precision: float
    f1max: float


class Ranking(NamedTuple):
    """Who ranks above whom: all that any of the metrics and curves needs.

    A row for each distinct score of a positive, highest first. Scores of negatives alone
    need none: between two rows recall stands still while precision falls, so neither AP
    nor the best F1 can change there, and curves are straight.
    """

    positives: np.ndarray  # [K], how many positives have this score, at least 1
    weights: np.ndarray  # [K] float64, sum of the weights of those
    negatives_above: np.ndarray  # [K], how many negatives score higher
    negatives_tied: np.ndarray  # [K], how many negatives have this score too
    num_negatives: int  # of all scores

    @property
    def is_defined(self) -> bool:
        """Whether there are positives and negatives; no metric is defined otherwise."""
        return len(self.positives) > 0 and self.num_negatives > 0


def check_scores(scores: np.ndarray, labels: np.ndarray) -> None:
    """Refuses scores and labels on which no exact metric can be computed.

    Args:
      scores: any shape, float32 or float64, finite.
      labels: the same shape, bool.

    Raises:
      ValueError: for other dtypes, different shapes or non-finite scores.
    """
    if scores.dtype not in (np.float32, np.float64):
        raise ValueError(
            f"scores: received dtype {scores.dtype}, allowed float32 and float64"
        )
    if labels.dtype != np.bool_:
        raise ValueError(f"labels: received dtype {labels.dtype}, allowed bool")
    if scores.shape != labels.shape:
        raise ValueError(
            f"labels: received shape {labels.shape}, allowed the shape of the "
            f"scores, {scores.shape}"
        )
    num_bad = scores.size - np.count_nonzero(np.isfinite(scores))
    if num_bad:
        raise ValueError(
            f"scores: received {num_bad} NaN or infinite values of {scores.size}, "
            "allowed finite values only"
        )


def rank(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> Ranking:
    """Counts positives and negatives by score.

    Args:
      scores: any shape, float32 or float64, finite; larger is more anomalous.
      labels: the same shape, bool; True is defective.
      weights: [P] float64, of the positives in the order of `scores[labels]`. Default:
        one for each.

    Raises:
      ValueError: for other dtypes, different shapes or non-finite scores.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    check_scores(scores, labels)
    # Sorting the values of each class avoids an argsort of all pixels, which is about
    # ten times slower and needs eight bytes of index a pixel. Positives are few, so
    # every array below but `negatives` is small.
    negatives = scores[~labels]
    negatives.sort()
    if weights is None:
        thresholds, positives = np.unique(scores[labels], return_counts=True)
        weights = positives.astype(np.float64)
    else:
        thresholds, tie = np.unique(scores[labels], return_inverse=True)
        positives, weights = np.bincount(tie), np.bincount(tie, weights)
    thresholds = thresholds[::-1]
    below = np.searchsorted(negatives, thresholds, side="left")
    up_to = np.searchsorted(negatives, thresholds, side="right")
    return Ranking(
        positives=positives[::-1],
        weights=weights[::-1],
        negatives_above=len(negatives) - up_to,
        negatives_tied=up_to - below,
        num_negatives=len(negatives),
    )


def ranking_metrics(scores: np.ndarray, labels: np.ndarray) -> RankingMetrics:
    """Computes AUROC, average precision and the best F1 over all thresholds.

    Equal to scikit-learn's `roc_auc_score`, `average_precision_score` and the maximum
    F1 over `precision_recall_curve`, ties included.

    Args:
      scores: any shape, float32 or float64, finite; larger is more anomalous.
      labels: the same shape, bool; True is defective.

    Returns:
      Three floats in [0, 1], all NaN where only one class of label is present.

    Raises:
      ValueError: for other dtypes, different shapes or non-finite scores.
    """
    return metrics_of(rank(scores, labels))


def metrics_of(ranking: Ranking) -> RankingMetrics:
    """The same of a ranking, whatever the weights.

    AUROC is the Mann-Whitney statistic, P(positive > negative) + P(equal) / 2
    (Hanley and McNeil, 1982); AP is the sum of precision times gain in recall.
    """
    if not ranking.is_defined:
        return RankingMetrics(math.nan, math.nan, math.nan)
    positives, num_negatives = ranking.positives, ranking.num_negatives
    outranked = num_negatives - ranking.negatives_above - ranking.negatives_tied / 2
    true_positives = np.cumsum(positives)
    num_positives = true_positives[-1]
    predicted = true_positives + ranking.negatives_above + ranking.negatives_tied
    return RankingMetrics(
        auroc=float(np.sum(positives * outranked) / num_positives / num_negatives),
        average_precision=float(
            np.sum(positives * (true_positives / predicted)) / num_positives
        ),
        f1max=float(np.max(2 * true_positives / (num_positives + predicted))),
    )


def detection_curve(ranking: Ranking) -> tuple[np.ndarray, np.ndarray]:
    """The share of the weight that is found, against the false-positive rate.

    With weights of one this is the ROC curve. Equal scores enter together, so ties of
    both classes are a straight line between the two vertices of their row.

    Args:
      ranking: one in which `is_defined`.

    Returns:
      The vertices, both [2 K + 2] float64 and rising from 0 to 1.
    """
    above, tied = ranking.negatives_above, ranking.negatives_tied
    rate = np.stack([above, above + tied], axis=1).ravel() / ranking.num_negatives
    found = np.concatenate([[0.0], np.cumsum(ranking.weights)])
    found /= found[-1]  # Weights may not be whole: this ends at exactly 1.
    found = np.stack([found[:-1], found[1:]], axis=1).ravel()
    return (
        np.concatenate([[0.0], rate, [1.0]]),
        np.concatenate([[0.0], found, [1.0]]),
    )
