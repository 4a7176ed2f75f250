"""AUPRO: how well anomaly maps cover each defect region, at few false positives."""

import math

import numpy as np
from scipy import ndimage

from harmoniad_jax.metrics.ranking import check_scores

# 8-connected within an image, not connected between images: one call labels all.
_CONNECTED = np.zeros((3, 3, 3), dtype=bool)
_CONNECTED[1] = True


def aupro(anomaly_maps: np.ndarray, masks: np.ndarray, fpr_limit: float = 0.3) -> float:
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
    anomaly_maps, masks = np.asarray(anomaly_maps), np.asarray(masks)
    if anomaly_maps.ndim != 3:
        raise ValueError(
            f"anomaly_maps: received shape {anomaly_maps.shape}, allowed [N, H, W]"
        )
    if not 0 < fpr_limit <= 1:
        raise ValueError(f"fpr_limit: received {fpr_limit}, allowed 0 < fpr_limit <= 1")
    check_scores(anomaly_maps, masks)
    num_defective = int(np.count_nonzero(masks))
    num_defect_free = masks.size - num_defective
    if num_defective == 0 or num_defect_free == 0:
        return math.nan

    # Both selections list the defect pixels in the same order. Every region weighs the
    # same, so a pixel weighs one over the size of its region.
    region = ndimage.label(masks, structure=_CONNECTED)[0][masks]
    pixel_weight = 1.0 / np.bincount(region)[region].astype(np.float64)
    thresholds, tie = np.unique(anomaly_maps[masks], return_inverse=True)
    overlap_gain = np.bincount(tie, weights=pixel_weight)

    # Overlap changes only at the scores of defect pixels, so the curve is straight
    # between two of them and these need two vertices each: just before the score
    # (higher ones only) and at it. The defect-free pixels are sorted by value alone.
    defect_free = anomaly_maps[~masks]
    defect_free.sort()
    thresholds = thresholds[::-1]
    above = num_defect_free - np.searchsorted(defect_free, thresholds, side="right")
    at_or_above = num_defect_free - np.searchsorted(defect_free, thresholds)
    overlap = np.concatenate([[0.0], np.cumsum(overlap_gain[::-1])])
    overlap /= overlap[-1]  # The number of regions, up to rounding: ends at exactly 1.

    curve_fpr = np.stack([above, at_or_above], axis=1).ravel() / num_defect_free
    curve_overlap = np.stack([overlap[:-1], overlap[1:]], axis=1).ravel()
    curve_fpr = np.concatenate([[0.0], curve_fpr, [1.0]])
    curve_overlap = np.concatenate([[0.0], curve_overlap, [1.0]])

    kept = np.searchsorted(curve_fpr, fpr_limit, side="right")
    overlap_at_limit = np.interp(fpr_limit, curve_fpr, curve_overlap)
    area = np.trapezoid(
        np.append(curve_overlap[:kept], overlap_at_limit),
        np.append(curve_fpr[:kept], fpr_limit),
    )
    return float(area / fpr_limit)
