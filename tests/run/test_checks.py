"""Rules that settings must keep together, and how a mistake is said."""

from pathlib import Path

import pytest

from harmoniad_jax.config import Config, with_settings
from harmoniad_jax.errors import UserError
from harmoniad_jax.model.encoders.encoder import describe_untrained_clip
from harmoniad_jax.run.checks import config_problems, data_problems
from harmoniad_jax.run.run import resolve_config


@pytest.fixture(scope="module")
def description():
    """An encoder of four blocks, 64 channels and a patch of 8 pixels."""
    return describe_untrained_clip(width=64, depth=4, heads=2, patch=8, image_side=64)


RIGHT = with_settings(
    Config(),
    {
        "data.root": str(Path(__file__).parent),
        "data.image_side": 64,
        "encoder.name": "untrained",
        "encoder.dtype": "float32",
        "encoder.taps": (1, 2, 3, 4),
        "model.head_width": 32,
    },
)

MISTAKES = [
    ("data.sources", ("mvtec",), "allowed are folder, demo, mvtec_ad, visa, btad"),
    ("data.sources", (), "name each source once"),
    ("data.sources", ("visa", "visa"), "name each source once"),
    ("data.root", "", "give the folder that holds the categories"),
    ("data.image_side", 60, "multiple of the encoder's patch, 8, for example 64"),
    ("data.image_side", 8, "for example 16"),
    ("data.image_side", -64, "for example 16"),
    ("data.threads", -1, "must not be negative"),
    ("cache.dtype", "bfloat16", "allowed are float16, float32"),
    ("cache.max_gigabytes", 0.0, "greater than 0"),
    ("encoder.dtype", "float16", "allowed are auto, float32, bfloat16"),
    ("encoder.taps", (1, 2, 3, 5), "the encoder has blocks 1 to 4"),
    ("encoder.taps", (0, 1, 2, 3), "the encoder has blocks 1 to 4"),
    ("encoder.taps", (2, 1, 3, 4), "from shallow to deep"),
    ("encoder.taps", (1, 1, 2, 3), "list each block once"),
    ("model.variant", "harmony", "allowed are harmoniad, high, low, plain"),
    ("model.gate", "box", "allowed are sigmoid, gaussian, butterworth, ideal"),
    ("model.high_depth", 3, "multiple of encoder.groups, 2"),
    ("model.low_depth", 0, "multiple of encoder.groups, 2"),
    ("model.plain_depth", -2, "multiple of encoder.groups, 2"),
    ("model.decimation", 5, "a low band up to model.cutoff=0.25 allows at most 4"),
    ("model.head_width", 48, "divide the encoder's width, 64"),
    ("model.head_width", 0, "divide the encoder's width, 64"),
    ("model.cutoff", 0.0, "greater than 0 and less than 1"),
    ("model.cutoff", 1.0, "greater than 0 and less than 1"),
    ("model.softness", 0.0, "greater than 0"),
    ("model.dropout", 1.0, "share between 0 and 1"),
    ("model.dropout", -0.1, "share between 0 and 1"),
    ("loss.easy_share", 1.0, "share between 0 and 1"),
    ("loss.easy_share", float("nan"), "a finite number"),
    ("optimizer.learning_rate", 0.0, "greater than 0"),
    ("optimizer.gradient_clip", 0.0, "greater than 0"),
    ("optimizer.update_clip", -1.0, "greater than 0"),
    ("train.num_steps", 0, "at least 1"),
    ("train.batch_size", 12, "multiple of the number of devices, 8"),
    ("train.batch_size", 0, "at least 1"),
    ("train.micro_batches", 0, "at least 1"),
    ("train.steps_per_call", 0, "at least 1"),
    ("train.max_skipped_steps", 0, "at least 1"),
    ("train.keep_every_steps", -1, "not be negative"),
    ("sharding.data", -1, "not be negative"),
    ("sharding.model", 0, "at least 1"),
    ("cache.on_device", "maybe", "auto, always, never"),
    ("encoder.attention", "flash", "library, fused"),
    ("train.log_every_steps", 0, "at least 1"),
    ("train.checkpoint_every_steps", 0, "at least 1"),
    ("train.keep_checkpoints", 0, "at least 1"),
    ("evaluation.batch_size", 0, "at least 1"),
    ("evaluation.map_side", -1, "not be negative"),
    ("evaluation.calibration_images", 0, "at least 1"),
    ("evaluation.top_share", 1.5, "share between 0 and 1"),
    ("evaluation.top_share", -0.5, "share between 0 and 1"),
    ("evaluation.map_decay", 3.0, "share between 0 and 1"),
    ("evaluation.score_decay", -1.0, "share between 0 and 1"),
    ("evaluation.background_share", 1.5, "share between 0 and 1"),
    ("evaluation.mask_rule", "most", "allowed are half, any"),
    ("calibration.holdout", 1.0, "share between 0 and 1"),
    ("calibration.holdout", -0.1, "share between 0 and 1"),
    ("calibration.false_positive_rate", 0.0, "greater than 0"),
    ("calibration.false_positive_rate", 1.0, "less than 1"),
    ("calibration.false_positive_rate", 5.0, "less than 1"),
    ("calibration.pixel_false_positive_rate", 0.0, "greater than 0"),
    ("calibration.pixel_false_positive_rate", 1.5, "less than 1"),
]


