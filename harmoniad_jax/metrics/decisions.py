"""What a threshold achieves: metrics of a decision, where `ranking.py` has none to make."""

import math

import numpy as np


def decision_metrics(
    scores: np.ndarray, labels: np.ndarray, threshold: float
) -> dict[str, float]:
    """Calls images defective whose score lies above a threshold, and counts.

    Args:
      scores: [N] float, larger is more anomalous.
      labels: [N] bool, True where the image is defective.
      threshold: scores equal to it are good.

    Returns:
      "precision", "recall" and "false_positive_rate" in [0, 1]; NaN where undefined: no
      image was called defective, none is, or none is good.
    """
    called = np.asarray(scores) > threshold
    labels = np.asarray(labels, bool)
    hits = int((called & labels).sum())
    return {
        "precision": _share(hits, int(called.sum())),
        "recall": _share(hits, int(labels.sum())),
        "false_positive_rate": _share(int((called & ~labels).sum()), int((~labels).sum())),
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
