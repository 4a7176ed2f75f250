"""The test images of one category: predicted, and their figures computed."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from harmoniad_jax.data.pipeline import read_masks
from harmoniad_jax.data.records import Record
from harmoniad_jax.inference.predictor import Predictor
from harmoniad_jax.metrics import (
    Defects,
    StreamingMetrics,
    category_metrics,
    defects_of,
    pro_curve,
)
from harmoniad_jax.run.run import Run


class Measured(NamedTuple):
    """A category after its test images were predicted.

    Attributes:
      records: N test images.
      scores: [N] float32.
      labels: [N] bool.
      figures: see `metrics.category_metrics`.
      error_bounds: of the figures; empty where they are exact.
      pro_curve: see `metrics.pro_curve`; None where the maps were not kept.
      defects: its defect regions, on the grid of the maps.
      lost_masks, rescued_defects: counts.
    """

    records: Sequence[Record]
    scores: np.ndarray
    labels: np.ndarray
    figures: dict[str, float]
    error_bounds: dict[str, float]
    pro_curve: tuple[np.ndarray, np.ndarray] | None
    defects: Defects
    lost_masks: int
    rescued_defects: int


def measure(
    run: Run, predictor: Predictor, category: str, records: Sequence[Record]
) -> Measured:
    """Predicts the test images of a category and computes its figures."""
    settings = run.config.evaluation
    labels = np.array([record.is_anomalous for record in records])

    def masks_of(some: Sequence[Record]) -> tuple[np.ndarray, np.ndarray, int]:
        return read_masks(some, settings.map_side, settings.mask_rule)

    if not settings.streaming:
        prediction = predictor(records, category)
        maps, scores = prediction.anomaly_maps, prediction.image_scores
        masks, known, rescued = masks_of(records)
        figures = category_metrics(maps, masks, scores, labels, mask_known=known)
        curve = pro_curve(maps[known], masks[known])
        defects = defects_of(maps[known], masks[known])
        lost = int((~known).sum())
        return Measured(
            *(records, scores, labels, figures, {}, curve, defects, lost, rescued)
        )

    metrics, scores, lost, rescued = StreamingMetrics(), [], 0, 0
    for some, prediction in predictor.batches(records, category):
        masks, known, saved = masks_of(some)
        metrics.update(
            prediction.anomaly_maps,
            masks,
            prediction.image_scores,
            np.array([record.is_anomalous for record in some]),
            mask_known=known,
        )
        scores.append(prediction.image_scores)
        lost, rescued = lost + int((~known).sum()), rescued + saved
    figures, bounds = metrics.compute()
    defects, scores = metrics.defects(), np.concatenate(scores)
    return Measured(
        *(records, scores, labels, figures, bounds, None, defects, lost, rescued)
    )
