"""The test images of one category: predicted, and their metrics computed."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from harmoniad_jax.data.masks import read_masks
from harmoniad_jax.data.records import Record
from harmoniad_jax.evaluation.protocols import kinds_of
from harmoniad_jax.inference.predictor import Predictor
from harmoniad_jax.metrics import (
    Defects,
    PixelDecisions,
    StreamingMetrics,
    category_metrics,
    defects_of,
    pro_curve,
)
from harmoniad_jax.model.scoring import Prediction


class Maps(NamedTuple):
    """Maps and masks of N test images.

    Attributes:
      prediction: of the images.
      masks: [N, H', W'] bool.
      known: [N] bool, False where a defective image has no mask.
    """

    prediction: Prediction
    masks: np.ndarray
    known: np.ndarray


class Measured(NamedTuple):
    """A category after its test images were predicted.

    Attributes:
      records: N test images.
      scores: [N] float32.
      labels: [N] bool.
      metrics: see `metrics.category_metrics`.
      error_bounds: of the metrics; empty where they are exact.
      pro_curve: see `metrics.pro_curve`; None where the maps were not kept.
      defects: its defect regions, on the grid of the maps.
      lost_masks, rescued_defects: counts.
      mask_share: median share of the image that a mask marks; None without masks.
      pixel_decisions: see `metrics.PixelDecisions`; None without threshold.
      kinds: see `protocols.kinds_of`; empty where masks are not kept apart or maps are not
        kept.
    """

    records: Sequence[Record]
    scores: np.ndarray
    labels: np.ndarray
    metrics: dict[str, float]
    error_bounds: dict[str, float]
    pro_curve: tuple[np.ndarray, np.ndarray] | None
    defects: Defects
    lost_masks: int
    rescued_defects: int
    mask_share: float | None
    pixel_decisions: dict[str, float] | None
    kinds: dict[str, dict[str, float]]


def measure(
    predictor: Predictor,
    category: str,
    records: Sequence[Record],
    pixel_threshold: float | None = None,
) -> tuple[Measured, Maps | None]:
    """Predicts the test images of a category and computes its metrics.

    Args:
      predictor: of an opened run.
      category: its name, for the bar of progress.
      records: N test images.
      pixel_threshold: to decide on pixels; None: none is decided on.

    Returns:
      What was measured, and the maps; None with `config.evaluation.streaming`, which keeps
      the maps of one batch at a time.
    """
    settings = predictor.trained.run.config.evaluation
    labels = np.array([record.is_anomalous for record in records])
    if settings.streaming:
        measured = _measure_in_a_stream(
            predictor, category, records, labels, pixel_threshold
        )
        return measured, None
    prediction = predictor(records, category)
    maps, scores = prediction.anomaly_maps, prediction.image_scores
    masks, known, rescued = read_masks(records, maps.shape[1:], settings.mask_rule)
    limit, decisions = settings.fpr_limit, None
    if pixel_threshold is not None:
        pixels = PixelDecisions(pixel_threshold)
        pixels.update(maps[known], masks[known])
        decisions = pixels.compute()
    measured = Measured(
        records=records,
        scores=scores,
        labels=labels,
        metrics=category_metrics(
            *(maps, masks, scores, labels), mask_known=known, fpr_limit=limit
        ),
        error_bounds={},
        pro_curve=pro_curve(maps[known], masks[known], fpr_limit=limit),
        defects=defects_of(maps[known], masks[known], limit),
        lost_masks=int((~known).sum()),
        rescued_defects=rescued,
        mask_share=_median_share(_shares(masks)),
        pixel_decisions=decisions,
        kinds=kinds_of(records, maps, scores, settings),
    )
    return measured, Maps(prediction, masks, known)


def _measure_in_a_stream(
    predictor: Predictor,
    category: str,
    records: Sequence[Record],
    labels: np.ndarray,
    pixel_threshold: float | None,
) -> Measured:
    settings = predictor.trained.run.config.evaluation
    streaming = StreamingMetrics(settings.fpr_limit)
    pixels = None if pixel_threshold is None else PixelDecisions(pixel_threshold)
    scores, shares, lost, rescued = [], [], 0, 0
    for some, prediction in predictor.batches(records, category):
        maps = prediction.anomaly_maps
        masks, known, saved = read_masks(some, maps.shape[1:], settings.mask_rule)
        streaming.update(
            maps,
            masks,
            prediction.image_scores,
            np.array([record.is_anomalous for record in some]),
            mask_known=known,
        )
        if pixels is not None:
            pixels.update(prediction.anomaly_maps[known], masks[known])
        scores.append(prediction.image_scores)
        shares.append(_shares(masks))
        lost, rescued = lost + int((~known).sum()), rescued + saved
    metrics, bounds = streaming.compute()
    return Measured(
        records=records,
        scores=np.concatenate(scores),
        labels=labels,
        metrics=metrics,
        error_bounds=bounds,
        pro_curve=None,
        defects=streaming.defects(),
        lost_masks=lost,
        rescued_defects=rescued,
        mask_share=_median_share(np.concatenate(shares)),
        pixel_decisions=pixels and pixels.compute(),
        kinds={},
    )


def _shares(masks: np.ndarray) -> np.ndarray:
    """[N, H', W'] bool -> the share of the image that each mask marks; no empty masks."""
    shares = masks.mean(axis=(1, 2))
    return shares[shares > 0]


def _median_share(shares: np.ndarray) -> float | None:
    return float(np.median(shares)) if len(shares) else None
