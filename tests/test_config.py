"""Settings: what is accepted, what is refused and how it is said."""

import dataclasses
import importlib
import json
from pathlib import Path

import pytest
import transformers
from ml_collections import ConfigDict

from harmoniad_jax.config import (
    Config,
    default_config,
    differences,
    parse_config,
    unknown_field,
    with_settings,
)
from harmoniad_jax.errors import UserError
from harmoniad_jax.fields import field_types, type_name
from harmoniad_jax.model.backbone import EncoderDescription, describe_untrained_clip
from harmoniad_jax.model.harmoniad import HarmoniAD
from harmoniad_jax.training.checks import config_problems
from harmoniad_jax.training.setup import resolve_config

CONFIGS = Path(__file__).parents[1] / "configs"
NOT_CONFIGS = {"__init__", "encoders"}
CONFIG_NAMES = sorted({path.stem for path in CONFIGS.glob("*.py")} - NOT_CONFIGS)
FIELDS = dict(field_types(Config))


def changed(config, **changes):
    """A config with some settings changed: section__field=value."""
    values = config.to_dict()
    for name, value in changes.items():
        *groups, field = name.split("__")
        group = values
        for part in groups:
            group = group[part]
        assert field in group
        group[field] = value
    return parse_config(values)


def with_field(config, path, value):
    return changed(config, **{path.replace(".", "__"): value})


def another_value(path):
    """A value of the field's type that is not its default."""
    value = Config()
    for part in path.split("."):
        value = getattr(value, part)
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return ("other",) if FIELDS[path] == tuple[str, ...] else (1, 2)
    return value + "x" if isinstance(value, str) else value + 1


def message_of(values):
    with pytest.raises(UserError) as error:
        parse_config(values)
    assert "\n" not in str(error.value)
    return str(error.value)


def config_of(name):
    return importlib.import_module(f"configs.{name}").get_config


# Reading settings.


def test_the_defaults_parse():
    assert parse_config(default_config()) == Config()
    assert parse_config(Config().to_dict()) == Config()


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.num_steps = 3


def test_parsing_takes_every_field():
    for path in FIELDS:
        value = another_value(path)
        found = with_field(Config(), path, value)
        for part in path.split("."):
            found = getattr(found, part)
        assert found == value
        assert type(found) is type(value)


def test_json_round_trip():
    config = changed(
        Config(),
        data__categories=("a", "b"),
        encoder__taps=(3, 4),
        optimizer__learning_rate=1e-3,
        model__mirror=False,
    )
    restored = parse_config(json.loads(json.dumps(config.to_dict())))
    assert restored == config
    assert restored.hash == config.hash


def test_unknown_field_gets_a_suggestion():
    values = Config().to_dict()
    values["train"]["num_stesp"] = 3
    assert message_of(values).startswith(
        "config.train.num_stesp is no setting; did you mean config.train.num_steps?"
    )


def test_misspelt_group_gets_a_suggestion():
    assert "did you mean config.train.num_steps?" in unknown_field("trian.num_steps")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("num_steps", "train.num_steps"),
        ("train.learning_rate", "optimizer.learning_rate"),
        ("model.learning_rate", "optimizer.learning_rate"),
        ("model.taps", "encoder.taps"),
        ("data.map_side", "evaluation.map_side"),
        ("evaluation.smoothing", "evaluation.smoothing_sigma"),
    ],
)
def test_a_right_name_in_a_wrong_group_finds_its_group(given, meant):
    assert f"did you mean config.{meant}?" in unknown_field(given)


def test_a_name_like_no_other_points_to_the_list():
    assert "config.py" in unknown_field("zzz")


WRONG = [
    ("train.num_steps", "300", "a whole number"),
    ("train.num_steps", 300.0, "a whole number"),
    ("train.num_steps", True, "a whole number"),
    ("train.num_steps", None, "a whole number"),
    ("optimizer.learning_rate", "1e-3", "a number"),
    ("optimizer.learning_rate", True, "a number"),
    ("model.mirror", 1, "True or False"),
    ("model.mirror", "True", "True or False"),
    ("model.gate", 3, "text"),
    ("data.root", None, "text"),
    ("data.categories", None, "names separated by commas"),
    ("encoder.taps", "a,b", "whole numbers separated by commas"),
    ("encoder.taps", [1.5, 2], "whole numbers separated by commas"),
    ("encoder.taps", [True], "whole numbers separated by commas"),
    ("encoder.taps", None, "whole numbers separated by commas"),
]


@pytest.mark.parametrize(("path", "value", "expected"), WRONG)
def test_ill_typed_value(path, value, expected):
    values = Config().to_dict()
    group, field = path.split(".")
    values[group][field] = value
    assert message_of(values) == f"config.{path} is {value!r}; expected {expected}."


