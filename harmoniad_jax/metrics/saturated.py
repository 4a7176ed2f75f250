"""sPRO: how well defects are found of which a part is enough, at few false positives."""

import math
from collections.abc import Sequence

import numpy as np

from harmoniad_jax.metrics.ranking import Ranking, check_scores, rank
from harmoniad_jax.metrics.regions import aupro_of, check_limit

SPRO_FPR_LIMIT = 0.05  # of the source that `au_spro` names


def au_spro(
    anomaly_maps: np.ndarray,
    regions: Sequence[np.ndarray],
    saturations: Sequence[np.ndarray],
    fpr_limit: float = SPRO_FPR_LIMIT,
) -> float:
    """Computes the exact normalised area under the curve of saturated overlaps.

    The saturated overlap of a defect region is min(found / saturation, 1), of the number of
    its pixels at or above a threshold. The curve is the mean over all regions, which may
    overlap, against the false-positive rate over the pixels that are in no region, of all
    images. Every score is a threshold, equal scores enter together; the area runs from 0 to
    `fpr_limit`, with linear interpolation there, and is divided by it.

    With each saturation the size of its region, and regions that are the 8-connected parts
    of a mask, this is `aupro`.

    Args:
      anomaly_maps: [N, H, W], float32 or float64, finite; larger is more anomalous.
      regions: N times [K, H, W] bool, none of them empty; K = 0 for a good image.
      saturations: N times [K], pixels, positive. A region that has fewer is found when all
        of it is.
      fpr_limit: the largest false-positive rate, in (0, 1].

    Returns:
      A float in [0, 1]; NaN where there is no region or no defect-free pixel.

    Raises:
      ValueError: for other dtypes, shapes, limits or saturations, or non-finite scores.

    Source: Bergmann et al., "Beyond Dents and Scratches: Logical Constraints in
    Unsupervised Anomaly Detection and Localization", IJCV 2022.
    """
    check_limit(fpr_limit)
    ranking = rank_saturated(anomaly_maps, regions, saturations)
    return aupro_of(ranking, fpr_limit) if ranking is not None else math.nan


def rank_saturated(
    anomaly_maps: np.ndarray,
    regions: Sequence[np.ndarray],
    saturations: Sequence[np.ndarray],
) -> Ranking | None:
    """Ranks pixels, weighted by what each adds to the saturated overlap of its region.

    A pixel counts once for each region that it is in. `au_spro` has the shapes. None where
    there is no region.
    """
    anomaly_maps = np.asarray(anomaly_maps)
    _check(anomaly_maps, regions, saturations)
    negatives, positives, weights = [], [], []
    for scores, masks, enough in zip(anomaly_maps, regions, saturations, strict=True):
        negatives.append(scores[~masks.any(axis=0)])
        for mask, saturation in zip(masks, enough, strict=True):
            # Which of equal scores comes first does not matter: they enter together.
            found = np.sort(scores[mask])[::-1]
            positives.append(found)
            overlap = np.arange(len(found) + 1) / min(float(saturation), len(found))
            weights.append(np.diff(np.minimum(overlap, 1.0)))
    if not positives:
        return None
    found = np.concatenate(positives)
    scores = np.concatenate([found, *negatives])
    labels = np.arange(len(scores)) < len(found)
    return rank(scores, labels, np.concatenate(weights))


def _check(
    anomaly_maps: np.ndarray,
    regions: Sequence[np.ndarray],
    saturations: Sequence[np.ndarray],
) -> None:
    """Refuses what `au_spro` says."""
    if anomaly_maps.ndim != 3:
        raise ValueError(
            f"anomaly_maps: received shape {anomaly_maps.shape}, allowed [N, H, W]"
        )
    check_scores(anomaly_maps, np.zeros(anomaly_maps.shape, bool))
    if not len(anomaly_maps) == len(regions) == len(saturations):
        raise ValueError(
            f"regions and saturations: received {len(regions)} and {len(saturations)}, "
            f"allowed one for each of {len(anomaly_maps)} anomaly maps"
        )
    for masks, enough in zip(regions, saturations, strict=True):
        if masks.dtype != np.bool_ or masks.shape[1:] != anomaly_maps.shape[1:]:
            raise ValueError(
                f"regions: received {masks.dtype} {masks.shape}, allowed bool "
                f"[K, {anomaly_maps.shape[1]}, {anomaly_maps.shape[2]}]"
            )
        if not masks.any(axis=(1, 2)).all():
            raise ValueError("regions: received an empty one, allowed one pixel or more")
        if np.shape(enough) != (len(masks),) or not np.all(np.asarray(enough) > 0):
            raise ValueError(
                f"saturations: received {enough}, allowed {len(masks)} positive numbers"
            )
