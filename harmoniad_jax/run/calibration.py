"""Measures what good images score: once, on training images that training never saw."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Self

import numpy as np

from harmoniad_jax.config import EvaluationConfig
from harmoniad_jax.fields import SCORES, touching
from harmoniad_jax.run.normality import GoodImages, Normality
from harmoniad_jax.run.stored import stored_score_settings


class Calibration(GoodImages):
    """Good images of a run, as they are measured and stored with a checkpoint."""

    @classmethod
    def measure(
        cls,
        settings: EvaluationConfig,
        categories: Sequence[str],
        maps: Sequence[np.ndarray],
        scores: np.ndarray,
        trained: Collection[str] = (),
        appearance: Sequence[Mapping[str, float]] = (),
    ) -> "Calibration":
        """Measures held-out images.

        Args:
          settings: that maps and scores were made with.
          categories: of each image.
          maps: of each image, [H', W'] float32.
          scores: [N] float32.
          trained: all categories of the run, whether images of them were held out or not.
          appearance: of each image; empty: it was not measured.
        """
        names, known = np.array(categories), sorted(set(categories))

        def normality(rows: np.ndarray, *, mixed: bool = False) -> Normality:
            look = [appearance[row] for row in rows] if appearance and not mixed else ()
            return Normality.of([maps[row] for row in rows], scores[rows], look)

        return cls(
            score_settings(settings),
            normality(np.arange(len(names)), mixed=len(known) > 1),
            {name: normality(np.flatnonzero(names == name)) for name in known},
            tuple(sorted(set(trained) - set(categories))),
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
