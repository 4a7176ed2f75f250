"""Several runs in one table: what differs between them, and what came out."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harmoniad_jax.errors import UserError, system_problem
from harmoniad_jax.fields import flatten
from harmoniad_jax.metrics import METRIC_NAMES
from harmoniad_jax.report.tables import HEADINGS, markdown_table, percent

FORMATS = ("markdown", "csv")


class RunSummary(NamedTuple):
    """A run folder.

    Attributes:
      name: of the folder.
      config: dotted path of every setting -> value.
      step: of the results, or the last one that was logged; None before the first.
      mean: the seven metrics, fractions or None; empty where there are no results yet.
      seconds: of training, without evaluation.
    """

    name: str
    config: dict[str, Any]
    step: int | None
    mean: dict[str, float | None]
    seconds: float


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run; an encoder has a config.json as well.

    Raises:
      OSError: it cannot be looked into.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except ValueError:
        return True  # a damaged one
    return not isinstance(config, dict) or "train" in config


def read_run(folder: Path) -> RunSummary:
    """Reads what a run left.

    Raises:
      UserError: a file of it is damaged.
    """
    config = _read_object(
        folder / "config.json",
        "Bring it back from a copy, or write it anew with the command of the training.",
    )
    results = {}
    if (folder / "results.json").is_file():
        results = _read_object(
            folder / "results.json",
            f"Write it anew: python -m harmoniad_jax.evaluate --workdir={folder}",
        )
    log = _read_log(folder / "metrics.jsonl")
    # The time between two lines, from the speed that the later one states.
    steps = [0, *(line["step"] for line in log)]
    seconds = sum(
        (step - before) / line["steps_per_second"]
        for before, step, line in zip(steps, steps[1:], log, strict=False)
    )
    return RunSummary(
        name=str(folder),
        config=flatten(config),
        step=results.get("step", steps[-1] or None),
        mean=results.get("mean", {}),
        seconds=seconds,
    )


def summary_rows(runs: Sequence[RunSummary]) -> list[list[str]]:
    """Headings, and a row for each run: settings that differ, metrics in percent, time."""
    names = sorted({name for run in runs for name in run.config})
    differing = [
        name for name in names if len({repr(run.config.get(name)) for run in runs}) > 1
    ]
    rows = [["run", "step", *differing, *HEADINGS.values(), "training time"]]
    for run in runs:
        rows.append(
            [
                run.name,
                "-" if run.step is None else str(run.step),
                *(_setting(run.config.get(name)) for name in differing),
                *(percent(run.mean.get(name)) for name in METRIC_NAMES),
                _duration(run.seconds),
            ]
        )
    return rows


def write_summary(runs: Sequence[RunSummary], output: str) -> str:
    """The table as text, in one of `FORMATS`."""
    rows = summary_rows(runs)
    if output == "markdown":
        return markdown_table([[_cell(text) for text in row] for row in rows])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().rstrip("\n")


def _read_object(path: Path, advice: str) -> dict[str, Any]:
    """A JSON object of a run's folder.

    Raises:
      UserError: it is damaged; with the advice what to do.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"it holds {values!r}")
    except OSError as error:
        raise UserError(system_problem(error, path)) from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}). {advice}") from None
    return values


def _read_log(path: Path) -> list[dict[str, float]]:
    """The lines of `metrics.jsonl`.

    Raises:
      UserError: one of them is damaged.
    """
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        # The last line of a run that is being written, or was killed, may not be whole.
        log = [json.loads(line) for line in lines if line.endswith("}")]
        if any(line["step"] < 0 or line["steps_per_second"] <= 0 for line in log):
            raise ValueError("a step or its speed is not above 0")
    except OSError as error:
        raise UserError(system_problem(error, path)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error!r}). It is a log alone: delete it to leave the "
            "training time out."
        ) from None
    return log


def _cell(text: str) -> str:
    """Text that does not end its cell of a Markdown table."""
    return " ".join(text.splitlines()).replace("|", "\\|")


def _setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return "-" if value is None else str(value)


def _duration(seconds: float) -> str:
    """12:34:56"""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
