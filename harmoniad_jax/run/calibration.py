"""Measures what good images score: once, on training images that training never saw."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from harmoniad_jax.config import EvaluationConfig
from harmoniad_jax.fields import SCORES, touching
from harmoniad_jax.run.levels import PixelLevels
from harmoniad_jax.run.normality import GoodImages, Normality
from harmoniad_jax.run.stored import stored_score_settings


class Calibration(GoodImages):
    """Good images of a run, as they are measured and stored with a checkpoint."""

    @classmethod
    def measure(
        cls,
        settings: EvaluationConfig,
        products: Iterable[tuple[str, Iterable[tuple[np.ndarray, float]]]],
        trained: Collection[str] = (),
        appearance: Mapping[str, Sequence[Mapping[str, float]]] | None = None,
    ) -> "Calibration":
        """Measures held-out images, in memory that does not grow with their number.

        Args:
          settings: that maps and scores were made with.
          products: each category once, with the map [H', W'] float32 and the score of each
            of its images; at least one image.
          trained: all categories of the run, whether images of them were held out or not.
          appearance: of each category's images; None or without it: it was not measured.
        """
        all_levels, all_scores, appearance = PixelLevels(), [], appearance or {}
        per_category = {}
        for category, images in products:
            levels, scores = PixelLevels(), []
            for anomaly_map, score in images:
                levels.add(anomaly_map)
                all_levels.add(anomaly_map)
                scores.append(score)
            look = appearance.get(category, ())
            per_category[category] = Normality.measured(levels, np.float32(scores), look)
            all_scores += scores
        return cls(
            score_settings(settings),
            # Several products have no appearance in common.
            Normality.measured(
                *(all_levels, np.float32(all_scores)),
                look if len(per_category) == 1 else (),
            ),
            dict(sorted(per_category.items())),
            tuple(sorted(set(trained) - set(per_category))),
        )

    def fits(self, settings: EvaluationConfig) -> bool:
        """Whether scores made with these settings can be compared with it."""
        return dict(self.settings) == score_settings(settings)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """A stored one, which may be of an earlier version."""
        settings = stored_score_settings(values["settings"])
        return super().from_json({**values, "settings": settings})


def score_settings(settings: EvaluationConfig) -> dict[str, float]:
    """The settings that touch scores, by name."""
    return {name: getattr(settings, name) for name in touching(EvaluationConfig, SCORES)}


def by_category(
    categories: Sequence[str], maps: Sequence[np.ndarray], scores: np.ndarray
) -> Iterator[tuple[str, Iterator[tuple[np.ndarray, float]]]]:
    """What `Calibration.measure` takes, of images in any order: N of each."""
    for category, rows in rows_by_category(categories).items():
        yield category, ((maps[row], scores[row]) for row in rows)


def rows_by_category(categories: Sequence[str]) -> dict[str, list[int]]:
    """The rows of each category, in order of its first one."""
    rows: dict[str, list[int]] = {}
    for row, category in enumerate(categories):
        rows.setdefault(category, []).append(row)
    return rows