def test_a_whole_number_is_a_number():
    config = changed(Config(), optimizer__learning_rate=1, model__dropout=0)
    assert type(config.optimizer.learning_rate) is float
    assert (config.optimizer.learning_rate, config.model.dropout) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a,b", ("a", "b")),
        (" a , b ", ("a", "b")),
        ("a", ("a",)),
        (("a,b", "c"), ("a", "b", "c")),
        (["a", "b"], ("a", "b")),
        ("01,02", ("01", "02")),
        ("", ()),
        ((), ()),
    ],
)
def test_names_separated_by_commas(given, expected):
    assert changed(Config(), data__categories=given).data.categories == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("3,4", (3, 4)),
        ("3, 4", (3, 4)),
        ("3", (3,)),
        (3, (3,)),
        ([3, 4], (3, 4)),
        (("3,4", 5), (3, 4, 5)),
        ("", ()),
        ((), ()),
    ],
)
def test_whole_numbers_separated_by_commas(given, expected):
    assert changed(Config(), encoder__taps=given).encoder.taps == expected


def test_a_missing_field_and_a_missing_group():
    values = Config().to_dict()
    del values["train"]["seed"]
    del values["loss"]
    message = message_of(values)
    assert "config.train.seed is missing" in message
    assert "config.loss is missing" in message


def test_a_value_in_place_of_a_group():
    values = Config().to_dict()
    values["train"] = 3
    assert message_of(values) == "config.train is not a group of settings."


def test_all_mistakes_are_listed_at_once():
    values = Config().to_dict()
    values["train"]["num_stesp"] = 3
    values["trian"] = {}
    values["model"]["mirror"] = 1
    values["encoder"]["untrained"]["width"] = "wide"
    del values["data"]["root"]
    message = message_of(values)
    for part in (
        "config.train.num_stesp is no setting; did you mean config.train.num_steps?",
        "config.trian is no setting",
        "config.model.mirror is 1; expected True or False",
        "config.encoder.untrained.width is 'wide'; expected a whole number",
        "config.data.root is missing",
    ):
        assert part in message


@pytest.mark.parametrize("values", [None, 3, "text"])
def test_what_is_no_config_at_all_is_refused(values):
    """A config file that forgets its return gives None."""
    assert "config" in message_of(values)


def test_every_type_has_a_name():
    assert all(type_name(hint) for hint in FIELDS.values())


# Identity of a run.


def test_the_hash_changes_with_every_setting():
    hashes = {with_field(Config(), path, another_value(path)).hash for path in FIELDS}
    assert len(hashes | {Config().hash}) == len(FIELDS) + 1


def test_the_hash_is_twelve_hexadecimal_digits_of_the_values():
    assert len(Config().hash) == 12
    assert int(Config().hash, 16) >= 0
    assert Config().hash == parse_config(default_config()).hash


