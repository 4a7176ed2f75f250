"""How well single defects are found, by their size."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from harmoniad_jax.metrics.ranking import check_scores
from harmoniad_jax.metrics.regions import CONNECTED, FPR_LIMIT

NUM_SIZES = 4  # quartiles


class Defects(NamedTuple):
    """The defect regions of a category, one element each.

    Attributes:
      areas: [R] float64 in (0, 1], share of the image.
      peaks: [R] float64, the largest score in the region.
      overlaps: [R] float64 in [0, 1], the normalised area under the curve of the region's
        share at or above a threshold, against the false-positive rate: their mean is the
        category's `aupro`. NaN where there is no defect-free pixel.
    """

    areas: np.ndarray
    peaks: np.ndarray
    overlaps: np.ndarray


class DefectScores:
    """Collects the scores of defect regions, batch by batch.

    Memory is that of at most `most` scores a region, its quantiles where it has more
    pixels: its overlap is then off by at most 1 / most.
    """

    def __init__(self, most: int | None = None):
        self._most = most
        self._areas: list[float] = []
        self._peaks: list[float] = []
        self._scores: list[np.ndarray] = []

    def update(self, anomaly_maps: np.ndarray, masks: np.ndarray) -> None:
        """Adds the 8-connected regions of masks [B, H, W] bool, scores [B, H, W] float."""
        anomaly_maps, masks = np.asarray(anomaly_maps), np.asarray(masks)
        check_scores(anomaly_maps, masks)
        if not masks.any():
            return
        regions, _ = ndimage.label(masks, structure=CONNECTED)
        regions, scores = regions[masks], anomaly_maps[masks]
        order = np.lexsort((scores, regions))
        starts = np.flatnonzero(np.diff(regions[order], prepend=0))
        for region in np.split(scores[order], starts[1:]):
            self._areas.append(region.size / masks[0].size)
            self._peaks.append(float(region[-1]))
            if self._most is not None and region.size > self._most:
                middles = (np.arange(self._most) + 0.5) * region.size / self._most
                region = region[middles.astype(int)]
            self._scores.append(region.copy())

    def compute(
        self,
        false_positives: Callable[[np.ndarray], np.ndarray],
        fpr_limit: float = FPR_LIMIT,
    ) -> Defects:
        """The regions so far.

        Args:
          false_positives: [P] scores to [2, P] float64: the share of defect-free pixels
            above each, and at or above it.
          fpr_limit: of the overlaps, in (0, 1].
        """
        overlaps = np.empty(0)
        if self._scores:
            sizes = np.array([scores.size for scores in self._scores])
            region = np.repeat(np.arange(sizes.size), sizes)
            covered = _covered(*false_positives(np.concatenate(self._scores)), fpr_limit)
            overlaps = np.bincount(region, covered) / sizes
        return Defects(np.array(self._areas), np.array(self._peaks), overlaps)


def _covered(above: np.ndarray, up_to: np.ndarray, limit: float) -> np.ndarray:
    """The share of [0, limit] at which a pixel is found.

    A pixel enters at the false-positive rate of its score, and step by step where
    defect-free pixels have that score too, from `above` to `up_to`.
    """
    reached, beyond = (np.maximum(limit - rate, 0.0) for rate in (above, up_to))
    width = up_to - above
    with np.errstate(invalid="ignore"):
        ramp = (reached + beyond) / 2 * (reached - beyond) / width
    return np.where(width == 0, reached, ramp) / limit


def defects_of(
    anomaly_maps: np.ndarray, masks: np.ndarray, fpr_limit: float = FPR_LIMIT
) -> Defects:
    """The defect regions of a category.

    Args:
      anomaly_maps: [N, H, W], float32 or float64, finite; larger is more anomalous.
      masks: [N, H, W], bool; True is defective.
      fpr_limit: of the overlaps, in (0, 1].

    Raises:
      ValueError: for other dtypes or shapes, or non-finite scores.
    """
    scores = DefectScores()
    scores.update(anomaly_maps, masks)
    negatives = np.sort(anomaly_maps[~masks])

    def false_positives(values: np.ndarray) -> np.ndarray:
        if not negatives.size:
            return np.full((2, values.size), np.nan)
        sides = [np.searchsorted(negatives, values, side) for side in ("right", "left")]
        return 1.0 - np.stack(sides) / negatives.size

    return scores.compute(false_positives, fpr_limit)


def defect_size_metrics(
    defects: Mapping[str, Defects], thresholds: Mapping[str, float]
) -> dict[str, Any]:
    """Metrics by defect size, in quartiles of the area of all defects together.

    Args:
      defects: of each category.
      thresholds: of the pixels of each category, where there are any.

    Returns:
      "edges": the five areas, as shares of the image, that bound the quartiles; "all" and,
      in "per_category", each category: a list of four, smallest defects first, of
      "num_defects", "overlap" (the mean of `Defects.overlaps`) and "recall": the share of
      defects of which a pixel is above the category's threshold. NaN where there is no
      such defect or no threshold. Empty if there are no defects at all.
    """
    areas = np.concatenate([np.empty(0), *(one.areas for one in defects.values())])
    if not areas.size:
        return {}
    edges = np.quantile(areas, np.linspace(0, 1, NUM_SIZES + 1))
    columns = {name: _columns(one, thresholds.get(name)) for name, one in defects.items()}
    together = np.concatenate(list(columns.values()), axis=1)
    return {
        "edges": edges.tolist(),
        "all": _by_size(together, edges),
        "per_category": {name: _by_size(own, edges) for name, own in columns.items()},
    }


def _columns(defects: Defects, threshold: float | None) -> np.ndarray:
    """[3, R] float64: area, overlap and whether it is found."""
    found = np.full(len(defects.areas), np.nan)
    if threshold is not None:
        found = (defects.peaks > threshold).astype(float)
    return np.stack([defects.areas, defects.overlaps, found])


def _by_size(columns: np.ndarray, edges: Sequence[float]) -> list[dict[str, Any]]:
    areas, overlaps, found = columns
    size = np.searchsorted(edges[1:-1], areas)
    return [
        {
            "num_defects": int((size == quartile).sum()),
            "overlap": _mean(overlaps[size == quartile]),
            "recall": _mean(found[size == quartile]),
        }
        for quartile in range(NUM_SIZES)
    ]


def _mean(values: np.ndarray) -> float:
    """The mean of those that are defined; NaN if none is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else np.nan
