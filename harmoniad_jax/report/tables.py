"""The results of a run as a plain-text table."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from harmoniad_jax.metrics import METRIC_NAMES

HEADINGS = {
    "image_auroc": "I-AUROC",
    "image_ap": "I-AP",
    "image_f1max": "I-F1max",
    "pixel_auroc": "P-AUROC",
    "pixel_ap": "P-AP",
    "pixel_f1max": "P-F1max",
    "pixel_aupro": "AUPRO",
}


def results_table(results: Mapping[str, Any]) -> str:
    """A Markdown table, a row for each category and each mean, in percent.

    Args:
      results: as in `results.json`; an undefined metric (NaN or None) shows as "-".
    """
    rows = [["category", "images", *(HEADINGS[name] for name in METRIC_NAMES)]]
    for category, metrics in (
        *results["per_category"].items(),
        *(
            (f"mean of {name}", mean)
            for name, mean in results.get("per_dataset", {}).items()
        ),
        ("mean", results["mean"]),
    ):
        values = [percent(metrics[name]) for name in METRIC_NAMES]
        rows.append([category, str(metrics["num_images"]), *values])
    return markdown_table(rows)


def decisions_table(decisions: Mapping[str, Any]) -> str:
    """A Markdown table of what thresholds achieve, in percent.

    Args:
      decisions: as in `results.json`.
    """
    rate = percent(decisions["false_positive_rate"])
    metrics = ("precision", "recall", "false_positive_rate")
    rows = [
        [
            f"at {rate} % false alarms",
            "held out",
            *("threshold", "precision", "recall", "false alarms"),
            *("shared: precision", "recall", "false alarms"),
        ]
    ]
    for category, own in decisions["per_category"].items():
        shared = decisions["shared"][category]
        rows.append(
            [
                category,
                str(own["held_out"]),
                f"{own['threshold']:.3f}",
                *(percent(own[name]) for name in metrics),
                *(percent(shared[name]) for name in metrics),
            ]
        )
    return markdown_table(rows)


def f1_table(decisions: Mapping[str, Any], pixels: Mapping[str, Any]) -> str:
    """A Markdown table of F1 at thresholds that were set on good images, in percent.

    Args:
      decisions, pixels: "decisions" and "pixel_decisions" as in `results.json`.
    """
    rows = [["F1 at the thresholds", "images", "pixels"]]
    for category, own in decisions["per_category"].items():
        pixel = pixels["per_category"][category]
        rows.append([category, percent(own["f1"]), percent(pixel["f1"])])
    values = [own["f1"] for own in decisions["per_category"].values()]
    defined = [value for value in values if value is not None and value == value]
    mean = sum(defined) / len(defined) if defined else None
    rows.append(["mean", percent(mean), percent(pixels["mean"]["f1"])])
    return markdown_table(rows)


def samples_table(samples: Mapping[str, Any]) -> str:
    """A Markdown table of products seen from several sides, in percent.

    Args:
      samples: as in `results.json`.
    """
    names = ("sample_auroc", "sample_ap", "sample_f1max")
    rows = [["product, by its highest view", "products", "AUROC", "AP", "F1max"]]
    for category, metrics in samples["per_category"].items():
        values = [percent(metrics[name]) for name in names]
        rows.append([category, str(metrics["num_samples"]), *values])
    rows.append(["mean", "", *(percent(samples["mean"][name]) for name in names)])
    return markdown_table(rows)


def kinds_table(kinds: Mapping[str, Any]) -> str:
    """A Markdown table of the kinds of defects, in percent.

    Args:
      kinds: as in `results.json`.
    """
    heading = f"sPRO to {100 * kinds['fpr_limit']:g} %"
    rows = [["kind of defect", "images", "I-AUROC", heading]]
    parts = [
        *(
            (f"{n}: {kind}", m)
            for n, k in kinds["per_category"].items()
            for kind, m in k.items()
        ),
        *((f"mean: {kind}", metrics) for kind, metrics in kinds["mean"].items()),
    ]
    for name, metrics in parts:
        values = [percent(metrics[key]) for key in ("image_auroc", "au_spro")]
        rows.append([name, str(metrics.get("num_images", "")), *values])
    return markdown_table(rows)


def defect_sizes_table(sizes: Mapping[str, Any]) -> str:
    """A Markdown table of how well small and large defects are found, in percent.

    Args:
      sizes: as in `results.json`.
    """
    rows = [["share of the image", "defects", "AUPRO of these", "found"]]
    for area, metrics in zip(itertools.pairwise(sizes["edges"]), sizes["all"], strict=True):
        rows.append(
            [
                area_range(*area),
                str(metrics["num_defects"]),
                percent(metrics["overlap"]),
                percent(metrics["recall"]),
            ]
        )
    return markdown_table(rows)


def area_range(low: float, high: float) -> str:
    """Two shares of an image, such as "0.02 to 0.3 %"."""
    low, high = (
        f"{100 * area:.2g}" if area < 0.1 else f"{100 * area:.0f}" for area in (low, high)
    )
    return f"{low} to {high} %"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Cells to text; the first row holds the headings, the first column is words."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [_line(row, widths) for row in rows]
    rule = "|".join(
        "-" * (width + 2) if column == 0 else "-" * (width + 1) + ":"
        for column, width in enumerate(widths)
    )
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def percent(value: float | None) -> str:
    """A fraction in percent; "-" where it is undefined (NaN or None)."""
    return "-" if value is None or value != value else f"{100 * value:.1f}"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    others = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
    return f"| {' | '.join([first, *others])} |"
