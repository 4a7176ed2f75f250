"""What came out of an ablation: figures over seeds, and a choice that fits no category."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from harmoniad_jax.metrics import METRIC_NAMES
from harmoniad_jax.report.tables import HEADINGS, markdown_table

# What a variant is chosen by, averaged: how well it ranks images, pixels and regions.
CHOSEN_BY = ("image_auroc", "pixel_ap", "pixel_f1max", "pixel_aupro")


def over_seeds(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (n - 1), which one value has none of."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return statistics.fmean(values), deviation


def summarise(results: Mapping[str, Mapping[int, Any]], reference: str) -> dict[str, Any]:
    """What is written as JSON of each variant.

    Args:
      results: variant -> seed -> what was kept of a run, see `ablate.keep`.
      reference: the variant that the others are compared with, seed by seed.

    Returns:
      variant -> figure -> "mean", "deviation" over seeds, "difference" and "paired": mean
      and deviation of the difference from the reference, over the seeds that both have.
    """
    return {
        name: {
            metric: _figures(
                {seed: run["mean"][metric] for seed, run in runs.items()},
                {seed: run["mean"][metric] for seed, run in results[reference].items()},
            )
            for metric in METRIC_NAMES
        }
        for name, runs in results.items()
    }


def _figures(own: Mapping[int, Any], reference: Mapping[int, Any]) -> dict[str, Any]:
    defined = {seed: value for seed, value in own.items() if value is not None}
    pairs = [
        value - reference[seed]
        for seed, value in defined.items()
        if reference.get(seed) is not None
    ]
    mean, deviation = over_seeds(list(defined.values())) if defined else (None, None)
    difference, paired = over_seeds(pairs) if pairs else (None, None)
    return {
        "mean": mean,
        "deviation": deviation,
        "difference": difference,
        "difference_deviation": paired,
    }


def variants_table(results: Mapping[str, Mapping[int, Any]], reference: str) -> str:
    """A row for each variant: mean, deviation over seeds, difference from the reference."""
    summary = summarise(results, reference)
    headings = [HEADINGS[name] for name in METRIC_NAMES]
    rows = [["variant", "seeds", *headings, "parameters", "GFLOP a step", "minutes"]]
    for name, figures in summary.items():
        runs = list(results[name].values())
        cells = [_cell(figures[metric], name == reference) for metric in METRIC_NAMES]
        seconds = statistics.fmean(run["seconds"] for run in runs)
        rows.append(
            [
                name,
                str(len(runs)),
                *cells,
                f"{runs[0]['parameters']:,}",
                "-" if runs[0]["flops"] is None else f"{runs[0]['flops'] / 1e9:.0f}",
                f"{seconds / 60:.1f}" if seconds else "-",
            ]
        )
    return markdown_table(rows)


def _cell(figures: Mapping[str, Any], is_reference: bool) -> str:
    """Such as "91.0 ± 0.2 (+0.4)", in percent."""
    if figures["mean"] is None:
        return "-"
    text = f"{100 * figures['mean']:.1f}"
    if figures["deviation"] is not None:
        text += f" ± {100 * figures['deviation']:.1f}"
    if not is_reference and figures["difference"] is not None:
        text += f" ({100 * figures['difference']:+.1f})"
    return text


def rotation(
    results: Mapping[str, Mapping[int, Any]], reference: str
) -> list[dict[str, Any]]:
    """Chooses a variant on all categories but one, and looks at it on that one, in turn.

    What is chosen is what has the largest mean of `CHOSEN_BY` over the categories that
    are looked at and over the seeds.

    Returns:
      For each category that was left out: "left_out", "chosen", and of that variant on it
      "gain": by how much each of `CHOSEN_BY` is above the reference's.
    """
    scores = {name: _by_category(runs) for name, runs in results.items()}
    rows = []
    for left_out in scores[reference]:

        def on_the_others(name: str, left_out: str = left_out) -> float:
            return statistics.fmean(
                statistics.fmean(figures.values())
                for category, figures in scores[name].items()
                if category != left_out
            )

        chosen = max(scores, key=on_the_others)
        own, theirs = scores[chosen][left_out], scores[reference][left_out]
        gain = {metric: own[metric] - theirs[metric] for metric in own.keys() & theirs}
        rows.append(
            {
                "left_out": left_out,
                "chosen": chosen,
                "gain": {metric: gain[metric] for metric in CHOSEN_BY if metric in gain},
            }
        )
    return rows


def _by_category(runs: Mapping[int, Any]) -> dict[str, dict[str, float]]:
    """category -> figure -> mean over seeds, of those of `CHOSEN_BY` that are defined."""
    categories: dict[str, dict[str, float]] = {}
    for category in next(iter(runs.values()))["per_category"]:
        figures = [run["per_category"][category] for run in runs.values()]
        defined = {
            metric: statistics.fmean(one[metric] for one in figures)
            for metric in CHOSEN_BY
            if all(one[metric] is not None for one in figures)
        }
        if defined:
            categories[category] = defined
    return categories


def rotation_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row for each category that a choice was confirmed on; gains in percent points."""
    headings = [HEADINGS[metric] for metric in CHOSEN_BY]
    table = [["left out", "chosen on the others", *headings]]
    for row in rows:
        gains = [
            f"{100 * row['gain'][metric]:+.1f}" if metric in row["gain"] else "-"
            for metric in CHOSEN_BY
        ]
        table.append([row["left_out"], row["chosen"], *gains])
    return markdown_table(table)
