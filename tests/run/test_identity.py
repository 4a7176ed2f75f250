"""Which settings a run may be continued with, and those that it wrote down."""

import functools

import pytest
from config_helpers import FIELDS, another_value

from harmoniad_jax.config import Config, with_settings
from harmoniad_jax.errors import UserError
from harmoniad_jax.fields import settings_of
from harmoniad_jax.run.identity import differences
from harmoniad_jax.run.stored import parse_stored

FREE = (
    "data.root",
    "data.data_dir",
    "data.manual_dir",
    # Where images are, or which: those of training are known by their names.
    "data.csv",
    "data.normal_dir",
    "data.abnormal_dir",
    "data.normal_test_dir",
    "data.mask_dir",
    "data.test_split",
    "data.validation",
    "data.threads",
    "cache.enabled",
    "cache.evaluation",
    "cache.folder",
    "cache.max_gigabytes",
    "cache.on_device",
    "sharding.data",
    "sharding.model",
    "sharding.encoder",
    "train.remat",
    "train.keep_every_steps",
    "train.max_skipped_steps",
    "train.steps_per_call",
    "evaluation.streaming",
    "evaluation.report",
    "data.check_images",
    "data.max_megapixels",
    "encoder.name",
    "train.log_every_steps",
    "train.checkpoint_every_steps",
    "train.keep_checkpoints",
    "calibration.false_positive_rate",
    "calibration.pixel_false_positive_rate",
)


@pytest.mark.parametrize("path", FIELDS)
def test_differences_name_what_a_resumed_run_may_not_change(path):
    value = another_value(path)
    found = differences(Config(), with_settings(Config(), {path: value}))
    measured = path.startswith("evaluation.") and "calibration" not in path
    if path in FREE or measured:
        assert found == []
    else:
        (message,) = found
        assert message.startswith(f"config.{path} is {value!r} but was ")


def test_all_differences_are_named():
    given = with_settings(
        Config(), {"train.seed": 1, "model.gate": "ideal", "data.root": "moved"}
    )
    assert differences(Config(), given) == [
        "config.model.gate is 'ideal' but was 'sigmoid'",
        "config.train.seed is 1 but was 0",
    ]
    assert differences(given, given) == []


@pytest.mark.parametrize("path", FIELDS)
def test_a_run_of_a_version_that_lacked_a_setting_did_what_its_field_says(path):
    values = Config().to_dict()
    *groups, name = path.split(".")
    del functools.reduce(dict.__getitem__, groups, values)[name]
    expected = with_settings(Config(), {path: dict(settings_of(Config))[path].older})
    assert parse_stored(values) == expected


def test_a_run_of_a_version_that_lacked_a_group_of_settings():
    values = Config().to_dict()
    del values["optimizer"]
    assert parse_stored(values) == Config()


def test_stored_settings_are_read_as_they_were():
    config = Config()
    for path in FIELDS:
        config = with_settings(config, {path: another_value(path)})
    values = config.to_dict()
    assert parse_stored(values) == config
    assert values == config.to_dict()


def test_stored_settings_that_are_no_settings_are_refused():
    values = Config().to_dict()
    values["model"] = 3
    with pytest.raises(UserError, match="config.model is not a group"):
        parse_stored(values)
    with pytest.raises(UserError):
        parse_stored([])
