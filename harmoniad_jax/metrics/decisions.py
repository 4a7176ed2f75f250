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
      "precision", "recall", "f1" and "false_positive_rate" in [0, 1]; NaN where undefined:
      no image was called defective, none is, neither, or none is good.
    """
    called = np.asarray(scores) > threshold
    labels = np.asarray(labels, bool)
    hits = int((called & labels).sum())
    found, defective = int(called.sum()), int(labels.sum())
    return {
        "precision": _share(hits, found),
        "recall": _share(hits, defective),
        "f1": _share(2 * hits, found + defective),
        "false_positive_rate": _share(found - hits, labels.size - defective),
    }


class PixelDecisions:
    """Counts what a threshold of the maps achieves, batch by batch."""

    def __init__(self, threshold: float):
        """`threshold`: pixels that equal it are good."""
        self._threshold = threshold
        self._hits = self._found = self._defective = 0

    def update(self, anomaly_maps: np.ndarray, masks: np.ndarray) -> None:
        """Adds maps [B, H, W] float and masks [B, H, W] bool."""
        found = anomaly_maps > self._threshold
        self._hits += int((found & masks).sum())
        self._found += int(found.sum())
        self._defective += int(masks.sum())

    def compute(self) -> dict[str, float]:
        """ "threshold", and "precision", "recall" and "f1" of the pixels, or NaN."""
        return {
            "threshold": self._threshold,
            "precision": _share(self._hits, self._found),
            "recall": _share(self._hits, self._defective),
            "f1": _share(2 * self._hits, self._found + self._defective),
        }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
