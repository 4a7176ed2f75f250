"""Evaluates trained runs on corrupted test images, at five severities of each corruption.

    python scripts/benchmark_robustness.py runs/harmoniad runs/plain --output robustness

Corruptions are those of robustness/corruptions.py: noise, blur, JPEG, brightness, contrast,
uneven lighting, rotation and shift, applied to the images as they are on disk, before they
are scaled; masks follow where pixels move. A defect that is moved out of the picture leaves
its image defective, which only counts in the image figures then. Nothing is trained; the
maps are standardised as for clean images. The output folder gets the seven figures of every
run, corruption and severity as robustness.json, tables as robustness.md and a plot of
figures against severity as robustness.png. Interrupted, the same command goes on where it
was.

With --bands every corruption that moves no pixels is also let through the low or the high
frequency band of the features alone, the other band being that of the clean image.
"""

import argparse
import functools
import json
import logging
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from command_line import Parser, whole_number
from robustness.bands import BANDS, through_band
from robustness.corruptions import CORRUPTIONS, SEVERITIES, Condition, corrupted
from robustness.tables import CLEAN, plot, tables

from harmoniad_jax.checkpoints.folders import has_checkpoints
from harmoniad_jax.data.records import Record
from harmoniad_jax.devices.startup import start
from harmoniad_jax.errors import INTERRUPTED_STATUS, USER_ERROR_STATUS, UserError
from harmoniad_jax.evaluation.measure import measure
from harmoniad_jax.folders import write_whole
from harmoniad_jax.inference.predictor import Predictor
from harmoniad_jax.inference.restore import restore_run
from harmoniad_jax.metrics import METRIC_NAMES, mean_metrics
from harmoniad_jax.report.plots import PNG_DPI, style
from harmoniad_jax.run.run import Run


def chosen_records(records: Sequence[Record], most: int | None) -> dict[str, list[Record]]:
    """Test images by category, at most so many of each, evenly taken; None: all."""
    categories: dict[str, list[Record]] = {}
    for record in records:
        categories.setdefault(record.category, []).append(record)
    for name, found in categories.items():
        count = min(most or len(found), len(found))
        rows = np.linspace(0, len(found) - 1, count).round().astype(int)
        categories[name] = [found[row] for row in rows]
    return categories


def mean_figures(
    run: Run, predictor: Predictor, records: dict[str, list[Record]], title: str
) -> dict[str, float | None]:
    """The seven figures, means over the categories; None where undefined."""
    per_category = {
        name: measure(run, predictor, f"{title}, {name}", found).figures
        for name, found in records.items()
    }
    means = mean_metrics(per_category)
    return {name: None if math.isnan(means[name]) else means[name] for name in METRIC_NAMES}


