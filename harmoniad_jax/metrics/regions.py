"""AUPRO: how well anomaly maps cover each defect region, at few false positives."""

import math

import numpy as np
from scipy import ndimage

from harmoniad_jax.metrics.ranking import Ranking, check_scores, detection_curve, rank

FPR_LIMIT = 0.3  # of the source that `aupro` names

# 8-connected within an image, not connected between images: one call labels all.
CONNECTED = np.zeros((3, 3, 3), dtype=bool)
CONNECTED[1] = True


def aupro(
    anomaly_maps: np.ndarray, masks: np.ndarray, fpr_limit: float = FPR_LIMIT
) -> float:
    """Computes the exact normalised area under the per-region overlap curve.

    The curve is the mean over all 8-connected defect regions of the share of the region
    at or above a threshold, against the false-positive rate over the defect-free pixels
    of all images. Every score is a threshold, equal scores enter together; the area
    runs from 0 to `fpr_limit`, with linear interpolation there, and is divided by it.

    Args:
      anomaly_maps: [N, H, W], float32 or float64, finite; larger is more anomalous.
      masks: [N, H, W], bool; True is defective.
      fpr_limit: the largest false-positive rate, in (0, 1].

    Returns:
      A float in [0, 1]; NaN where there is no region or no defect-free pixel.

    Raises:
      ValueError: for other dtypes, shapes or limits, or non-finite scores.

    Source: Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021.
    """
    check_limit(fpr_limit)
    return aupro_of(rank_regions(anomaly_maps, masks), fpr_limit)


def check_limit(fpr_limit: float) -> None:
    """Refuses a false-positive rate outside (0, 1] with a ValueError."""
    if not 0 < fpr_limit <= 1:
        raise ValueError(f"fpr_limit: received {fpr_limit}, allowed 0 < fpr_limit <= 1")


def rank_regions(anomaly_maps: np.ndarray, masks: np.ndarray) -> Ranking:
    """Ranks pixels, weighted such that every region weighs one; `aupro` has the shapes."""
    anomaly_maps, masks = np.asarray(anomaly_maps), np.asarray(masks)
    if anomaly_maps.ndim != 3:
        raise ValueError(
            f"anomaly_maps: received shape {anomaly_maps.shape}, allowed [N, H, W]"
        )
    check_scores(anomaly_maps, masks)
    return rank(anomaly_maps, masks, region_weights(masks))


def region_weights(masks: np.ndarray) -> np.ndarray:
    """One over the size of its region, for each defect pixel.

    Args:
      masks: [N, H, W], bool; True is defective.

    Returns:
      [P] float64 in (0, 1], in the order of `masks[masks]`.
    """
    region = ndimage.label(masks, structure=CONNECTED)[0][masks]
    return 1.0 / np.bincount(region)[region]


def aupro_of(ranking: Ranking, fpr_limit: float = FPR_LIMIT) -> float:
    """The AUPRO of pixels that `rank_regions` ranked, in [0, 1] or NaN."""
    if not ranking.is_defined:
        return math.nan
    rate, overlap = curve_up_to(fpr_limit, *detection_curve(ranking))
    return float(np.trapezoid(overlap, rate) / fpr_limit)


def curve_up_to(
    limit: float, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The part of a curve up to x = `limit`, with linear interpolation there.

    Args:
      limit: in (0, max(x)].
      x: [K], rising, from 0.
      y: [K].

    Returns:
      x and y of the vertices; the last x is `limit`.
    """
    kept = np.searchsorted(x, limit, side="right")
    return np.append(x[:kept], limit), np.append(y[:kept], np.interp(limit, x, y))
