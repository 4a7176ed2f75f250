"""The settings that a run wrote down, perhaps with an earlier version of this program."""

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harmoniad_jax.config import Config, parse_config
from harmoniad_jax.errors import UserError
from harmoniad_jax.fields import flatten

CONFIG_FILE = "config.json"

# Settings that may change when a run is continued: they do not touch what is learnt. The
# encoder and the images are compared by content, so that both may be moved.
FREE_ON_RESUME = (
    "data.root",
    "data.data_dir",
    "data.manual_dir",
    "data.threads",
    "data.check_images",
    # Stored features differ from fresh ones by their rounding alone.
    "cache.enabled",
    "cache.evaluation",
    "cache.folder",
    "cache.max_gigabytes",
    "cache.on_device",
    "encoder.name",
    # The same arithmetic, but for the order of sums.
    "sharding.data",
    "sharding.model",
    "sharding.encoder",
    "train.remat",
    "train.log_every_steps",
    "train.checkpoint_every_steps",
    "train.keep_checkpoints",
    "train.keep_every_steps",
    "train.max_skipped_steps",
    "train.steps_per_call",
    "evaluation.batch_size",
    "evaluation.map_side",
    "evaluation.smoothing_sigma",
    "evaluation.top_share",
    "evaluation.map_decay",
    "evaluation.score_decay",
    "evaluation.fused_weight",
    "evaluation.high_weight",
    "evaluation.low_weight",
    "evaluation.standardise",
    "evaluation.mask_rule",
    "evaluation.streaming",
    "evaluation.report",
    "calibration.false_positive_rate",
    "calibration.pixel_false_positive_rate",
)


def parse_stored(values: Mapping[str, Any]) -> Config:
    """The config that a run wrote down, maybe with an earlier version of this program.

    What may change when a run is continued takes its default where that version did not
    have it.

    Raises:
      UserError: it has settings that there are no more, or lacks others.
    """
    values, defaults = copy.deepcopy(values), flatten(Config().to_dict())
    # Whatever else it and its groups may be is told by `parse_config`.
    groups = values if isinstance(values, dict) else {}
    for path in FREE_ON_RESUME:
        group, name = path.split(".")
        if isinstance(groups.get(group), dict):
            groups[group].setdefault(name, defaults[path])
    return parse_config(values)


def with_last_settings(config: Config, workdir: Path) -> Config:
    """A stored config with the evaluation and calibration of the last call of training.

    They may have changed since the checkpoint was written. Without a `config.json` the
    stored ones hold: the checkpoints alone may have been copied.
    """
    path = workdir / CONFIG_FILE
    if not path.is_file():
        return config
    try:
        last = parse_stored(json.loads(path.read_text()))
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
    (workdir / CONFIG_FILE).write_text(text + "\n")
