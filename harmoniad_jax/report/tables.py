"""The results of a run as a plain-text table."""

from collections.abc import Mapping
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
      results: as in `results.json`; an undefined figure (NaN or None) shows as "-".
    """
    rows = [["category", "images", *(HEADINGS[name] for name in METRIC_NAMES)]]
    for category, figures in (
        *results["per_category"].items(),
        *(
            (f"mean of {name}", mean)
            for name, mean in results.get("per_dataset", {}).items()
        ),
        ("mean", results["mean"]),
    ):
        values = [_percent(figures[name]) for name in METRIC_NAMES]
        rows.append([category, str(figures["num_images"]), *values])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [_line(row, widths) for row in rows]
    rule = "|".join(
        "-" * (width + 2) if column == 0 else "-" * (width + 1) + ":"
        for column, width in enumerate(widths)
    )
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def _percent(value: float | None) -> str:
    return "-" if value is None or value != value else f"{100 * value:.1f}"


def _line(cells: list[str], widths: list[int]) -> str:
    first = cells[0].ljust(widths[0])
    others = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
    return f"| {' | '.join([first, *others])} |"
