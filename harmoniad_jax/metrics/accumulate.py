"""The seven metrics of one category, and their mean over categories."""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from harmoniad_jax.metrics.ranking import check_scores, metrics_of, ranking_metrics
from harmoniad_jax.metrics.regions import FPR_LIMIT, aupro_of, check_limit, rank_regions

METRIC_NAMES = (
    "image_auroc",
    "image_ap",
    "image_f1max",
    "pixel_auroc",
    "pixel_ap",
    "pixel_f1max",
    "pixel_aupro",
)


def category_metrics(
    anomaly_maps: np.ndarray,
    masks: np.ndarray,
    image_scores: np.ndarray,
    image_labels: np.ndarray,
    *,
    mask_known: np.ndarray | None = None,
    fpr_limit: float = FPR_LIMIT,
) -> dict[str, float]:
    """Computes the seven metrics of one category.

    The image label never comes from the mask. A defective image whose mask is lost or
    empty has pixels of unknown label: it counts in the image metrics only.

    Args:
      anomaly_maps: [N, H, W], float32 or float64, finite; larger is more anomalous.
      masks: [N, H, W], bool; True is defective.
      image_scores: [N], float32 or float64, finite; larger is more anomalous.
      image_labels: [N], bool; True is defective.
      mask_known: [N], bool; False leaves the image out of the pixel metrics. Default:
        all True.
      fpr_limit: of AUPRO, in (0, 1].

    Returns:
      `METRIC_NAMES` to floats in [0, 1], NaN where undefined; `num_images` to N.

    Raises:
      ValueError: for other dtypes, shapes or limits, or non-finite scores.
    """
    check_limit(fpr_limit)
    predictions = Predictions.checked(
        anomaly_maps, masks, image_scores, image_labels, mask_known
    )
    image = ranking_metrics(predictions.image_scores, predictions.image_labels)
    pixels = rank_regions(predictions.anomaly_maps, predictions.masks)
    return named_metrics(
        (*image, *metrics_of(pixels), aupro_of(pixels, fpr_limit)),
        len(predictions.image_scores),
    )


def named_metrics(values: Iterable[float], num_images: int) -> dict[str, float]:
    """The seven metrics under their names, with the number of images."""
    return {**dict(zip(METRIC_NAMES, values, strict=True)), "num_images": num_images}


class Predictions(NamedTuple):
    """What the metrics are computed of: all images, and the pixels of known label."""

    anomaly_maps: np.ndarray  # [M, H, W], of images whose pixels have labels
    masks: np.ndarray  # [M, H, W] bool
    image_scores: np.ndarray  # [N]
    image_labels: np.ndarray  # [N] bool

    @classmethod
    def checked(
        cls,
        anomaly_maps: np.ndarray,
        masks: np.ndarray,
        image_scores: np.ndarray,
        image_labels: np.ndarray,
        mask_known: np.ndarray | None,
    ) -> "Predictions":
        """Takes and refuses what `category_metrics` says."""
        anomaly_maps, masks = np.asarray(anomaly_maps), np.asarray(masks)
        image_scores, image_labels = np.asarray(image_scores), np.asarray(image_labels)
        if anomaly_maps.ndim != 3 or masks.shape != anomaly_maps.shape:
            raise ValueError(
                f"anomaly_maps and masks: received shapes {anomaly_maps.shape} and "
                f"{masks.shape}, allowed the same [N, H, W]"
            )
        num_images = len(anomaly_maps)
        if mask_known is None:
            mask_known = np.ones(num_images, dtype=bool)
        mask_known = np.asarray(mask_known)
        if mask_known.dtype != np.bool_:
            raise ValueError(f"mask_known: received dtype {mask_known.dtype}, allowed bool")
        for name, array in (
            ("image_scores", image_scores),
            ("image_labels", image_labels),
            ("mask_known", mask_known),
        ):
            if array.shape != (num_images,):
                raise ValueError(
                    f"{name}: received shape {array.shape}, allowed ({num_images},), "
                    "one value for each anomaly map"
                )
        check_scores(image_scores, image_labels)
        check_scores(anomaly_maps, masks)
        has_pixel_labels = mask_known & (masks.any(axis=(1, 2)) | ~image_labels)
        if not has_pixel_labels.all():
            anomaly_maps, masks = anomaly_maps[has_pixel_labels], masks[has_pixel_labels]
        return cls(anomaly_maps, masks, image_scores, image_labels)


def mean_metrics(per_category: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Averages each metric over the categories in which it is defined.

    Args:
      per_category: category to the result of `category_metrics`.

    Returns:
      `METRIC_NAMES` to the means, NaN where no category defines the metric;
      `num_images` to the sum.
    """
    means: dict[str, float] = {}
    for name in METRIC_NAMES:
        values = [metrics[name] for metrics in per_category.values()]
        defined = [value for value in values if not math.isnan(value)]
        means[name] = math.fsum(defined) / len(defined) if defined else math.nan
    means["num_images"] = sum(metrics["num_images"] for metrics in per_category.values())
    return means


def mean_metrics_per_dataset(
    per_category: Mapping[str, Mapping[str, float]],
) -> dict[str, dict[str, float]]:
    """Averages over the categories of each data set, where several were joined.

    Args:
      per_category: as for `mean_metrics`; categories called DATA_SET/CLASS.

    Returns:
      Data set to its `mean_metrics`; empty for categories without a data set's name.
    """
    datasets: dict[str, dict[str, Mapping[str, float]]] = {}
    for category, metrics in per_category.items():
        dataset, slash, _ = category.partition("/")
        if slash:
            datasets.setdefault(dataset, {})[category] = metrics
    return {name: mean_metrics(categories) for name, categories in datasets.items()}
