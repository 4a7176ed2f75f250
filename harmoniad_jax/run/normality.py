"""What good images score, and the thresholds that follow from it.

Scores and quantiles are kept, not thresholds, so that the accepted rate of false positives
can be changed afterwards without the images. Nothing here knows how they were measured: an
exported model carries the same.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from harmoniad_jax.run.levels import PIXEL_SHARES, PixelLevels

# A rate such as 0.01 is not quite that in binary; no rank shall hang on the difference.
ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Normality:
    """Scores and pixels of good images.

    Attributes:
      scores: [N] image scores, ascending.
      pixel_levels: [102] levels that `PIXEL_SHARES` of the pixels exceed.
      appearance: [N] of each of `data.appearance.PROPERTIES`, ascending; empty where it was
        not measured, as in earlier versions, or several products are mixed.
    """

    scores: tuple[float, ...]
    pixel_levels: tuple[float, ...]
    appearance: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        maps: Iterable[np.ndarray],
        scores: np.ndarray,
        appearance: Sequence[Mapping[str, float]] = (),
    ) -> "Normality":
        """Measures good images.

        Args:
          maps: N of [H', W'] float32, of any shapes.
          scores: [N] float32.
          appearance: of each image; empty: it was not measured.
        """
        levels = PixelLevels()
        for one in maps:
            levels.add(one)
        return cls.measured(levels, scores, appearance)

    @classmethod
    def measured(
        cls,
        levels: PixelLevels,
        scores: np.ndarray,
        appearance: Sequence[Mapping[str, float]] = (),
    ) -> "Normality":
        """The same of images whose pixels were collected."""
        names = appearance[0] if appearance else ()
        return cls(
            tuple(np.sort(scores).tolist()),
            levels.compute(),
            {name: tuple(sorted(one[name] for one in appearance)) for name in names},
        )

    def threshold(self, false_positive_rate: float) -> float:
        """The score above which an image is called defective.

        The k-th smallest of N scores, k = ceil((N + 1) (1 - rate)): a new good image
        exceeds it with a probability of at most the rate (Vovk, Gammerman and Shafer,
        "Algorithmic Learning in a Random World", 2005). Where N is too small for that,
        the largest score.
        """
        count = len(self.scores)
        exact = (count + 1) * (1.0 - false_positive_rate)
        rank = min(math.ceil(exact - ROUNDING), count)
        return self.scores[max(rank, 1) - 1]

    def supports(self, false_positive_rate: float) -> bool:
        """Whether there are enough scores to keep that rate."""
        return (len(self.scores) + 1) * false_positive_rate >= 1.0 - ROUNDING

    def pixel_threshold(self, false_positive_rate: float) -> float:
        """The level that a share of the good pixels exceeds."""
        # np.interp wants its grid ascending.
        return float(
            np.interp(
                np.log(false_positive_rate),
                np.log(PIXEL_SHARES[::-1]),
                self.pixel_levels[::-1],
            )
        )

    def normalise_score(self, score: float, threshold: float) -> float:
        """A score in [0, 1): 0 up to the median of good images, 0.5 at the threshold."""
        return _normalise(score, float(np.median(self.scores)), threshold)

    def normalise_map(self, anomaly_map: np.ndarray, threshold: float) -> np.ndarray:
        """A map in [0, 1): 0 up to the median of good pixels, 0.5 at the threshold."""
        return _normalise(anomaly_map, self.pixel_levels[0], threshold)


@dataclasses.dataclass(frozen=True)
class GoodImages:
    """Good images of a run, of each category and of all together.

    Attributes:
      settings: those that touch scores, as it was measured with them.
      overall: all held-out images.
      per_category: of each category that has any.
      others: the categories of training that have none, since a single image of them was
        there to train on. They are judged as all together.
    """

    settings: Mapping[str, float]
    overall: Normality
    per_category: Mapping[str, Normality]
    others: tuple[str, ...] = ()

    def of(self, category: str | None) -> Normality:
        """The good images of a category, or of all where it is not known or has none.

        Where only one of several products was measured, all together look like it. Images
        of the remaining ones do not, so that their appearance is not known.
        """
        if known := self.per_category.get(category):
            return known
        if self.others and self.overall.appearance:
            return dataclasses.replace(self.overall, appearance={})
        return self.overall

    def held_out(self, category: str) -> int:
        """How many images of a category were measured."""
        known = self.per_category.get(category)
        return len(known.scores) if known else 0

    def with_category(self, category: str, normality: Normality) -> "GoodImages":
        """With other good images of a category; all together follow."""
        per_category = {**self.per_category, category: normality}
        others = tuple(name for name in self.others if name != category)
        overall = merged(list(per_category.values()))
        return GoodImages(self.settings, overall, per_category, others)

    def to_json(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        for part in (values["overall"], *values["per_category"].values()):
            # What has none is written as earlier versions wrote it.
            if not part["appearance"]:
                del part["appearance"]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        def normality(stored: Mapping[str, Any]) -> Normality:
            appearance = stored.get("appearance", {})
            return Normality(
                tuple(stored["scores"]),
                tuple(stored["pixel_levels"]),
                {name: tuple(numbers) for name, numbers in appearance.items()},
            )

        return cls(
            values["settings"],
            normality(values["overall"]),
            {name: normality(stored) for name, stored in values["per_category"].items()},
            tuple(values.get("others", ())),
        )


def merged(parts: Sequence[Normality]) -> Normality:
    """Good images of several categories together.

    Scores are exact. Pixels are no longer known: a level is exceeded by the mean of the
    shares of the parts, weighted by their images. Between the stored levels a share is
    interpolated over its logarithm, as `pixel_threshold` does it. Shares above a tenth are
    rough, since half is the only larger one that is stored. Several products together look
    like none of them: there is no appearance.
    """
    if len(parts) == 1:
        return parts[0]
    scores = sorted(score for part in parts for score in part.scores)
    grid = np.unique(np.concatenate([part.pixel_levels for part in parts]))
    shares = np.zeros_like(grid)
    for part in parts:
        of_part = np.exp(np.interp(grid, part.pixel_levels, np.log(PIXEL_SHARES)))
        # What none of its pixels exceeded is not exceeded by more.
        of_part[grid > part.pixel_levels[-1]] = 0.0
        shares += len(part.scores) / len(scores) * of_part
    shares = np.maximum(shares, PIXEL_SHARES[-1] * 1e-3)
    # np.interp wants its grid ascending, and shares fall with the level.
    levels = np.interp(np.log(PIXEL_SHARES[::-1]), np.log(shares[::-1]), grid[::-1])
    return Normality(tuple(scores), tuple(levels[::-1].tolist()))


def _normalise(values: Any, low: float, threshold: float) -> Any:
    """Linear from 0 at `low` to 0.5 at the threshold, and from there ever closer to 1.

    The order is kept, and above 0.5 is what is above the threshold, even where that was
    set below `low` by hand or all good values are alike.
    """
    scale = max(threshold - low, 1e-6 * max(abs(threshold), 1.0))
    below = 0.5 * np.clip((values - low) / scale, 0.0, 1.0)
    excess = np.maximum(values - threshold, 0.0) / scale
    return np.where(values > threshold, 0.5 + 0.5 * excess / (1.0 + excess), below)
