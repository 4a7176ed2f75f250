"""What single data sets are measured by, besides the seven metrics.

MVTec LOCO AD: sPRO for each kind of defect. Real-IAD: a product is seen from several sides.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from harmoniad_jax.config import EvaluationConfig
from harmoniad_jax.data.masks import read_regions
from harmoniad_jax.data.records import GOOD, Record
from harmoniad_jax.metrics import au_spro, ranking_metrics
from harmoniad_jax.metrics.saturated import SPRO_FPR_LIMIT

KIND_METRICS = ("au_spro", "image_auroc")
SAMPLE_METRICS = ("sample_auroc", "sample_ap", "sample_f1max")


def kinds_of(
    records: Sequence[Record],
    anomaly_maps: np.ndarray,
    scores: np.ndarray,
    settings: EvaluationConfig,
) -> dict[str, dict[str, float]]:
    """sPRO and image AUROC of each kind of defect, against the good images.

    Args:
      records: N test images of a category.
      anomaly_maps: [N, H', W'] float32.
      scores: [N] float32.
      settings: `mask_rule` is read.

    Returns:
      Kind -> `KIND_METRICS` and "num_images", the defective ones; NaN where undefined.
      Images whose masks are lost count in the AUROC only. Empty where no masks are kept
      apart.
    """
    if not any(record.masks for record in records):
        return {}
    regions, saturations = read_regions(records, anomaly_maps.shape[1:], settings.mask_rule)
    defects = np.array([record.defect for record in records])
    known = np.array([len(masks) > 0 for masks in regions]) | (defects == GOOD)
    kinds = {}
    for kind in sorted(set(defects.tolist()) - {GOOD}):
        chosen = (defects == GOOD) | (defects == kind)
        rows = np.flatnonzero(chosen & known)
        kinds[kind] = {
            "au_spro": au_spro(
                anomaly_maps[rows],
                [regions[row] for row in rows],
                [saturations[row] for row in rows],
                SPRO_FPR_LIMIT,
            ),
            "image_auroc": ranking_metrics(scores[chosen], defects[chosen] == kind).auroc,
            "num_images": int((defects == kind).sum()),
        }
    return kinds


def samples_of(records: Sequence[Record], scores: np.ndarray) -> dict[str, float]:
    """How well products are judged that were photographed from several sides.

    A product's score is the largest of its images; it is defective if any of them is.

    Args:
      records: N test images of a category.
      scores: [N] float32.

    Returns:
      `SAMPLE_METRICS` in [0, 1], NaN where undefined, and "num_samples". Empty where no
      image has a sample.
    """
    if not all(record.sample for record in records):
        return {}
    largest: dict[str, float] = {}
    defective: dict[str, bool] = {}
    for record, score in zip(records, scores.tolist(), strict=True):
        name = record.sample
        largest[name] = max(largest.get(name, -math.inf), score)
        defective[name] = defective.get(name, False) or record.is_anomalous
    metrics = ranking_metrics(
        np.array(list(largest.values())), np.array([*defective.values()])
    )
    return {**dict(zip(SAMPLE_METRICS, metrics, strict=True)), "num_samples": len(largest)}


def with_means(
    per_category: Mapping[str, Mapping[str, float]], names: Sequence[str]
) -> dict[str, dict]:
    """Metrics of categories, and their means over those in which they are defined.

    Returns:
      "per_category" and "mean"; empty if there is no category.
    """
    if not per_category:
        return {}
    means = {}
    for name in names:
        values = [metrics[name] for metrics in per_category.values()]
        defined = [value for value in values if not math.isnan(value)]
        means[name] = math.fsum(defined) / len(defined) if defined else math.nan
    return {"per_category": dict(per_category), "mean": means}


def kinds_with_means(
    per_category: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> dict[str, dict]:
    """The same of `kinds_of`; in "mean" for each kind, and for "all kinds".

    "fpr_limit" is that of sPRO, which is the publisher's whatever else is measured.
    """
    per_category = {name: kinds for name, kinds in per_category.items() if kinds}
    if not per_category:
        return {}
    means = {}
    for kind in sorted({kind for kinds in per_category.values() for kind in kinds}):
        of_kind = {name: k[kind] for name, k in per_category.items() if kind in k}
        means[kind] = with_means(of_kind, KIND_METRICS)["mean"]
    means["all kinds"] = with_means(means, KIND_METRICS)["mean"]
    return {"fpr_limit": SPRO_FPR_LIMIT, "per_category": per_category, "mean": means}
