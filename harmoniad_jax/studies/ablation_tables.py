"""What came out of an ablation: metrics over seeds, and a choice that fits no category."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from harmoniad_jax.metrics import METRIC_NAMES
from harmoniad_jax.report.tables import HEADINGS, markdown_table
from harmoniad_jax.studies.travelling import CHOSEN_BY, Results, gains_of


def over_seeds(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (n - 1), which one value has none of."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return statistics.fmean(values), deviation


def summarise(results: Results, reference: str) -> dict[str, Any]:
    """What is written as JSON of each variant.

    Args:
      results: of all variants.
      reference: the variant that the others are compared with, seed by seed.

    Returns:
      variant -> metric -> "mean" and "deviation" over seeds, "difference" and
      "difference_deviation": the same of the difference from the reference, over the seeds
      that both have. None where undefined.
    """
    return {
        name: {
            metric: _metrics(
                {seed: run["mean"][metric] for seed, run in runs.items()},
                {seed: run["mean"][metric] for seed, run in results[reference].items()},
            )
            for metric in METRIC_NAMES
        }
        for name, runs in results.items()
    }


def _metrics(own: Mapping[int, Any], reference: Mapping[int, Any]) -> dict[str, Any]:
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


def variants_table(results: Results, reference: str) -> str:
    """A row for each variant: mean, deviation over seeds, difference from the reference."""
    summary = summarise(results, reference)
    headings = [HEADINGS[name] for name in METRIC_NAMES]
    rows = [["variant", "seeds", *headings, "parameters", "GFLOP a step", "minutes"]]
    for name, metrics in summary.items():
        runs = list(results[name].values())
        cells = [_cell(metrics[metric], name == reference) for metric in METRIC_NAMES]
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


def _cell(metrics: Mapping[str, Any], is_reference: bool) -> str:
    """Such as "91.0 ± 0.2 (+0.4)", in percent."""
    if metrics["mean"] is None:
        return "-"
    text = f"{100 * metrics['mean']:.1f}"
    if metrics["deviation"] is not None:
        text += f" ± {100 * metrics['deviation']:.1f}"
    if not is_reference and metrics["difference"] is not None:
        text += f" ({100 * metrics['difference']:+.1f})"
    return text


def leave_one_out(results: Results, reference: str) -> list[dict[str, Any]]:
    """Chooses a variant on all categories but one, and looks at it on that one, in turn.

    What is chosen is what gains most over the reference: the mean of `CHOSEN_BY` over the
    categories that are looked at, and over the seeds that both have.

    Returns:
      For each category that was left out: "left_out", "chosen", and "gain": by how much
      each of `CHOSEN_BY` of that variant is above the reference's there. Empty where there
      are fewer than two categories with metrics.
    """
    gains = {
        name: {
            category: {m: statistics.fmean(values) for m, values in metrics.items()}
            for category, metrics in gains_of(runs, results[reference]).items()
        }
        for name, runs in results.items()
    }
    categories = list(gains[reference])
    if len(categories) < 2:
        return []
    rows = []
    for left_out in categories:

        def on_the_others(name: str, left_out: str = left_out) -> float:
            others = [g.values() for c, g in gains[name].items() if c != left_out]
            return statistics.fmean(map(statistics.fmean, others)) if others else 0.0

        chosen = max(gains, key=on_the_others)
        gain = gains[chosen].get(left_out, {})
        rows.append({"left_out": left_out, "chosen": chosen, "gain": gain})
    return rows


def choices_table(rows: Sequence[Mapping[str, Any]]) -> str:
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
