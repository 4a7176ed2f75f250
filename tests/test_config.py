"""Settings: what is accepted, what is refused and how it is said."""

import dataclasses
import importlib
import json
from pathlib import Path

import pytest
import transformers
from config_helpers import FIELDS, another_value
from ml_collections import ConfigDict

from harmoniad_jax.config import (
    Config,
    default_config,
    parse_config,
    unknown_field,
    with_settings,
)
from harmoniad_jax.config_files import load_config, shipped_configs
from harmoniad_jax.errors import UserError
from harmoniad_jax.fields import type_name
from harmoniad_jax.model.encoders.encoder import EncoderDescription, describe_untrained_clip
from harmoniad_jax.model.fsam import Fsam
from harmoniad_jax.model.gscm import Gscm
from harmoniad_jax.model.harmoniad import HarmoniAD, Plain
from harmoniad_jax.model.split import FrequencySplit
from harmoniad_jax.run.checks import config_problems
from harmoniad_jax.steps.network import build_model

CONFIGS = Path(__file__).parents[1] / "configs"
CONFIG_NAMES = sorted(shipped_configs())


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
        found = with_settings(Config(), {path: value})
        for part in path.split("."):
            found = getattr(found, part)
        assert found == value
        assert type(found) is type(value)


def test_json_round_trip():
    config = with_settings(
        Config(),
        {
            "data.categories": ("a", "b"),
            "encoder.taps": (3, 4),
            "optimizer.learning_rate": 1e-3,
            "model.mirror": True,
        },
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
    config = with_settings(Config(), {"optimizer.learning_rate": 1, "model.dropout": 0})
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
    assert with_settings(Config(), {"data.categories": given}).data.categories == expected


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
    assert with_settings(Config(), {"encoder.taps": given}).encoder.taps == expected


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


def test_the_network_has_the_defaults_of_its_settings():
    """They are written twice, so that model/ need not know the settings."""
    settings = Config().model
    heads = 128 // settings.head_width
    assert build_model(settings, groups=2, width=128) == HarmoniAD(
        split=FrequencySplit(),
        high=Fsam(settings.high_depth, 2, heads, name="fsam"),
        low=Gscm(settings.low_depth, 2, heads, name="gscm"),
    )
    plain = dataclasses.replace(settings, variant="plain")
    switched_off = dict.fromkeys(("global_context", "reads_class_token"), False)
    branch = Gscm(
        settings.plain_depth, 2, heads, name="plain", decimation=1, **switched_off
    )
    assert build_model(plain, groups=2, width=128) == Plain(branch)


@pytest.mark.parametrize(("decimate", "expected"), [(True, 3), (False, 1)])
def test_the_low_path_has_the_decimation_that_is_set(decimate, expected):
    settings = dataclasses.replace(Config().model, decimate=decimate, decimation=3)
    assert build_model(settings, groups=2, width=128).low.decimation == expected


def test_the_hash_changes_with_every_setting():
    hashes = {with_settings(Config(), {path: another_value(path)}).hash for path in FIELDS}
    assert len(hashes | {Config().hash}) == len(FIELDS) + 1


def test_the_hash_is_twelve_hexadecimal_digits_of_the_values():
    assert len(Config().hash) == 12
    assert int(Config().hash, 16) >= 0
    assert Config().hash == parse_config(default_config()).hash


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
    config = with_settings(
        config,
        {
            "data.image_side": config.data.image_side or description.default_image_side,
            "data.root": config.data.root or "somewhere",
            "encoder.taps": config.encoder.taps or description.default_taps,
        },
    )
    assert config_problems(config, description, 1) == []
    assert config_problems(config, description, 8) == []


@pytest.mark.parametrize("name", CONFIG_NAMES)
def test_every_config_file_shows_its_command(name):
    text = (CONFIGS / f"{name}.py").read_text().partition('"""\n\n')[0]
    assert "python -m harmoniad_jax.train" in text
    assert f"--config configs/{name}.py" in text


def test_a_shipped_config_is_loaded_by_its_name():
    assert load_config("demo").to_dict() == config_of("demo")().to_dict()
    assert load_config("folder", "root=photos").data.root == "photos"


def test_data_set_configs_name_their_data_set():
    expected = {"mvtec": "mvtec_ad"}
    for name in ("visa", "btad", "mpdd", "mvtec_ad_2", "mvtec_loco", "real_iad"):
        expected[name] = name
    for name, source in expected.items():
        config = parse_config(config_of(name)())
        assert config.data.sources == (source,)
        assert config.evaluation.fpr_limit == (0.05 if name == "mvtec_ad_2" else 0.3)


def test_the_joint_config_takes_any_sets():
    joint = config_of("joint")
    assert joint().data.sources == ("mvtec_ad", "visa", "btad")
    for arguments, sources, encoder in (
        ("sets=mvtec_ad,visa,mpdd", ("mvtec_ad", "visa", "mpdd"), Config().encoder.name),
        ("sets=mpdd,encoder=a/b", ("mpdd",), "a/b"),
        ("encoder=a/b,sets=visa,real_iad", ("visa", "real_iad"), "a/b"),
    ):
        config = parse_config(joint(arguments))
        assert (config.data.sources, config.encoder.name) == (sources, encoder)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("mvtec_ad,visa", "'mvtec_ad' is not key=value"),
        ("encoder=a,visa", "'visa' is not key=value"),
        ("set=visa", "Did you mean 'sets'?"),
    ],
)
def test_the_joint_config_refuses_other_arguments(arguments, part):
    with pytest.raises(UserError) as error:
        config_of("joint")(arguments)
    assert part in str(error.value)


def test_config_files_do_not_share_their_values():
    get_config = config_of("mvtec")
    get_config().train.num_steps = 1
    assert get_config().train.num_steps == Config().train.num_steps


def test_folder_takes_root_and_encoder():
    config = parse_config(config_of("folder")("root=photos,encoder=weights/a=b"))
    assert (config.data.sources, config.data.root) == (("folder",), "photos")
    assert config.encoder.name == "weights/a=b"


def test_folder_takes_folders_by_name_and_tables():
    folder = config_of("folder")
    data = parse_config(
        folder("root=a,good=OK,abnormal_dir=dent,scratch,mask_dir=m1,m2,encoder=b/c")
    ).data
    assert (data.root, data.normal_dir) == ("a", ("OK",))
    assert (data.abnormal_dir, data.mask_dir) == (("dent", "scratch"), ("m1", "m2"))
    assert parse_config(folder("normal_dir=x,y")).data.normal_dir == ("x", "y")
    data = parse_config(folder("csv=a.csv,normal_split_ratio=0.2")).data
    assert (data.csv, data.normal_split_ratio, data.root) == ("a.csv", 0.2, "")
    for arguments, part in (
        ("good=a,normal_dir=b", "two names of one argument"),
        ("csv=a.csv,normal_split_ratio=some", "'some'; expected a number"),
        ("csv=a.csv,b.csv", "'b.csv' is not key=value"),
    ):
        with pytest.raises(UserError, match=part):
            folder(arguments)


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