FREE = (
    "data.root",
    "data.data_dir",
    "data.manual_dir",
    "data.threads",
    "cache.enabled",
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
    found = differences(Config(), with_field(Config(), path, value))
    measured = path.startswith("evaluation.") and "calibration" not in path
    if path in FREE or measured:
        assert found == []
    else:
        (message,) = found
        assert message.startswith(f"config.{path} is {value!r} but was ")


def test_all_differences_are_named():
    given = changed(Config(), train__seed=1, model__gate="ideal", data__root="moved")
    assert differences(Config(), given) == [
        "config.model.gate is 'ideal' but was 'sigmoid'",
        "config.train.seed is 1 but was 0",
    ]
    assert differences(given, given) == []


def test_settings_change_by_dotted_name():
    config = with_settings(Config(), {"train.seed": 7, "encoder.untrained.width": 32})
    assert (config.train.seed, config.encoder.untrained.width) == (7, 32)
    assert with_settings(config, {}) == config
    with pytest.raises(UserError, match="config.trian is no setting"):
        with_settings(Config(), {"trian.seed": 7})
    with pytest.raises(UserError, match=r"config.train.seed.x is no setting"):
        with_settings(Config(), {"train.seed.x": 7})


# Config files.


@pytest.mark.parametrize("name", CONFIG_NAMES)
def test_every_config_file_gives_settings(name):
    values = config_of(name)()
    assert isinstance(values, ConfigDict)
    parse_config(values)


@pytest.mark.parametrize("name", CONFIG_NAMES)
def test_every_config_file_fits_its_encoder(name):
    """The rules across fields, on one device and on eight, without a download."""
    config = parse_config(config_of(name)())
    if config.encoder.name == "untrained":
        encoder = config.encoder.untrained
        description = describe_untrained_clip(
            width=encoder.width,
            depth=encoder.depth,
            heads=encoder.heads,
            patch=encoder.patch,
            image_side=config.data.image_side,
        )
    else:
        assert config.encoder.name == "openai/clip-vit-large-patch14-336"
        description = EncoderDescription(
            name=config.encoder.name,
            folder=Path("unread"),
            hf_config=transformers.CLIPVisionConfig(
                hidden_size=1024, num_hidden_layers=24, patch_size=14, image_size=336
            ),
        )
    config = changed(
        config,
        data__image_side=config.data.image_side or description.default_image_side,
        data__root=config.data.root or "somewhere",
        encoder__taps=config.encoder.taps or description.default_taps,
    )
    assert config_problems(config, description, 1) == []
    assert config_problems(config, description, 8) == []


@pytest.mark.parametrize("name", sorted(set(CONFIG_NAMES) - {"common"}))
def test_every_config_file_shows_its_command(name):
    text = (CONFIGS / f"{name}.py").read_text().partition('"""\n\n')[0]
    assert "python -m harmoniad_jax.train" in text
    assert f"--config configs/{name}.py" in text


def test_data_set_configs_name_their_data_set():
    expected = {"mvtec": "mvtec_ad", "visa": "visa", "btad": "btad"}
    for name, source in expected.items():
        assert config_of(name)().data.sources == (source,)


def test_config_files_do_not_share_their_values():
    get_config = config_of("common")
    get_config().train.num_steps = 1
    assert get_config().train.num_steps == Config().train.num_steps


def test_folder_takes_root_and_encoder():
    config = parse_config(config_of("folder")("root=photos,encoder=weights/a=b"))
    assert (config.data.sources, config.data.root) == (("folder",), "photos")
    assert config.encoder.name == "weights/a=b"


def test_folder_without_arguments_keeps_the_defaults():
    for arguments in ("", ","):
        config = parse_config(config_of("folder")(arguments))
        assert config.data.root == ""
        assert config.encoder == Config().encoder


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("rot=photos", ("'rot'", "root=..., encoder=...", "Did you mean 'root'?")),
        ("root=a,encodr=b", ("'encodr'", "Did you mean 'encoder'?")),
        ("colour=red", ("'colour'", "root=..., encoder=...")),
        ("photos", ("'photos'", "key=value", "root=..., encoder=...")),
    ],
)
def test_folder_refuses_other_arguments(arguments, parts):
    with pytest.raises(UserError) as error:
        config_of("folder")(arguments)
    for part in parts:
        assert part in str(error.value)


# Rules across fields.


@pytest.fixture(scope="module")
def description():
    """An encoder of four blocks, 64 channels and a patch of 8 pixels."""
    return describe_untrained_clip(width=64, depth=4, heads=2, patch=8, image_side=64)


RIGHT = changed(
    Config(),
    data__root=str(CONFIGS),
    data__image_side=64,
    encoder__name="untrained",
    encoder__dtype="float32",
    encoder__taps=(1, 2, 3, 4),
    model__head_width=32,
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
    ("model.gate", "ideal", "set model.learnable_gate=False"),
    ("model.high_depth", 3, "multiple of encoder.groups, 2"),
    ("model.low_depth", 0, "multiple of encoder.groups, 2"),
    ("model.plain_depth", -2, "multiple of encoder.groups, 2"),
    ("model.head_width", 48, "divide the encoder's width, 64"),
    ("model.head_width", 0, "divide the encoder's width, 64"),
    ("model.cutoff", 0.0, "share between 0 and 1"),
    ("model.cutoff", 1.0, "share between 0 and 1"),
    ("model.softness", 0.0, "greater than 0"),
    ("model.dropout", 1.0, "share between 0 and 1"),
    ("model.dropout", -0.1, "share between 0 and 1"),
    ("loss.easy_share", 1.0, "share between 0 and 1"),
    ("loss.easy_share", float("nan"), "share between 0 and 1"),
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
    ("evaluation.map_side", 0, "at least 1"),
    ("evaluation.calibration_images", 0, "at least 1"),
    ("evaluation.top_share", 1.5, "share between 0 and 1"),
    ("evaluation.top_share", -0.5, "share between 0 and 1"),
    ("evaluation.map_decay", 3.0, "share between 0 and 1"),
    ("evaluation.score_decay", -1.0, "share between 0 and 1"),
    ("evaluation.mask_rule", "most", "allowed are half, any"),
    ("calibration.holdout", 1.0, "share between 0 and 1"),
    ("calibration.holdout", -0.1, "share between 0 and 1"),
    ("calibration.false_positive_rate", 0.0, "greater than 0"),
    ("calibration.false_positive_rate", 1.0, "share between 0 and 1"),
    ("calibration.false_positive_rate", 5.0, "share between 0 and 1"),
    ("calibration.pixel_false_positive_rate", 0.0, "greater than 0"),
    ("calibration.pixel_false_positive_rate", 1.5, "share between 0 and 1"),
]


