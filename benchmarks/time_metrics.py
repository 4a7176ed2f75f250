"""Times the metrics on drawn maps, against what others compute them with.

    python benchmarks/time_metrics.py

All see the same maps, category by category, one after the other in one run, since
machines are noisy. The literal AUPRO of 200 thresholds, and adeval and anomalib where
those are installed, see the first `--compared` categories only: "over" is the ratio of
seconds on the same maps. The default is the size of MVTec AD's test set.
"""

import argparse
import importlib
import os
import time
from collections.abc import Callable
from types import ModuleType

import numpy as np
from scipy import ndimage

from harmoniad_jax.metrics import (
    BoundedMetrics,
    StreamingMetrics,
    aupro,
    category_metrics,
)

BATCH = 16
THRESHOLDS = 200
EXACT, AUPRO, STREAMING = "exact, all seven", "exact, AUPRO", "streaming, all seven"
LITERAL = f"literal AUPRO, {THRESHOLDS} thresholds"


def draw_category(seed: int, num_maps: int, side: int) -> tuple[np.ndarray, ...]:
    """Smooth noise of deviation 1, with blobs of defect in three of four images.

    Returns:
      What `category_metrics` takes.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    masks = np.zeros((num_maps, side, side), bool)
    for mask in masks[num_maps // 4 :]:
        for _ in range(rng.integers(1, 4)):
            center_y, center_x = rng.uniform(0, side, 2)
            radius, stretch = rng.uniform(side / 64, side / 10), rng.uniform(0.5, 2)
            across = (y - center_y) ** 2 * stretch + (x - center_x) ** 2 / stretch
            mask |= across < radius**2
    smooth = (0, side / 64, side / 64)
    noise = rng.standard_normal(masks.shape, dtype=np.float32)
    maps = ndimage.gaussian_filter(noise, smooth)
    maps /= maps.std()
    strength = 3 * rng.gamma(2, 1, (num_maps, 1, 1)).astype(np.float32)
    maps += strength * ndimage.gaussian_filter(masks.astype(np.float32), smooth)
    return maps, masks, maps.max(axis=(1, 2)), masks.any(axis=(1, 2))


def literal_aupro(maps: np.ndarray, masks: np.ndarray) -> float:
    """As in the published code of RD4AD, UniAD and Dinomaly, step by step.

    That is a grid of thresholds between the extremes, the regions found anew at each of
    them, and the area divided by the last rate below 0.3. Only SciPy finds the regions
    here, which is faster than scikit-image there.
    """
    eight_connected = np.ones((3, 3), bool)
    found = np.zeros_like(masks)
    rates, overlaps = [], []
    low, high = maps.min(), maps.max()
    for threshold in np.arange(low, high, (high - low) / THRESHOLDS):
        found[maps <= threshold] = False
        found[maps > threshold] = True
        shares = []
        for detected, mask in zip(found, masks, strict=True):
            labels, _ = ndimage.label(mask, eight_connected)
            for label, box in enumerate(ndimage.find_objects(labels), 1):
                shares.append(detected[box][labels[box] == label].mean())
        defect_free = ~masks
        rates.append(np.logical_and(defect_free, found).sum() / defect_free.sum())
        overlaps.append(np.mean(shares))
    rates, overlaps = np.array(rates[::-1]), np.array(overlaps[::-1])
    kept = rates < 0.3
    return np.trapezoid(overlaps[kept], rates[kept] / rates[kept].max())


def optional(name: str) -> ModuleType | None:
    """A package that is no dependency of ours."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def peers() -> dict[str, Callable]:
    """What others offer: maps and masks in, AUPRO out."""
    found = {LITERAL: literal_aupro}
    if adeval := optional("adeval"):
        found["adeval: AUROC, AP and AUPRO"] = lambda maps, masks: adeval.auroc_aupr_aupro(
            maps, masks.view(np.uint8)
        )[2]
    anomalib, torch = optional("anomalib.metrics.aupro"), optional("torch")
    if anomalib and torch:

        def anomalib_aupro(maps, masks):
            metric = anomalib._AUPRO()  # what the public class wraps for its batches
            metric.update(torch.from_numpy(maps), torch.from_numpy(masks.astype(np.int64)))
            return float(metric.compute())

        found["anomalib: AUPRO"] = anomalib_aupro
    return found


def stream(*category: np.ndarray) -> BoundedMetrics:
    metrics = StreamingMetrics()
    for start in range(0, len(category[0]), BATCH):
        metrics.update(*(array[start : start + BATCH] for array in category))
    return metrics.compute()


class Timer:
    """Seconds of each call, by name."""

    def __init__(self):
        self.seconds: dict[str, list[float]] = {}

    def __call__(self, name: str, function: Callable, *arguments):
        start = time.perf_counter()
        result = function(*arguments)
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)
        return result

    def first(self, name: str, calls: int) -> float:
        return sum(self.seconds[name][:calls])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--categories", type=int, default=15)
    parser.add_argument("--maps", type=int, default=115, help="of a category")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--compared", type=int, default=2, help="categories others see")
    options = parser.parse_args()

    timer, error, bound = Timer(), dict.fromkeys((STREAMING, *peers()), 0.0), 0.0
    for index in range(options.categories):
        category = draw_category(index, options.maps, options.side)
        exact = timer(EXACT, category_metrics, *category)["pixel_aupro"]
        timer(AUPRO, aupro, *category[:2])
        streamed = timer(STREAMING, stream, *category)
        bound = max(bound, *streamed.bounds.values())
        values = {STREAMING: streamed.metrics["pixel_aupro"]}
        if index < options.compared:
            for name, function in peers().items():
                values[name] = timer(name, function, *category[:2])
        for name, value in values.items():
            error[name] = max(error[name], abs(value - exact))

    total = options.categories * options.maps
    print(
        f"{total} maps of {options.side} x {options.side} in {options.categories} "
        f"categories, {os.cpu_count()} cores. Streaming bounds every error by {bound:.0e}."
        f"\n\n| | maps | seconds | seconds for {total} | over {EXACT} | over {AUPRO} "
        f"| over {STREAMING} | AUPRO off by |\n|---|---|---|---|---|---|---|---|"
    )
    for name, seconds in timer.seconds.items():
        calls, spent = len(seconds), sum(seconds)
        whole = f"{spent * options.categories / calls:.1f}"
        ours = (EXACT, AUPRO, STREAMING)
        ratios = (f"{spent / timer.first(one, calls):.1f} x" for one in ours)
        cells = (
            name,
            calls * options.maps,
            f"{spent:.1f}",
            whole if calls == options.categories else f"{whole} (extrapolated)",
            *ratios,
            f"{error[name]:.0e}" if name in error else "exact",
        )
        print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
