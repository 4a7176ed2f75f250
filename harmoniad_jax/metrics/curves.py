"""Curves to draw: ROC, precision against recall, per-region overlap."""

import numpy as np

from harmoniad_jax.metrics.ranking import detection_curve, rank
from harmoniad_jax.metrics.regions import (
    FPR_LIMIT,
    check_limit,
    curve_up_to,
    rank_regions,
)

MAX_POINTS = 1000

Curve = tuple[np.ndarray, np.ndarray]
_UNDEFINED: Curve = (np.empty(0), np.empty(0))


def roc_curve(
    scores: np.ndarray, labels: np.ndarray, *, max_points: int = MAX_POINTS
) -> Curve:
    """The true-positive rate against the false-positive rate.

    Args:
      scores: any shape, float32 or float64, finite; larger is more anomalous.
      labels: the same shape, bool; True is defective.
      max_points: see `thin`.

    Returns:
      False- and true-positive rates, both [K] float64 in [0, 1], rising from 0 to 1, to
      be joined by lines. K = 0 where only one class of label is present.

    Raises:
      ValueError: for other dtypes, shapes or counts, or non-finite scores.
    """
    ranking = rank(scores, labels)
    curve = detection_curve(ranking) if ranking.is_defined else _UNDEFINED
    return thin(*curve, max_points)


def precision_recall_curve(
    scores: np.ndarray, labels: np.ndarray, *, max_points: int = MAX_POINTS
) -> Curve:
    """Precision against recall, as scikit-learn's, from recall 0 and precision 1.

    Args:
      scores: any shape, float32 or float64, finite; larger is more anomalous.
      labels: the same shape, bool; True is defective.
      max_points: see `thin`.

    Returns:
      Recall, rising from 0 to 1, and precision, both [K] float64 in [0, 1]. K = 0 where
      only one class of label is present.

    Raises:
      ValueError: for other dtypes, shapes or counts, or non-finite scores.
    """
    ranking = rank(scores, labels)
    if not ranking.is_defined:
        return thin(*_UNDEFINED, max_points)
    # At a score of positives recall rises; until the next one precision falls: a vertex
    # after the rise and one after the fall. Before the first nothing is found.
    found = np.cumsum(ranking.positives)
    false = ranking.negatives_above + ranking.negatives_tied
    fallen = np.append(ranking.negatives_above[1:], ranking.num_negatives)
    precision = np.stack([found / (found + false), found / (found + fallen)], axis=1)
    recall = np.repeat(found / found[-1], 2)
    if ranking.negatives_above[0] > 0:
        recall, precision = np.append(0.0, recall), np.append(0.0, precision)
    return thin(np.append(0.0, recall), np.append(1.0, precision), max_points)


def pro_curve(
    anomaly_maps: np.ndarray,
    masks: np.ndarray,
    *,
    fpr_limit: float = FPR_LIMIT,
    max_points: int = MAX_POINTS,
) -> Curve:
    """The mean overlap of defect regions against the false-positive rate.

    The area under it, divided by `fpr_limit`, is `aupro`.

    Args:
      anomaly_maps: [N, H, W], float32 or float64, finite; larger is more anomalous.
      masks: [N, H, W], bool; True is defective.
      fpr_limit: where the curve ends, in (0, 1].
      max_points: see `thin`.

    Returns:
      False-positive rates, rising from 0 to `fpr_limit`, and overlaps, rising in [0, 1],
      both [K] float64. K = 0 where there is no region or no defect-free pixel.

    Raises:
      ValueError: for other dtypes, shapes, limits or counts, or non-finite scores.
    """
    check_limit(fpr_limit)
    ranking = rank_regions(anomaly_maps, masks)
    if not ranking.is_defined:
        return thin(*_UNDEFINED, max_points)
    return thin(*curve_up_to(fpr_limit, *detection_curve(ranking)), max_points)


def thin(x: np.ndarray, y: np.ndarray, max_points: int) -> Curve:
    """Leaves out vertices where a curve stays within a small cell.

    The plane is divided into a grid as fine as `max_points` allow, and of the vertices
    that follow each other in one cell the first and the last are kept. So the curve moves
    by less than a cell, and lines longer than one do not move at all: steps stay steps. A
    rising curve gets at least `max_points` / 6 cells a side.

    Args:
      x: [K] float64, at least 0, rising.
      y: [K] float64 in [0, 1].
      max_points: at least 2.

    Returns:
      x and y of the vertices that are kept, at most `max_points`, the ends among them.

    Raises:
      ValueError: if `max_points` is less than 2.
    """
    if max_points < 2:
        raise ValueError(f"max_points: received {max_points}, allowed 2 or more")
    kept, cells = np.arange(len(x)), max_points
    while len(kept) > max_points:  # A single cell keeps two.
        column = np.minimum(x * (cells / x[-1]), cells - 1).astype(np.int64)
        row = np.minimum(y * cells, cells - 1).astype(np.int64)
        last = np.flatnonzero(np.diff(column) | np.diff(row))
        kept = np.union1d(np.append(last, len(x) - 1), np.append(0, last + 1))
        cells = cells * 3 // 4
    return x[kept], y[kept]
