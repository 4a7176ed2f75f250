"""Evaluates trained runs on corrupted test images, at five severities of each corruption.

    python scripts/benchmark_robustness.py runs/harmoniad runs/plain --output robustness

Corruptions are those of robustness/corruptions.py: noise, blur, JPEG, brightness, contrast,
uneven lighting, rotation and shift, applied to the images as they are on disk; masks follow
where pixels move. Nothing is trained or calibrated again. The output folder gets the seven
figures of every run, corruption and severity as robustness.json, tables as robustness.md
and a plot of figures against severity as robustness.png. Interrupted, the same command
goes on where it was.
"""

import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from command_line import Parser, whole_number
from robustness.corruptions import CORRUPTIONS, SEVERITIES, corrupted
from robustness.tables import CLEAN, plot, tables

from harmoniad_jax.data.records import Record
from harmoniad_jax.errors import USER_ERROR_STATUS, UserError
from harmoniad_jax.metrics import METRIC_NAMES, mean_metrics
from harmoniad_jax.report.figures import PNG_DPI, style
from harmoniad_jax.training.evaluation import Restored, restore_run
from harmoniad_jax.training.measuring import measure
from harmoniad_jax.training.prediction import Predictor
from harmoniad_jax.training.startup import start

# run -> corruption -> the seven figures at each severity; CLEAN has a single one.
Figures = dict[str, dict[str, list[dict[str, float]]]]


def chosen_records(records: Sequence[Record], most: int) -> dict[str, list[Record]]:
    """Test images by category, at most so many of each, evenly taken."""
    categories: dict[str, list[Record]] = {}
    for record in records:
        categories.setdefault(record.category, []).append(record)
    for name, found in categories.items():
        rows = np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int)
        categories[name] = [found[row] for row in rows]
    return categories


def evaluate(
    restored: Restored, predictor: Predictor, records: dict[str, list[Record]], title: str
) -> dict[str, float]:
    """The seven figures, means over the categories."""
    per_category = {
        name: measure(restored.run, predictor, f"{title}, {name}", found).figures
        for name, found in records.items()
    }
    means = mean_metrics(per_category)
    return {name: means[name] for name in METRIC_NAMES}


def evaluate_all(options: Any, figures: Figures, save: Any) -> None:
    """Fills in what is not there yet, and saves it after every corruption."""
    for workdir in options.workdirs:
        own = figures.setdefault(workdir.name, {})
        missing = [name for name in (CLEAN, *options.corruptions) if name not in own]
        if not missing:
            continue
        restored = restore_run(workdir)
        if not restored.run.dataset.test:
            raise UserError(f"{workdir} was trained on a data set without test images.")
        predictor = Predictor(*restored[:3])
        records = chosen_records(restored.run.dataset.test, options.images)
        for name in missing:
            if name == CLEAN:
                own[name] = [evaluate(restored, predictor, records, CLEAN)]
            else:
                own[name] = [
                    evaluate(
                        restored,
                        predictor,
                        {
                            category: [corrupted(r, name, severity) for r in found]
                            for category, found in records.items()
                        },
                        f"{name} {severity}",
                    )
                    for severity in SEVERITIES
                ]
            save()


def parse(arguments: Sequence[str] | None) -> Any:
    """The options.

    Raises:
      UserError: a mistake in them.
    """
    parser = Parser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("workdirs", nargs="+", type=Path, help="folders of trained runs")
    add("--output", type=Path, required=True, help="folder for tables and plot")
    add("--images", type=whole_number, default=10**9, help="of each category, at most")
    add("--corruptions", default=",".join(CORRUPTIONS), help="names with commas")
    options = parser.parse_args(arguments)
    options.corruptions = [name for name in options.corruptions.split(",") if name]
    for name in options.corruptions:
        if name not in CORRUPTIONS:
            raise UserError(
                f"corruption {name!r} is unknown; there are {', '.join(CORRUPTIONS)}."
            )
    names = [workdir.name for workdir in options.workdirs]
    if len(set(names)) < len(names):
        raise UserError(f"runs are told apart by their names, but got {', '.join(names)}.")
    return options


def run(options: Any) -> str:
    """Evaluates, writes everything, and returns the tables."""
    path = options.output / "robustness.json"
    kept = {"images": options.images, "figures": {}}
    if path.is_file():
        kept = json.loads(path.read_text())
        if kept["images"] != options.images:
            raise UserError(
                f"{path} was made with --images={kept['images']}; give another --output, "
                "or delete it."
            )
    options.output.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(kept, indent=2) + "\n")
        os.replace(temporary, path)

    evaluate_all(options, kept["figures"], save)
    names = [workdir.name for workdir in options.workdirs]
    figures = {name: kept["figures"][name] for name in names}
    text = tables(figures, options.corruptions)
    (options.output / "robustness.md").write_text(text)
    with style():
        drawing = plot(figures, options.corruptions)
        drawing.savefig(options.output / "robustness.png", dpi=PNG_DPI)
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """The command's entry point."""
    logging.getLogger("harmoniad_jax").setLevel(logging.ERROR)
    try:
        options = parse(arguments)
        start(None, None, None)
        print(run(options))
        print(f"Everything is in {options.output}.")
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR_STATUS)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
