"""The seven metrics of maps that do not fit in memory, with bounds on their errors."""

import math
from typing import NamedTuple

import numpy as np

from harmoniad_jax.metrics.accumulate import METRIC_NAMES, Predictions, named_metrics
from harmoniad_jax.metrics.defects import Defects, DefectScores
from harmoniad_jax.metrics.ranking import Ranking, metrics_of, ranking_metrics
from harmoniad_jax.metrics.regions import (
    FPR_LIMIT,
    aupro_of,
    check_limit,
    region_weights,
)

# A bin is the leading bits of a float32: sign, exponent and 13 bits of the mantissa. Read
# as integers they are in the order of the numbers, exactly, and a bin is at most 1/8192
# of its scores wide, whatever their scale: no range has to be guessed or measured first.
# (Bins of equal width would need one, and be too coarse where most pixels are or too many
# for tails of tens of deviations; quantiles need the data first.) Exponents that no
# detector gives would cost six times the memory. So scores nearer to zero than the
# smallest magnitude share one bin a sign, and those beyond the largest the outermost ones:
# the bounds hold there too, they only get wider.
_SHIFT = 23 - 13  # of the 23 bits of the mantissa
_MAGNITUDES = np.array([2.0**-20, np.nextafter(np.float32(2**20), 0)], np.float32)
_FIRST, _LAST = (int(bits) >> _SHIFT for bits in _MAGNITUDES.view(np.int32))
_BINS_PER_SIGN = _LAST - _FIRST + 1
NUM_BINS = 2 * _BINS_PER_SIGN

# Scores of a defect that are kept, for metrics by size.
_SCORES_PER_DEFECT = 64

# More than float64 can lose in the sums below, which are of at most 1e7 terms each.
_ROUNDING = 1e-8


class BoundedMetrics(NamedTuple):
    """Metrics, and how far at most each of them is from the exact one."""

    metrics: dict[str, float]  # as of `category_metrics`
    bounds: dict[str, float]  # `METRIC_NAMES` to floats >= 0, NaN where undefined


class StreamingMetrics:
    """Collects one category batch by batch, in memory that does not grow with its maps.

    What is kept of the maps is a histogram of the scores of defect-free pixels, of defect
    pixels, and of defect pixels weighted by one over the size of their region: 16 MB.
    Image scores are few and are kept, nine bytes an image, so image metrics are exact. Of
    each defect less than 0.5 KB is kept, for metrics by size.

        metrics = StreamingMetrics()
        for batch in batches:
            metrics.update(maps, masks, image_scores, image_labels)
        values, bounds = metrics.compute()
    """

    def __init__(self, fpr_limit: float = FPR_LIMIT):
        """Begins with no image; `fpr_limit`: of AUPRO, in (0, 1]."""
        check_limit(fpr_limit)
        self._fpr_limit = fpr_limit
        # Counts in float64, exact up to 2**53: defect pixels, their weights, the others.
        self._histograms = np.zeros((3, NUM_BINS))
        self._image_scores: list[np.ndarray] = []
        self._image_labels: list[np.ndarray] = []
        self._defects = DefectScores(_SCORES_PER_DEFECT)

    def update(
        self,
        anomaly_maps: np.ndarray,
        masks: np.ndarray,
        image_scores: np.ndarray,
        image_labels: np.ndarray,
        *,
        mask_known: np.ndarray | None = None,
    ) -> None:
        """Adds B images, in any order; see `category_metrics` for what is allowed.

        Args:
          anomaly_maps: [B, H, W], float32 or float64, finite; larger is more anomalous.
          masks: [B, H, W], bool; True is defective.
          image_scores: [B], float32 or float64, finite; larger is more anomalous.
          image_labels: [B], bool; True is defective.
          mask_known: [B], bool; False leaves the image out of the pixel metrics. Default:
            all True.

        Raises:
          ValueError: for other dtypes or shapes, or non-finite scores; nothing of the
            batch is added then.
        """
        batch = Predictions.checked(
            anomaly_maps, masks, image_scores, image_labels, mask_known
        )
        bins = score_bins(batch.anomaly_maps)
        defective = bins[batch.masks]
        positives, weights, negatives = self._histograms
        positives += np.bincount(defective, minlength=NUM_BINS)
        weights += np.bincount(defective, region_weights(batch.masks), NUM_BINS)
        negatives += np.bincount(bins[~batch.masks], minlength=NUM_BINS)
        self._defects.update(batch.anomaly_maps, batch.masks)
        # Copies: the caller may use the memory of a batch again.
        self._image_scores.append(batch.image_scores.astype(np.float64))
        self._image_labels.append(batch.image_labels.copy())

    def compute(self) -> BoundedMetrics:
        """The metrics of all images so far; more may be added afterwards."""
        image = ranking_metrics(
            np.concatenate([np.empty(0), *self._image_scores]),
            np.concatenate([np.empty(0, bool), *self._image_labels]),
        )
        pixels = bounded_metrics(rank_bins(*self._histograms), self._fpr_limit)
        pixel, pixel_bounds = (metrics.tolist() for metrics in pixels)
        image_bounds = [value if math.isnan(value) else 0.0 for value in image]
        return BoundedMetrics(
            named_metrics((*image, *pixel), sum(map(len, self._image_scores))),
            dict(zip(METRIC_NAMES, (*image_bounds, *pixel_bounds), strict=True)),
        )

    def defects(self) -> Defects:
        """The defects so far; an overlap is off by a bin and by 1 / 64 at most."""
        _, _, negatives = self._histograms
        # From the top: how many score as high as each bin, and how many higher.
        up_to = np.cumsum(negatives[::-1])[::-1]
        above = up_to - negatives

        def false_positives(values: np.ndarray) -> np.ndarray:
            bins = score_bins(values)
            with np.errstate(invalid="ignore"):  # NaN where there are none
                return np.stack([above[bins], up_to[bins]]) / up_to[0]

        return self._defects.compute(false_positives, self._fpr_limit)


