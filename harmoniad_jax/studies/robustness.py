"""What corruptions cost trained runs: every metric under each, at several severities."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harmoniad_jax.checkpoints.folders import has_checkpoints
from harmoniad_jax.config import Config, settings_hash
from harmoniad_jax.data.records import Record
from harmoniad_jax.errors import UserError
from harmoniad_jax.evaluation.measure import measure
from harmoniad_jax.folders import write_whole
from harmoniad_jax.inference.predictor import Predictor
from harmoniad_jax.inference.restore import open_trained
from harmoniad_jax.metrics import METRIC_NAMES, mean_metrics
from harmoniad_jax.report.plots import PNG_DPI, style
from harmoniad_jax.run.stored import parse_stored
from harmoniad_jax.studies.bands import BANDS, through_band
from harmoniad_jax.studies.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    Condition,
    corrupted,
)
from harmoniad_jax.studies.robustness_tables import CLEAN, plot, tables

FIGURES = "robustness.json"  # in the output folder
# Settings that the versions which kept a hash did not have. Each new setting belongs here
# too, as long as their measurements are read.
SETTINGS_SINCE = ("model.high_attention", "model.decimation", "encoder.chroma_sigma")


class Robustness:
    """Trained runs under corruptions, with their metrics in one folder."""

    def __init__(
        self,
        workdirs: Sequence[Path],
        output: Path,
        *,
        images: int | None = None,
        corruptions: Sequence[str] = (),
        severities: Sequence[int] = (),
        bands: bool = False,
    ):
        """Checks everything before the first evaluation.

        Args:
          workdirs: folders of the runs, each of another name.
          output: folder for metrics, tables and plot, made if absent.
          images: of each category, at most; None: all.
          corruptions: their names; empty for all.
          severities: 1 to 5; empty for all.
          bands: whether each corruption that moves no pixels is evaluated through each
            frequency band of the features as well.

        Raises:
          UserError: an unknown corruption or severity, a folder without a run, or two of
            the same name.
        """
        for name in corruptions:
            if name not in CORRUPTIONS:
                raise UserError(
                    f"corruption {name!r} is unknown; there are {', '.join(CORRUPTIONS)}."
                )
        for level in severities:
            if level not in SEVERITIES:
                raise UserError(f"severity {level} is unknown; expected 1 to 5.")
        self._workdirs = [workdir.expanduser().resolve() for workdir in workdirs]
        for workdir in self._workdirs:
            if not has_checkpoints(workdir):
                raise UserError(f"{workdir} holds no checkpoint of a run.")
        self._names = [workdir.name for workdir in self._workdirs]
        if len(set(self._names)) < len(self._names):
            raise UserError(
                f"runs are told apart by their names, but got {', '.join(self._names)}."
            )
        self._output, self._images = output, images
        self._severities = sorted(set(severities or SEVERITIES))
        self._conditions = conditions_of(corruptions or tuple(CORRUPTIONS), bands)

    def run(self) -> str:
        """Evaluates what was not evaluated yet, writes everything, and returns the tables.

        Raises:
          UserError: a run is not finished or has no test images; or the folder holds
            metrics of other runs, or of other images or severities.
        """
        kept = self._read_kept()
        self._output.mkdir(parents=True, exist_ok=True)

        def save() -> None:
            write_whole(self._output / FIGURES, json.dumps(kept, indent=2) + "\n")

        conditions, severities = self._conditions, self._severities
        for workdir in self._workdirs:
            of_this = kept["runs"].setdefault(workdir.name, {})
            fill_in(workdir, conditions, severities, self._images, of_this, save)
        metrics = {name: kept["runs"][name]["metrics"] for name in self._names}
        of_each = {name: kept["runs"][name]["categories"] for name in self._names}
        text = tables(metrics, of_each, conditions, severities)
        write_whole(self._output / "robustness.md", text)
        with style():
            drawing = plot(metrics, conditions, severities)
            drawing.savefig(self._output / "robustness.png", dpi=PNG_DPI)
        return text

    def _read_kept(self) -> dict[str, Any]:
        """The metrics of earlier calls.

        Raises:
          UserError: they are of other images or severities.
        """
        path = self._output / FIGURES
        asked = {"images": self._images, "severities": self._severities}
        if not path.is_file():
            return asked | {"runs": {}}
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(
                f"{path} is damaged ({error}). Bring it back from a copy, or delete it to "
                "measure anew."
            ) from None
        for name, value in asked.items():
            if kept.get(name) != value:
                raise UserError(
                    f"{path} was made with {kept.get(name) or 'all'} {name}, not with "
                    f"{value or 'all'}; give another --output, or delete it."
                )
        return kept


def conditions_of(corruptions: Sequence[str], bands: bool) -> list[Condition]:
    """Every corruption, and where it moves no pixels and bands are wanted, through each."""
    conditions = []
    for name in corruptions:
        conditions.append(Condition(name))
        if bands and not CORRUPTIONS[name].move:
            conditions += [Condition(name, band) for band in BANDS]
    return conditions


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


def measured(
    predictor: Predictor, records: dict[str, list[Record]], title: str
) -> tuple[dict[str, float | None], dict[str, dict[str, float | None]]]:
    """The seven metrics, their means and those of each category; None where undefined."""

    def defined(metrics: Mapping[str, float]) -> dict[str, float | None]:
        return {n: None if math.isnan(metrics[n]) else metrics[n] for n in METRIC_NAMES}

    per_category = {
        name: measure(predictor, f"{title}, {name}", found)[0].metrics
        for name, found in records.items()
    }
    of_each = {name: defined(metrics) for name, metrics in per_category.items()}
    return defined(mean_metrics(per_category)), of_each


def is_of(kept: Mapping[str, Any], step: int, config: Config) -> bool:
    """Whether what is kept, maybe by an earlier version, is of a run at a step."""
    if kept["step"] != step:
        return False
    if "settings" in kept:
        return parse_stored(kept["settings"]) == config
    # Earlier versions kept a hash of the settings of then, which were fewer.
    values = config.to_dict()
    for path in SETTINGS_SINCE:
        group, name = path.split(".")
        del values[group][name]
    return kept["config_hash"] == settings_hash(values)


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
      kept: what is known of the run: "run", its step and settings, "metrics", by condition
        the means of the seven metrics at each severity, and "categories", likewise those of
        each category. What earlier versions kept is without the latter.
      save: writes all that is known.

    Raises:
      UserError: what is kept is of another run, or there are no test images.
    """
    # Corrupted images are seen once.
    trained = open_trained(workdir, {"cache.evaluation": False})
    run, state = trained.run, trained.state
    levels = run.preprocessor.levels
    if int(state.step) < run.config.train.num_steps:
        raise UserError(f"{workdir} is not trained to its end; finish it first.")
    if not run.dataset.test:
        raise UserError(f"{workdir} was trained on a data set without test images.")
    this = {"step": int(state.step), "settings": run.config.to_dict()}
    if not is_of(kept.setdefault("run", this), int(state.step), run.config):
        raise UserError(
            f"the metrics that are kept of {workdir.name} are of another run of that name; "
            "give another --output."
        )
    metrics = kept.setdefault("metrics", {})
    categories = kept.setdefault("categories", {})
    records = chosen_records(run.dataset.test, images)
    predictors = {None: Predictor(trained)} | {
        band: Predictor(trained, through_band(trained, band)) for band in BANDS
    }

    def under(condition: Condition, severity: int) -> tuple[dict, dict]:
        changed = {
            category: [
                corrupted(record, condition.corruption, severity, levels)
                for record in found
            ]
            for category, found in records.items()
        }
        title = f"{condition.corruption} {severity}"
        return measured(predictors[condition.band], changed, title)

    def keep(name: str, found: Iterable[tuple[dict, dict]]) -> None:
        means, of_each = zip(*found, strict=True)
        metrics[name], categories[name] = list(means), list(of_each)
        save()

    if CLEAN not in metrics:
        keep(CLEAN, [measured(predictors[None], records, CLEAN)])
    for condition in conditions:
        if condition.name not in metrics:
            keep(condition.name, [under(condition, level) for level in severities])
