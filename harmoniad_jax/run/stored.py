"""The settings that a run wrote down, perhaps with an earlier version of this program."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harmoniad_jax.config import REMOVED, Config, EvaluationConfig, parse_config
from harmoniad_jax.errors import UserError, raise_problems
from harmoniad_jax.fields import SCORES, touching, with_older_values, without_removed
from harmoniad_jax.folders import write_whole

CONFIG_FILE = "config.json"


def parse_stored(values: Mapping[str, Any]) -> Config:
    """The config that a run wrote down, maybe with an earlier version of this program.

    A setting that the run does not have takes the value that such runs had: the `older` of
    its field.

    Raises:
      UserError: what is not a config, an unknown setting, or a removed one that mattered.
    """
    if isinstance(values, Mapping):
        values, problems = without_removed(values, REMOVED)
        raise_problems(problems)
        values = with_older_values(Config, values)
    return parse_config(values)


def stored_score_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that touch scores, of a calibration that may be of an earlier version.

    Args:
      values: its settings by name, all of `config.evaluation`.

    Raises:
      UserError: a setting that was removed, with a value that mattered.
    """
    removed = {
        path.removeprefix("evaluation."): known
        for path, known in REMOVED.items()
        if path.startswith("evaluation.")
    }
    values, problems = without_removed(values, removed)
    raise_problems(problems)
    values = with_older_values(EvaluationConfig, values)
    return {name: values[name] for name in touching(EvaluationConfig, SCORES)}


def with_last_settings(config: Config, workdir: Path) -> Config:
    """A stored config with the evaluation and calibration of the last call of training.

    They may have changed since the checkpoint was written. Without a `config.json` the
    stored ones hold: the checkpoints alone may have been copied.

    Raises:
      UserError: the file is damaged, or of another version.
    """
    path = workdir / CONFIG_FILE
    if not path.is_file():
        return config
    try:
        last = parse_stored(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}). Bring it back from a copy, or delete it to take "
            "the settings of the checkpoint."
        ) from None
    except UserError as error:
        raise UserError(
            f"{path} was written by another version of this program: {error} Delete it to "
            "take the settings of the checkpoint."
        ) from None
    return dataclasses.replace(
        config, evaluation=last.evaluation, calibration=last.calibration
    )


def write_config(config: Config, workdir: Path) -> None:
    """Writes `config.json`: what the last call of training was given."""
    text = json.dumps(config.to_dict(), indent=2)
    write_whole(workdir / CONFIG_FILE, text + "\n")
