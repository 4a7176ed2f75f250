"""What travels: the gain of a choice on the products that it was not made on.

A variant that was chosen by looking at some products gains there, since it was chosen for
it. What counts is the gain on others. So each product is left out in turn: the variant is
chosen, or not, by its mean gain on the others, and looked at on the one left out.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from harmoniad_jax.report.tables import HEADINGS, markdown_table

# What a variant is chosen by, averaged: how well it ranks images, pixels and regions.
CHOSEN_BY = ("image_auroc", "pixel_ap", "pixel_f1max", "pixel_aupro")
CONFIDENCE = 0.95

# variant -> seed -> what `Ablation` keeps of a run.
Results = Mapping[str, Mapping[int, Any]]


class Interval(NamedTuple):
    """A mean with its interval of confidence; None where one product leaves it open."""

    mean: float
    low: float | None
    high: float | None


def gains_of(
    runs: Mapping[int, Any], reference: Mapping[int, Any]
) -> dict[str, dict[str, list[float]]]:
    """By how much a variant is above the reference.

    Args:
      runs: of the variant, by seed.
      reference: runs of the reference, by seed.

    Returns:
      category -> metric of `CHOSEN_BY` -> the difference of each seed that both have, in
      their order. A metric is left out where it is undefined in one of them, and a category
      where it is absent.
    """
    pairs = [(runs[seed], reference[seed]) for seed in sorted(runs) if seed in reference]
    gains: dict[str, dict[str, list[float]]] = {}
    for category in pairs[0][1]["per_category"] if pairs else ():
        metrics = [
            (own["per_category"].get(category), theirs["per_category"].get(category))
            for own, theirs in pairs
        ]
        if any(None in pair for pair in metrics):
            continue
        defined = {
            metric: [own[metric] - theirs[metric] for own, theirs in metrics]
            for metric in CHOSEN_BY
            if all(one[metric] is not None for pair in metrics for one in pair)
        }
        if defined:
            gains[category] = defined
    return gains


def paired_interval(differences: np.ndarray) -> Interval:
    """The mean difference, for products and seeds like these.

    Both are samples: the same products with other seeds would differ, and so would other
    products. With means over seeds p of P products and means over products s of S seeds,

        variance = var(p) / P + var(s) / S

    in a crossed random-effects model. It counts what is neither the product's nor the
    seed's twice, and so is never too small on average. The quantile is that of Student's t
    with Satterthwaite's degrees of freedom (Biometrics Bulletin 2, 1946). One seed leaves
    out the second part: the interval is for that seed.

    Args:
      differences: [P, S] float.

    Returns:
      The mean and its interval at `CONFIDENCE`; without limits for one product.
    """
    mean = float(differences.mean())
    parts = [
        (means.var(ddof=1) / means.size, means.size - 1)
        for means in (differences.mean(axis=1), differences.mean(axis=0))
        if means.size > 1
    ]
    if differences.shape[0] < 2:
        return Interval(mean, None, None)
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return Interval(mean, mean, mean)
    freedom = variance**2 / sum(part**2 / count for part, count in parts)
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * math.sqrt(variance)
    return Interval(mean, mean - float(reach), mean + float(reach))


def travels(results: Results, reference: str) -> dict[str, dict[str, Any]]:
    """What each variant gains over the reference, and whether the gain travels.

    "Gain" without a metric is the mean over `CHOSEN_BY`.

    Args:
      results: of all variants.
      reference: the variant that the others are compared with, seed by seed.

    Returns:
      For every other variant with at least two categories in common:
      "seeds", "products": numbers;
      "gaining": number of products with a gain;
      "chosen": number of products without which it would be chosen;
      "left_out": its mean gain on the product left out, 0 where it is not chosen;
      "metrics": metric -> `Interval` as a list, over products and seeds;
      "per_category": category -> metric -> mean difference over seeds.
    """
    table = {}
    for name, runs in results.items():
        gains = gains_of(runs, results[reference])
        if name == reference or len(gains) < 2:
            continue
        means = {
            category: {m: statistics.fmean(values) for m, values in metrics.items()}
            for category, metrics in gains.items()
        }
        gain = {category: statistics.fmean(one.values()) for category, one in means.items()}
        total = sum(gain.values())
        chosen = [category for category in gain if total - gain[category] > 0]
        table[name] = {
            "seeds": len(next(iter(next(iter(gains.values())).values()))),
            "products": len(gain),
            "gaining": sum(value > 0 for value in gain.values()),
            "chosen": len(chosen),
            "left_out": sum(gain[category] for category in chosen) / len(gain),
            "metrics": {
                metric: list(paired_interval(np.array(values)))
                for metric in CHOSEN_BY
                if (values := [one[metric] for one in gains.values() if metric in one])
            },
            "per_category": means,
        }
    return table


def travels_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each variant, the largest gain on left-out products first."""
    headings = [HEADINGS[metric] for metric in CHOSEN_BY]
    table = [
        [
            "variant",
            "seeds",
            "products that gain",
            "chosen without",
            "gain there",
            *headings,
        ]
    ]
    for name in sorted(rows, key=lambda name: -rows[name]["left_out"]):
        row = rows[name]
        products = row["products"]
        table.append(
            [
                *(name, str(row["seeds"])),
                f"{row['gaining']} of {products}",
                f"{row['chosen']} of {products}",
                f"{100 * row['left_out']:+.1f}",
                *(_cell(row["metrics"].get(metric)) for metric in CHOSEN_BY),
            ]
        )
    return markdown_table(table)


def _cell(interval: Sequence[float | None] | None) -> str:
    """Such as "+0.4 [-0.1, +0.9]", in percent points."""
    if interval is None:
        return "-"
    mean, low, high = interval
    text = f"{100 * mean:+.1f}"
    return text if low is None else f"{text} [{100 * low:+.1f}, {100 * high:+.1f}]"
