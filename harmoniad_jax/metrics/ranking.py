"""Metrics of how well scores rank defective above defect-free: AUROC, AP, F1-max."""

import math
from typing import NamedTuple

import numpy as np


class RankingMetrics(NamedTuple):
    """Three figures in [0, 1]; NaN where only one class of label is present."""

    auroc: float
    average_precision: float
    f1max: float


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

    AUROC is the Mann-Whitney statistic, P(positive > negative) + P(equal) / 2
    (Hanley and McNeil, 1982); AP is the sum of precision times gain in recall.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    check_scores(scores, labels)
    num_positive = int(np.count_nonzero(labels))
    num_negative = labels.size - num_positive
    if num_positive == 0 or num_negative == 0:
        return RankingMetrics(math.nan, math.nan, math.nan)

    # Sorting the values of each class avoids an argsort of all pixels, which is about
    # ten times slower and needs eight bytes of index a pixel. Only the distinct
    # positive scores are needed as thresholds: between two of them recall stands still
    # while precision falls, so neither AP nor the best F1 can change there. Positives
    # are few, so every array below but `negatives` is small.
    negatives = scores[~labels]
    negatives.sort()
    thresholds, tie_sizes = np.unique(scores[labels], return_counts=True)
    negatives_below = np.searchsorted(negatives, thresholds, side="left")
    negatives_up_to = np.searchsorted(negatives, thresholds, side="right")

    num_ordered_twice = int(np.sum(tie_sizes * (negatives_below + negatives_up_to)))
    auroc = num_ordered_twice / (2 * num_positive * num_negative)

    true_positives = np.cumsum(tie_sizes[::-1])[::-1]
    predicted_positives = true_positives + (num_negative - negatives_below)
    precision = true_positives / predicted_positives
    average_precision = np.sum(tie_sizes * precision) / num_positive
    f1 = 2 * true_positives / (num_positive + predicted_positives)
    return RankingMetrics(auroc, float(average_precision), float(np.max(f1)))
