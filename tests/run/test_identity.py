"""Which settings a run may be continued with, and those that it wrote down."""

import functools
import logging

import pytest
from config_helpers import FIELDS, another_value

from harmoniad_jax.config import Config, with_settings
from harmoniad_jax.errors import UserError
from harmoniad_jax.fields import flatten, settings_of
from harmoniad_jax.run.identity import Identity, as_begun, differences
from harmoniad_jax.run.stored import CONFIG_FILE, parse_stored, write_config

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


DECAY, SIGMA, SIDE = (
    f"evaluation.{name}" for name in ("map_decay", "smoothing_sigma", "map_side")
)
EARLIER = {DECAY: 0.1, SIGMA: 4.0, SIDE: 256}


def identity_of(config):
    """That of a run which wrote down these settings."""
    names = ("encoder", "weight_hash", "normalisation", "train_fingerprint")
    return Identity.from_json({"config": config.to_dict(), **dict.fromkeys(names, "")})


@pytest.fixture
def begun(tmp_path):
    """A run with the scoring of earlier versions: identity and folder."""
    config = with_settings(Config(), EARLIER)
    write_config(config, tmp_path)
    return identity_of(config), tmp_path


def test_scoring_of_earlier_versions_is_kept_and_reported(begun, listen):
    logged = listen(logging.INFO)
    assert as_begun(Config(), *begun) == with_settings(Config(), EARLIER)
    (line,) = logged()
    for part in (
        "began with config.evaluation.map_side=256, config.evaluation.smoothing_sigma=4.0",
        "--config.evaluation.map_side=0 --config.evaluation.smoothing_sigma=2.0",
        "--config.evaluation.map_decay=0.25",
    ):
        assert part in line


def test_scoring_that_is_asked_for_is_used(begun, listen):
    logged = listen(logging.INFO)
    found = as_begun(Config(), *begun, given={SIGMA, "train.seed"})
    assert found == with_settings(Config(), {**EARLIER, SIGMA: 2.0})
    assert SIGMA not in logged()[0]
    # From then on the run has left it.
    write_config(found, begun[1])
    assert as_begun(Config(), *begun) == found
    assert as_begun(Config(), *begun, given=EARLIER) == Config()
    logged()
    other = with_settings(Config(), {DECAY: 0.5, SIGMA: 1.0, SIDE: 64})
    assert as_begun(other, *begun) == other
    assert logged() == []


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_without_what_the_last_call_was_given_the_checkpoint_decides(begun, content):
    stored, workdir = begun
    (workdir / CONFIG_FILE).unlink()
    if content is not None:
        (workdir / CONFIG_FILE).write_text(content)
    assert as_begun(Config(), stored, workdir) == with_settings(Config(), EARLIER)


@pytest.mark.parametrize(
    ("path", "earlier"),
    [("calibration.copies_together", False), ("variation.rotation", 3.0)],
)
def test_what_touches_learning_stays_and_is_refused_where_it_is_given(
    path, earlier, tmp_path, listen
):
    logged = listen(logging.INFO)
    stored = identity_of(with_settings(Config(), {path: earlier}))
    begun = as_begun(Config(), stored, tmp_path)
    assert flatten(begun.to_dict())[path] == earlier
    assert logged() == [f"trained as before: the run began with config.{path}={earlier}"]
    asked = as_begun(Config(), stored, tmp_path, {path})
    assert asked == Config()
    (difference,) = differences(stored.config, asked)
    assert difference.startswith(f"config.{path} is ")