def score_bins(scores: np.ndarray) -> np.ndarray:
    """The bin of each score: a score in a higher bin is larger.

    Args:
      scores: any shape, float32 or float64, finite.

    Returns:
      The same shape, int32 in [0, NUM_BINS). Equal scores share a bin, and so do 0 and -0.
    """
    # The cast of float64 rounds, which may join neighbours but never swaps them.
    magnitude = np.clip(np.abs(scores), *_MAGNITUDES).astype(np.float32, copy=False)
    bins = (magnitude.view(np.int32) >> _SHIFT) + (_BINS_PER_SIGN - _FIRST)
    return np.where(scores < 0, NUM_BINS - 1 - bins, bins)


def rank_bins(positives: np.ndarray, weights: np.ndarray, negatives: np.ndarray) -> Ranking:
    """Ranks pixels as if all scores of a bin were equal.

    Args:
      positives: [bins], how many defect pixels are in each bin, lowest scores first.
      weights: [bins], the sum of their weights.
      negatives: [bins], how many defect-free pixels.
    """
    positives, weights, negatives = positives[::-1], weights[::-1], negatives[::-1]
    rows = np.flatnonzero(positives)
    return Ranking(
        positives=positives[rows],
        weights=weights[rows],
        negatives_above=(np.cumsum(negatives) - negatives)[rows],
        negatives_tied=negatives[rows],
        num_negatives=int(negatives.sum()),
    )


def bounded_metrics(
    ranking: Ranking, fpr_limit: float = FPR_LIMIT
) -> tuple[np.ndarray, np.ndarray]:
    """The four pixel metrics, and how far from those of the true order within bins.

    Scores of different bins are in order; within a bin any order is possible, ties too.
    Let a bin hold p positives and n negatives, with T and F of them in higher bins, and
    P positives there are in all. No order within the bins gives more than the best one,
    where the positives of each bin are tied above its negatives:

    - AUROC counts pairs in order, of which a bin has p n, all of them right here.
    - AP: the precision at a positive is (T + t) / (T + t + F + f), where t <= p and f >= 0
      of the bin score at least as high; it is largest at t = p and f = 0, as here.
    - F1 at its score is 2 (T + t) / (P + T + t + F + f), largest there too.
    - The curve of AUPRO rises within the box that the bin's false-positive rate and
      overlap span, so it lies below the left and upper sides of the box, as here.

    None gives less than the worst one, where the positives are tied below the negatives:
    no pair in order; the lower and right sides of the box; and a threshold at the lowest
    score of a bin finds t = p and f = n in any order, so the largest F1 of these is
    reached. AP alone can be lower: where the positives come one by one, the k-th has at
    least t = k and f <= n, so a precision of at least g(k) = (T + k) / (T + k + F + n).
    As g is concave, the sum of g(1) to g(p) is at least p (g(1) + g(p)) / 2.

    Returns:
      AUROC, AP, F1-max and AUPRO of tied bins, [4] float64 in [0, 1], between the worst
      and the best; and the larger of the distances to those, [4] float64. NaN where there
      are only positives or only negatives.
    """
    above, tied = ranking.negatives_above, ranking.negatives_tied
    nothing = np.zeros_like(tied)
    best = _metrics(ranking._replace(negatives_tied=nothing), fpr_limit)
    last = ranking._replace(negatives_above=above + tied, negatives_tied=nothing)
    worst = _metrics(last, fpr_limit)
    if ranking.is_defined:
        up_to = np.cumsum(ranking.positives)
        first = up_to - ranking.positives + 1
        gain = up_to / (up_to + above + tied) - first / (first + above + tied)
        worst[1] -= np.sum(ranking.positives * gain) / 2 / up_to[-1]
    values = _metrics(ranking, fpr_limit)
    return values, np.maximum(best - values, values - worst) + _ROUNDING


def _metrics(ranking: Ranking, fpr_limit: float) -> np.ndarray:
    return np.array([*metrics_of(ranking), aupro_of(ranking, fpr_limit)])