def fill_in(
    workdir: Path,
    conditions: Sequence[Condition],
    severities: Sequence[int],
    images: int | None,
    kept: dict[str, Any],
    save: Callable[[], None],
) -> None:
    """Evaluates a run where that was not done yet, and saves after every condition.

    Args:
      workdir: folder of the run.
      conditions: to evaluate it under.
      severities: of each of them.
      images: of each category, at most; None: all.
      kept: what is known of the run: "run", which it is, and "figures", by condition the
        seven figures at each severity.
      save: writes all that is known.

    Raises:
      UserError: what is kept is of another run, or there are no test images.
    """
    # Corrupted images are seen once.
    run, state, encoder_params, _ = restore_run(workdir, {"cache.evaluation": False})
    if int(state.step) < run.config.train.num_steps:
        raise UserError(f"{workdir} is not trained to its end; finish it first.")
    if not run.dataset.test:
        raise UserError(f"{workdir} was trained on a data set without test images.")
    this = {"step": int(state.step), "config_hash": run.config.hash}
    if kept.setdefault("run", this) != this:
        raise UserError(
            f"the figures that are kept of {workdir.name} are of another run of that name; "
            "give another --output."
        )
    figures = kept.setdefault("figures", {})
    records = chosen_records(run.dataset.test, images)
    predictor = functools.partial(Predictor, run, state, encoder_params)
    predictors = {None: predictor()} | {
        band: predictor(through_band(run, encoder_params, band)) for band in BANDS
    }

    def under(condition: Condition, severity: int) -> dict[str, float | None]:
        changed = {
            category: [
                corrupted(record, condition.corruption, severity) for record in found
            ]
            for category, found in records.items()
        }
        title = f"{condition.corruption} {severity}"
        return mean_figures(run, predictors[condition.band], changed, title)

    if CLEAN not in figures:
        figures[CLEAN] = [mean_figures(run, predictors[None], records, CLEAN)]
        save()
    for condition in conditions:
        if condition.name not in figures:
            figures[condition.name] = [under(condition, level) for level in severities]
            save()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options.

    Raises:
      UserError: a mistake in them.
    """
    parser = Parser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("workdirs", nargs="+", type=Path, help="folders of trained runs")
    add("--output", type=Path, required=True, help="folder for tables and plot")
    add("--images", type=whole_number, help="of each category, at most (default: all)")
    add("--corruptions", default=",".join(CORRUPTIONS), help="names with commas")
    add("--severities", default="1,2,3,4,5", help="numbers with commas")
    add("--bands", action="store_true", help="each through one band of features as well")
    options = parser.parse_args(arguments)
    options.workdirs = [workdir.expanduser().resolve() for workdir in options.workdirs]
    options.corruptions = options.corruptions.split(",")
    for name in options.corruptions:
        if name not in CORRUPTIONS:
            raise UserError(
                f"corruption {name!r} is unknown; there are {', '.join(CORRUPTIONS)}."
            )
    if not set(options.severities.split(",")) <= set(map(str, SEVERITIES)):
        raise UserError(f"--severities={options.severities} are no numbers from 1 to 5.")
    options.severities = sorted(set(map(int, options.severities.split(","))))
    for workdir in options.workdirs:
        if not has_checkpoints(workdir):
            raise UserError(f"{workdir} holds no checkpoint of a run.")
    names = [workdir.name for workdir in options.workdirs]
    if len(set(names)) < len(names):
        raise UserError(f"runs are told apart by their names, but got {', '.join(names)}.")
    return options


def conditions_of(options: argparse.Namespace) -> list[Condition]:
    """Every corruption, and where it moves no pixels and bands are wanted, through each."""
    conditions = []
    for name in options.corruptions:
        conditions.append(Condition(name))
        if options.bands and not CORRUPTIONS[name].move:
            conditions += [Condition(name, band) for band in BANDS]
    return conditions


def run(options: argparse.Namespace) -> str:
    """Evaluates, writes everything, and returns the tables."""
    path = options.output / "robustness.json"
    asked = {"images": options.images, "severities": options.severities}
    kept = asked | {"runs": {}}
    if path.is_file():
        kept = json.loads(path.read_text())
        for name, value in asked.items():
            if kept.get(name) != value:
                raise UserError(
                    f"{path} was made with {kept.get(name) or 'all'} {name}, not with "
                    f"{value or 'all'}; give another --output, or delete it."
                )
    options.output.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        write_whole(path, json.dumps(kept, indent=2) + "\n")

    conditions, severities = conditions_of(options), options.severities
    for workdir in options.workdirs:
        of_this = kept["runs"].setdefault(workdir.name, {})
        fill_in(workdir, conditions, severities, options.images, of_this, save)
    names = [workdir.name for workdir in options.workdirs]
    figures = {name: kept["runs"][name]["figures"] for name in names}
    text = tables(figures, conditions, severities)
    (options.output / "robustness.md").write_text(text)
    with style():
        drawing = plot(figures, conditions, severities)
        drawing.savefig(options.output / "robustness.png", dpi=PNG_DPI)
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """The command's entry point."""
    logging.getLogger("harmoniad_jax").setLevel(logging.WARNING)
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
        sys.exit(INTERRUPTED_STATUS)


if __name__ == "__main__":
    main()
