"""Detection and localisation metrics: per category, then over categories.

`category_metrics` is exact; `StreamingMetrics` bounds its error and its memory.
"""

from harmoniad_jax.metrics.accumulate import (
    METRIC_NAMES,
    category_metrics,
    mean_metrics,
    mean_metrics_per_dataset,
)
from harmoniad_jax.metrics.curves import precision_recall_curve, pro_curve, roc_curve
from harmoniad_jax.metrics.decisions import PixelDecisions, decision_metrics
from harmoniad_jax.metrics.defects import Defects, defect_size_metrics, defects_of
from harmoniad_jax.metrics.ranking import RankingMetrics, ranking_metrics
from harmoniad_jax.metrics.regions import aupro
from harmoniad_jax.metrics.saturated import au_spro
from harmoniad_jax.metrics.streaming import BoundedMetrics, StreamingMetrics

__all__ = [
    "METRIC_NAMES",
    "BoundedMetrics",
    "Defects",
    "PixelDecisions",
    "RankingMetrics",
    "StreamingMetrics",
    "au_spro",
    "aupro",
    "category_metrics",
    "decision_metrics",
    "defect_size_metrics",
    "defects_of",
    "mean_metrics",
    "mean_metrics_per_dataset",
    "precision_recall_curve",
    "pro_curve",
    "ranking_metrics",
    "roc_curve",
]
