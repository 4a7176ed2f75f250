"""Exact detection and localisation metrics: per category, then over categories."""

from harmoniad_jax.metrics.accumulate import (
    METRIC_NAMES,
    category_metrics,
    mean_metrics,
    mean_metrics_per_dataset,
)
from harmoniad_jax.metrics.ranking import RankingMetrics, ranking_metrics
from harmoniad_jax.metrics.regions import aupro

__all__ = [
    "METRIC_NAMES",
    "RankingMetrics",
    "aupro",
    "category_metrics",
    "mean_metrics",
    "mean_metrics_per_dataset",
    "ranking_metrics",
]
