"""Levels that shares of many pixels exceed, in memory that does not grow with them."""

import numpy as np

from harmoniad_jax.metrics.streaming import NUM_BINS, score_bins

# Shares of pixels above a level for which levels are kept: dense towards the rare ones.
PIXEL_SHARES = np.concatenate([[0.5], np.logspace(-1, -6, 101)])
# Up to so many pixels, 268 MB and 1024 maps of 256 x 256, levels are exact.
MOST_PIXELS = 2**26
# Beyond them so many wait to be counted together.
FOLDED_PIXELS = 2**22


class PixelLevels:
    """Collects the pixels of maps, one after the other.

    Few pixels are kept, and their levels are exact. Of more than `MOST_PIXELS` a histogram
    is kept, whose bins are at most 1/8192 of their level wide (see `metrics.streaming`): a
    level is then off by less than that.
    """

    def __init__(self):
        self._waiting: list[np.ndarray] = []
        self._pixels = 0
        # Of each bin: how many pixels, and their sum.
        self._histograms: np.ndarray | None = None

    def add(self, anomaly_map: np.ndarray) -> None:
        """Adds a map of any shape, float32 and finite."""
        self._waiting.append(np.ravel(anomaly_map))
        self._pixels += anomaly_map.size
        exact = self._histograms is None
        if self._pixels > (MOST_PIXELS if exact else FOLDED_PIXELS):
            self._fold()

    def _fold(self) -> None:
        """Counts what waits."""
        if self._histograms is None:
            self._histograms = np.zeros((2, NUM_BINS))
        for pixels in self._waiting:
            bins = score_bins(pixels)
            self._histograms[0] += np.bincount(bins, minlength=NUM_BINS)
            self._histograms[1] += np.bincount(bins, pixels, NUM_BINS)
        self._waiting.clear()
        self._pixels = 0

    def compute(self) -> tuple[float, ...]:
        """The levels [102] that `PIXEL_SHARES` of the pixels exceed."""
        if self._histograms is None:
            pixels = np.concatenate(self._waiting)
            levels = np.quantile(pixels, 1.0 - PIXEL_SHARES, overwrite_input=True)
            return tuple(levels.tolist())
        self._fold()
        counts, sums = self._histograms
        used = np.flatnonzero(counts)
        up_to = np.cumsum(counts[used])
        ranks = (1.0 - PIXEL_SHARES) * (up_to[-1] - 1)
        places = used[np.searchsorted(up_to, ranks, side="right")]
        return tuple((sums[places] / counts[places]).tolist())