def test_a_right_config_has_no_problem(description):
    assert config_problems(RIGHT, description, 8) == []


@pytest.mark.parametrize(("path", "value", "allowed"), MISTAKES)
def test_a_mistake_is_named_with_what_is_allowed(description, path, value, allowed):
    (problem,) = config_problems(with_settings(RIGHT, {path: value}), description, 8)
    assert problem.startswith(f"config.{path} is {value!r}; ")
    assert allowed in problem


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.dropout", 0.0),
        ("loss.easy_share", 0.0),
        ("evaluation.top_share", 0.0),
        ("evaluation.top_share", 1.0),
        ("evaluation.map_decay", 0.0),
        ("evaluation.score_decay", 1.0),
        ("evaluation.background_share", 0.0),
        ("evaluation.background_share", 1.0),
        ("evaluation.smoothing_sigma", 0.0),
        ("calibration.holdout", 0.0),
        ("calibration.false_positive_rate", 1e-6),
        ("encoder.groups", 4),
        ("encoder.groups", 1),
        ("model.head_width", 64),
        ("model.decimation", 4),
        ("model.cutoff", 0.9),  # with half resolution, as runs of earlier versions may have
        ("data.image_side", 16),
        ("train.batch_size", 8),
        ("train.micro_batches", 2),
        ("evaluation.batch_size", 3),
        ("train.seed", 2**40),
    ],
)
def test_the_ends_of_a_range_are_allowed(description, path, value):
    assert config_problems(with_settings(RIGHT, {path: value}), description, 8) == []


@pytest.mark.parametrize("groups", [0, -1, 5])
def test_groups_are_between_one_and_the_taps(description, groups):
    config = with_settings(RIGHT, {"encoder.groups": groups})
    first = config_problems(config, description, 8)[0]
    assert first.startswith(f"config.encoder.groups is {groups}; ")
    assert "between 1 and the number of taps, 4" in first


def test_the_ideal_gate_cannot_be_trained(description):
    config = with_settings(RIGHT, {"model.gate": "ideal"})
    assert config_problems(config, description, 8) == []
    config = with_settings(config, {"model.learnable_gate": True})
    (problem,) = config_problems(config, description, 8)
    assert "set model.learnable_gate=False" in problem


