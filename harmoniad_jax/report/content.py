"""What the report shows of one category, and which of its images."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

Kind = Literal["miss", "false_alarm", "hit", "correct"]


class Sample(NamedTuple):
    """One test image that the report shows.

    Attributes:
      path: what the image is called.
      defect: name of its defect, "good" where there is none.
      kind: what became of it, see `choose_samples`.
      score: image score; larger is more anomalous.
      image: [H, W, 3] uint8, RGB.
      mask: [H', W'] bool, True is defective; None where it is not known.
      anomaly_map: [H', W'] float32, finite; larger is more anomalous.
      branch_maps: name of a branch -> its distance map, [h, w] float32, finite.
    """

    path: str
    defect: str
    kind: Kind
    score: float
    image: np.ndarray
    mask: np.ndarray | None
    anomaly_map: np.ndarray
    branch_maps: Mapping[str, np.ndarray] = {}


class CategoryContent(NamedTuple):
    """What the report shows of one category.

    Attributes:
      category: its name; "DATA_SET/CLASS" where data sets are joined.
      metrics: see `metrics.category_metrics`.
      threshold: images with a score above it are called defective; None where there is
        none.
      image_scores: [N] float32, finite, of all its test images.
      image_labels: [N] bool; True is defective.
      curves: "roc" and "precision_recall" of the images, "pro" of the pixels, as of
        `metrics.curves`: x [K] and y [K], x rising. A curve that is undefined has K = 0
        or is left out.
      samples: images to show, the most telling of each kind first.
      map_threshold: what lies above it in an anomaly map is outlined in the overlays.
    """

    category: str
    metrics: Mapping[str, float | None]
    threshold: float | None
    image_scores: np.ndarray
    image_labels: np.ndarray
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]
    samples: list[Sample]
    map_threshold: float | None = None


def choose_samples(
    scores: np.ndarray,
    labels: np.ndarray,
    threshold: float | None,
    per_kind: int = 3,
) -> list[tuple[int, Kind]]:
    """Chooses the images that say most about a category.

    These are, in this order and up to `per_kind` of each: the defective images with the
    lowest scores, the good images with the highest, and those of the other defective
    images whose scores are nearest to the median of all defective ones. No image is
    chosen twice. Its kind says on which side of the threshold it lies, so that a
    category without misses shows its closest calls as hits:

                          good image      defective image
      up to it            "correct"       "miss"
      above it            "false_alarm"   "hit"

    Without a threshold nothing is missed or found. The kinds are then what each image
    was chosen as: "miss", "false_alarm", "hit".

    Args:
      scores: [N] float, finite; larger is more anomalous.
      labels: [N] bool; True is defective.
      threshold: scores above it are called defective; None if there is none.
      per_kind: how many images of each of the three choices at most.

    Returns:
      Index into `scores` and kind of each chosen image.
    """
    scores, labels = np.asarray(scores), np.asarray(labels, dtype=bool)
    # Stable sorts: equal scores keep the order of the images, on every machine.
    defective = np.flatnonzero(labels)
    defective = defective[np.argsort(scores[defective], kind="stable")]
    good = np.flatnonzero(~labels)
    good = good[np.argsort(-scores[good], kind="stable")]

    hardest, others = defective[:per_kind], defective[per_kind:]
    if threshold is not None:
        others = others[scores[others] > threshold]
    if len(others):
        distance = np.abs(scores[others] - np.median(scores[defective]))
        others = others[np.argsort(distance, kind="stable")]

    def kind(index: int, without_threshold: Kind) -> Kind:
        if threshold is None:
            return without_threshold
        if scores[index] > threshold:
            return "hit" if labels[index] else "false_alarm"
        return "miss" if labels[index] else "correct"

    return [
        *((int(index), kind(index, "miss")) for index in hardest),
        *((int(index), kind(index, "false_alarm")) for index in good[:per_kind]),
        *((int(index), kind(index, "hit")) for index in others[:per_kind]),
    ]
