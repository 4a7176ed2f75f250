"""Whether images look like the good ones that the thresholds were set on."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scipy import stats

from harmoniad_jax.data.appearance import PROPERTIES, Property
from harmoniad_jax.run.normality import Normality

# The chance that a comparison reports a change where nothing has changed.
LEVEL = 0.01
SCORE = "score"
# Of each number that is compared, in words.
WORDS = {SCORE: Property("with lower scores", "with higher scores"), **PROPERTIES}


class Compared(NamedTuple):
    """A number of the images, against that of the good ones.

    name: a key of `WORDS`.
    p_value: how likely such a difference is where nothing has changed, at most: in [0, 1],
        corrected for the count of numbers that were compared.
    higher: whether it rose rather than fell.
    """

    name: str
    p_value: float
    higher: bool

    @property
    def has_changed(self) -> bool:
        return self.p_value < LEVEL

    @property
    def in_words(self) -> str:
        """Such as "darker"."""
        words = WORDS[self.name]
        return words.higher if self.higher else words.lower


def compare(
    good: Normality,
    scores: Sequence[float],
    appearance: Sequence[Mapping[str, float]] = (),
) -> list[Compared]:
    """Compares scores and appearance of N images with those of good ones.

    Each number has a two-sample test of Kolmogorov and Smirnov (Smirnov, 1939), and the
    p-values are multiplied by their count (Bonferroni): so one or more of them report a
    change where there is none with a probability of at most `LEVEL`. Rabanser, Guennemann
    and Lipton, "Failing Loudly: An Empirical Study of Methods for Detecting Dataset Shift",
    2019, found this as good as tests of all dimensions at once.

    Args:
      good: what they are compared with. Where its appearance is not known, as in files and
        runs of earlier versions, scores alone are compared.
      scores: [N] image scores.
      appearance: [N], of the same images; empty: scores alone.
    """
    pairs = {SCORE: (good.scores, scores)}
    if appearance:
        known = [name for name in PROPERTIES if name in good.appearance]
        for name in known:
            pairs[name] = (good.appearance[name], [one[name] for one in appearance])
    found = []
    for name, (before, now) in pairs.items():
        test = stats.ks_2samp(before, now)
        # The side on which the two distributions differ most.
        higher = bool(test.statistic_sign > 0)
        found.append(Compared(name, min(float(test.pvalue) * len(pairs), 1.0), higher))
    return found