def test_the_demo_needs_no_root(description):
    config = with_settings(RIGHT, {"data.sources": ("demo",), "data.root": ""})
    assert config_problems(config, description, 8) == []


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        ({"data.csv": "a.csv"}, []),
        ({"data.normal_dir": ("OK",)}, []),
        ({"data.csv": "a.csv", "data.normal_dir": ("OK",)}, ["data.csv"]),
        ({"data.csv": "a.csv", "data.mask_dir": ("m",)}, ["data.mask_dir"]),
        ({"data.csv": "a.csv", "data.normal_split_ratio": 0.2}, []),
        (
            {"data.root": "photos", "data.normal_split_ratio": 0.2},
            ["data.normal_split_ratio"],
        ),
        (
            {
                "data.normal_dir": ("OK",),
                "data.normal_test_dir": ("more",),
                "data.normal_split_ratio": 0.2,
            },
            ["data.normal_split_ratio"],
        ),
    ],
)
def test_images_are_in_a_table_or_in_folders_by_name(description, values, wrong):
    config = with_settings(RIGHT, {"data.root": "", **values})
    problems = config_problems(config, description, 8)
    assert [problem.partition(" is ")[0] for problem in problems] == [
        f"config.{name}" for name in wrong
    ]


def test_a_table_must_be_there():
    config = with_settings(RIGHT, {"data.root": "", "data.csv": "nowhere.csv"})
    assert data_problems(config) == ["data.csv='nowhere.csv' is not a file"]


def test_a_batch_must_divide_into_its_parts_too(description):
    config = with_settings(RIGHT, {"train.batch_size": 16, "train.micro_batches": 3})
    (problem,) = config_problems(config, description, 8)
    assert problem.startswith("config.train.batch_size is 16; ")
    assert "devices, 8, times train.micro_batches, 3" in problem


def test_where_nothing_is_trained_the_batch_does_not_matter(description):
    config = with_settings(RIGHT, {"train.batch_size": 5, "sharding.data": 100})
    assert config_problems(config, description, None) == []


def test_every_mistake_is_listed_at_once(description):
    """One value a field, all of them wrong together."""
    config, expected = RIGHT, {}
    for path, value, _ in MISTAKES:
        if path not in expected and path != "data.root":
            expected[path] = value
            config = with_settings(config, {path: value})
    problems = config_problems(config, description, 8)
    for path, value in expected.items():
        start = f"config.{path} is {value!r}; "
        assert any(problem.startswith(start) for problem in problems), path
    assert len(problems) == len(expected)


def test_automatic_settings_are_filled_in():
    config = with_settings(
        RIGHT,
        {
            "data.image_side": 0,
            "encoder.taps": (),
            "encoder.dtype": "auto",
            "encoder.untrained": {**RIGHT.to_dict()["encoder"]["untrained"], "depth": 4},
        },
    )
    resolved, found = resolve_config(config)
    assert found.depth == 4
    assert resolved.data.image_side == found.default_image_side > 0
    assert resolved.encoder.taps == found.default_taps != ()
    assert resolved.encoder.dtype == "float32"
    # And what is resolved stays as it is.
    assert resolve_config(resolved)[0] == resolved


def test_resolving_lists_every_mistake_in_one_line():
    config = with_settings(
        RIGHT, {"train.num_steps": 0, "train.batch_size": 3, "model.gate": "box"}
    )
    with pytest.raises(UserError) as error:
        resolve_config(with_settings(config, {"encoder.taps": ()}))
    message = str(error.value)
    assert "\n" not in message
    for path in ("train.num_steps", "train.batch_size", "model.gate"):
        assert f"config.{path} is" in message


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("train.seed", -1),
        ("encoder.untrained.patch", 0),
        ("encoder.untrained.heads", 3),
        ("encoder.untrained.heads", 0),
        ("encoder.untrained.width", 0),
        ("encoder.untrained.depth", 0),
        ("encoder.untrained.seed", -1),
        ("optimizer.b1", 1.0),
        ("optimizer.b2", 1.0),
        ("optimizer.weight_decay", float("nan")),
        ("optimizer.learning_rate", float("inf")),
        ("loss.high_weight", float("nan")),
        ("evaluation.smoothing_sigma", -1.0),
    ],
)
def test_values_that_would_fail_or_be_useless_later_are_refused_now(path, value):
    config = with_settings(with_settings(RIGHT, {"encoder.taps": ()}), {path: value})
    with pytest.raises(UserError, match=f"config.{path} is"):
        resolve_config(config)