def test_a_right_config_has_no_problem(description):
    assert config_problems(RIGHT, description, 8) == []


@pytest.mark.parametrize(("path", "value", "allowed"), MISTAKES)
def test_a_mistake_is_named_with_what_is_allowed(description, path, value, allowed):
    (problem,) = config_problems(with_field(RIGHT, path, value), description, 8)
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
        ("evaluation.smoothing_sigma", 0.0),
        ("calibration.holdout", 0.0),
        ("calibration.false_positive_rate", 1e-6),
        ("encoder.groups", 4),
        ("encoder.groups", 1),
        ("model.head_width", 64),
        ("data.image_side", 16),
        ("train.batch_size", 8),
        ("train.micro_batches", 2),
        ("evaluation.batch_size", 3),
        ("train.seed", 2**40),
    ],
)
def test_the_ends_of_a_range_are_allowed(description, path, value):
    assert config_problems(with_field(RIGHT, path, value), description, 8) == []


@pytest.mark.parametrize("groups", [0, -1, 5])
def test_groups_are_between_one_and_the_taps(description, groups):
    config = changed(RIGHT, encoder__groups=groups)
    first = config_problems(config, description, 8)[0]
    assert first.startswith(f"config.encoder.groups is {groups}; ")
    assert "between 1 and the number of taps, 4" in first


def test_maps_of_weight_zero_cannot_be_scored(description):
    config = changed(RIGHT, evaluation__fused_weight=0)
    (problem,) = config_problems(config, description, 8)
    assert "weight 0" in problem
    for branch in ("high", "low"):
        other = with_field(config, f"evaluation.{branch}_weight", 1.0)
        assert config_problems(other, description, 8) == []
    # A variant with one map alone has nothing to weigh.
    for variant in ("high", "low", "plain"):
        other = changed(config, model__variant=variant)
        assert config_problems(other, description, 8) == []


def test_the_ideal_gate_is_allowed_when_it_is_not_trained(description):
    config = changed(RIGHT, model__gate="ideal", model__learnable_gate=False)
    assert config_problems(config, description, 8) == []


def test_the_demo_needs_no_root(description):
    config = changed(RIGHT, data__sources=("demo",), data__root="")
    assert config_problems(config, description, 8) == []


def test_a_batch_must_divide_into_its_parts_too(description):
    config = changed(RIGHT, train__batch_size=16, train__micro_batches=3)
    (problem,) = config_problems(config, description, 8)
    assert problem.startswith("config.train.batch_size is 16; ")
    assert "devices, 8, times train.micro_batches, 3" in problem


def test_where_nothing_is_trained_the_batch_does_not_matter(description):
    config = changed(RIGHT, train__batch_size=5, sharding__data=100)
    assert config_problems(config, description, None) == []


def test_every_mistake_is_listed_at_once(description):
    """One value a field, all of them wrong together."""
    config, expected = RIGHT, {}
    for path, value, _ in MISTAKES:
        if path not in expected and path != "data.root":
            expected[path] = value
            config = with_field(config, path, value)
    problems = config_problems(config, description, 8)
    for path, value in expected.items():
        start = f"config.{path} is {value!r}; "
        assert any(problem.startswith(start) for problem in problems), path
    assert len(problems) == len(expected)


def test_automatic_settings_are_filled_in():
    config = changed(
        RIGHT,
        data__image_side=0,
        encoder__taps=(),
        encoder__dtype="auto",
        encoder__untrained={**RIGHT.to_dict()["encoder"]["untrained"], "depth": 4},
    )
    resolved, found = resolve_config(config)
    assert found.depth == 4
    assert resolved.data.image_side == found.default_image_side > 0
    assert resolved.encoder.taps == found.default_taps != ()
    assert resolved.encoder.dtype == "float32"
    # And what is resolved stays as it is.
    assert resolve_config(resolved)[0] == resolved


def test_resolving_lists_every_mistake_in_one_line():
    config = changed(RIGHT, train__num_steps=0, train__batch_size=3, model__gate="box")
    with pytest.raises(UserError) as error:
        resolve_config(changed(config, encoder__taps=()))
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
    config = with_field(changed(RIGHT, encoder__taps=()), path, value)
    with pytest.raises(UserError, match=f"config.{path} is"):
        resolve_config(config)


def test_the_network_has_the_defaults_of_its_settings():
    """They are written twice, so that model/ need not know the settings."""
    defaults = Config().to_dict()["model"]
    network = HarmoniAD()
    assert {name: getattr(network, name) for name in defaults} == defaults
