"""Metrics against severity, as tables and as a plot."""

import math
import statistics
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from harmoniad_jax.metrics import METRIC_NAMES
from harmoniad_jax.report.plots import LIGHT, style
from harmoniad_jax.report.tables import HEADINGS, markdown_table, percent
from harmoniad_jax.studies.corruptions import CORRUPTIONS, Condition

CLEAN = "clean"
# What a run loses is summed up in these: ranking of images, of pixels, and of regions.
SUMMARISED = ("image_auroc", "pixel_ap", "pixel_aupro")
BANDS_NOTE = (
    "In the rows of a band, the clean image's features got that band of the corrupted "
    "image's, split by the default gate, and in both cases its class token."
)
CATEGORIES_NOTE = (
    "What each category loses: AUPRO of clean images, or image AUROC where there are no "
    "masks, and its change under each corruption, on average over its severities."
)
COLOURS = (LIGHT.curve, LIGHT.defective, LIGHT.good, LIGHT.ink)

# condition -> the seven metrics at each severity, one for CLEAN; None: undefined.
OwnMetrics = Mapping[str, Sequence[Mapping[str, float | None]]]
Metrics = Mapping[str, OwnMetrics]  # by run
# The same, with the metrics of each category; a condition may be missing.
CategoryMetrics = Mapping[
    str, Mapping[str, Sequence[Mapping[str, Mapping[str, float | None]]]]
]


def mean_change(own: OwnMetrics, condition: str, metric: str) -> float | None:
    """By how much a metric changes, on average over the severities; None if undefined."""
    (clean,) = own[CLEAN]
    values = [one[metric] for one in own[condition]]
    if clean[metric] is None or None in values:
        return None
    return statistics.fmean(values) - clean[metric]


def tables(
    metrics: Metrics,
    of_each: CategoryMetrics,
    conditions: Sequence[Condition],
    severities: Sequence[int],
) -> str:
    """What each run and each category loses, and every metric, as Markdown."""
    parts = [
        "## What is lost",
        "The change of a metric under a corruption, in percent points, on average over "
        "its severities; the metrics of clean images stand in the first row.",
        *([BANDS_NOTE] if any(condition.band for condition in conditions) else []),
        _changes_table(metrics, conditions),
        *_categories_parts(of_each, conditions),
        "## Every metric",
    ]
    for run in metrics:
        parts += [f"### {run}", _severities_table(metrics, run, conditions, severities)]
    return "\n\n".join(parts) + "\n"


def _changes_table(metrics: Metrics, conditions: Sequence[Condition]) -> str:
    columns = [(metric, run) for metric in SUMMARISED for run in metrics]
    headings = [f"{HEADINGS[metric]} {run}" for metric, run in columns]
    rows = [["corruption", *headings]]
    rows.append(
        [CLEAN, *(percent(metrics[run][CLEAN][0][metric]) for metric, run in columns)]
    )
    for name in (condition.name for condition in conditions):
        changes = (mean_change(metrics[run], name, metric) for metric, run in columns)
        rows.append([name, *map(in_points, changes)])
    return markdown_table(rows)


def _categories_parts(
    of_each: CategoryMetrics, conditions: Sequence[Condition]
) -> list[str]:
    """What each category loses, a table for each run; nothing for a single category."""
    names = [condition.name for condition in conditions]
    parts = []
    for run, known in of_each.items():
        if not {CLEAN, *names} <= set(known):
            parts.append(
                f"{run}: an earlier version measured some of it, and kept the means alone. "
                "Another --output measures all of it anew."
            )
            continue
        (clean,) = known[CLEAN]
        if len(clean) < 2:
            continue
        # Without masks, the images are all that there is to rank.
        has_masks = any(one["pixel_aupro"] is not None for one in clean.values())
        metric = "pixel_aupro" if has_masks else "image_auroc"
        rows = [["category", CLEAN, *names]]
        for category in clean:
            own = {n: [one[category] for one in known[n]] for n in (CLEAN, *names)}
            changes = [in_points(mean_change(own, name, metric)) for name in names]
            rows.append([category, percent(clean[category][metric]), *changes])
        title = f"### {run}, {HEADINGS[metric]}"
        parts += [title, markdown_table(rows)]
    return ["## By category", CATEGORIES_NOTE, *parts] if parts else []


def in_points(change: float | None) -> str:
    """A change of a share as percent points with a sign, a dash if undefined."""
    return "-" if change is None else f"{100 * change:+.1f}"


def _severities_table(
    metrics: Metrics, run: str, conditions: Sequence[Condition], severities: Sequence[int]
) -> str:
    def row(name: str, level: str, one: Mapping[str, float | None]) -> list[str]:
        return [name, level, *(percent(one[metric]) for metric in METRIC_NAMES)]

    rows = [["corruption", "level", *(HEADINGS[name] for name in METRIC_NAMES)]]
    rows.append(row(CLEAN, "-", *metrics[run][CLEAN]))
    for condition in conditions:
        levels, unit, *_ = CORRUPTIONS[condition.corruption]
        of_this = metrics[run][condition.name]
        for severity, one in zip(severities, of_this, strict=True):
            rows.append(row(condition.name, f"{levels[severity - 1]:g} {unit}", one))
    return markdown_table(rows)


def plot(
    metrics: Metrics, conditions: Sequence[Condition], severities: Sequence[int]
) -> Figure:
    """A row for each metric, a column for each condition, a line for each run."""
    names = [condition.name for condition in conditions]
    with style():
        size = (1.0 + 1.5 * len(names), 0.6 + 1.3 * len(METRIC_NAMES))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(
            *(len(METRIC_NAMES), len(names)),
            sharex=True,
            sharey="row",
            squeeze=False,
        )
        for row, metric in zip(grid, METRIC_NAMES, strict=True):
            for axes, name in zip(row, names, strict=True):
                for index, (run, own) in enumerate(metrics.items()):
                    points = [one[metric] for one in (*own[CLEAN], *own[name])]
                    axes.plot(
                        (0, *severities),
                        [math.nan if point is None else point for point in points],
                        color=COLOURS[index % len(COLOURS)],
                        linestyle=("-", "--", ":")[index // len(COLOURS) % 3],
                        label=run,
                    )
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            row[0].set_ylabel(HEADINGS[metric])
            row[0].yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
            row[0].yaxis.set_major_locator(MaxNLocator(nbins=4))
        for axes, name in zip(grid[0], names, strict=True):
            axes.set_title(name, color=LIGHT.ink, fontsize=9)
        figure.supxlabel("Severity; 0 is the clean image", color=LIGHT.ink, fontsize=9)
        lines, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(lines, labels, loc="outside upper left", ncols=len(labels))
    return figure
