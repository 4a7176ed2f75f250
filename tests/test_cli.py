"""The real commands: bad input ends with one line on stderr and status 2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from run_helpers import call_command, changed

from configs import folder, mvtec
from harmoniad_jax.config import Config, parse_config
from harmoniad_jax.errors import UserError
from harmoniad_jax.evaluation.evaluate import evaluate_run
from harmoniad_jax.training.loop import train_and_evaluate

ROOT = Path(__file__).parents[1]
DEMO = ("--config", "configs/demo.py")

# Parses the flags of `train` as it does, and prints the settings instead of running.
SHOW_CONFIG = """
import json, sys, types
from harmoniad_jax import train
startup, loop = types.ModuleType("startup"), types.ModuleType("loop")
startup.start = lambda **_: None
loop.train_and_evaluate = lambda config, workdir, given: print(
    json.dumps({**config.to_dict(), "given": sorted(given)})
)
sys.modules["harmoniad_jax.devices.startup"] = startup
sys.modules["harmoniad_jax.training.loop"] = loop
train.main()
"""


def run(*command, folder=ROOT):
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def error_of(name, *arguments):
    """The one line that a command says of bad input."""
    done = run("-m", f"harmoniad_jax.{name}", *arguments)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in line
    return line


def error_in_settings(*overrides):
    """The error of `train` with some overrides; nothing is left in the run's folder."""
    return error_of("train", *DEMO, "--workdir", "runs/never", *overrides)


@pytest.fixture
def workdir(tmp_path):
    """A folder for a run that must not be made."""
    place = tmp_path / "run"
    yield place
    assert not place.exists()


# Flags: refused before JAX is loaded.


def test_train_without_flags():
    line = error_of("train")
    assert "--config" in line
    assert "--workdir" in line


def test_evaluate_without_flags():
    assert "--workdir" in error_of("evaluate")


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_unknown_flag(name):
    assert "nonsense" in error_of(name, "--nonsense=3")


def test_misspelt_flag_gets_a_suggestion():
    assert "workdir" in error_of("train", *DEMO, "--workdri=x")


def test_config_without_workdir():
    line = error_of("train", *DEMO)
    assert "--workdir" in line
    assert "--config=" not in line


@pytest.mark.parametrize("name", ["config.trian.num_steps", "config.num_steps"])
def test_unknown_setting_gets_a_suggestion(name):
    line = error_in_settings(f"--{name}=3")
    assert "did you mean config.train.num_steps?" in line
    assert f"{name} " in line


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("train.num_steps", "abc", "a whole number"),
        ("train.num_steps", "1.5", "a whole number"),
        ("train.num_steps", "", "a whole number"),
        ("model.mirror", "maybe", "True or False"),
        ("model.cutoff", "low", "a number"),
    ],
)
def test_ill_typed_override(name, value, expected):
    line = error_in_settings(f"--config.{name}={value}")
    assert line == f"error: config.{name} is {value!r}; expected {expected}."


def test_ill_typed_list():
    line = error_in_settings("--config.encoder.taps=a,b")
    assert "config.encoder.taps is" in line
    assert "whole numbers separated by commas" in line


def test_override_of_a_group():
    line = error_in_settings("--config.train=3")
    assert "config.train is a group of settings" in line
    assert "--config.train." in line


def test_stray_positional_argument():
    assert "'stray'" in error_in_settings("stray")


def test_config_file_that_does_not_exist(workdir):
    line = error_of("train", "--config", "configs/absent.py", "--workdir", workdir)
    assert "configs/absent.py" in line


@pytest.mark.parametrize("given", ["--config=mvtex", "--config mvtex:encoder=clip-b16"])
def test_unknown_short_name_of_a_config(workdir, given):
    line = error_of("train", *given.split(), "--workdir", workdir)
    assert "--config=mvtex is neither a file nor a shipped config" in line
    assert "btad, demo, folder, joint, mpdd, mvtec, " in line
    assert "visa. Did you mean 'mvtec'?" in line


@pytest.mark.parametrize("flag", ["--config=", "-config=", "--config "])
def test_short_name_of_a_config_from_any_folder(tmp_path, flag):
    arguments = f"{flag}folder:root=photos,encoder=untrained".split()
    done = run("-c", SHOW_CONFIG, *arguments, "--workdir", "runs/never", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    settings = json.loads(done.stdout)
    assert settings["data"]["root"] == "photos"
    assert settings["encoder"]["name"] == "untrained"


def test_a_file_has_precedence_over_a_short_name(tmp_path, workdir):
    (tmp_path / "demo").write_text("raise ValueError('of mine')\n")
    done = call_command("train", "--config=demo", "--workdir", workdir, folder=tmp_path)
    assert done.returncode == 2
    assert "of mine" in done.stderr


def test_empty_config_path(workdir):
    assert "--config" in error_of("train", "--config=", "--workdir", workdir)


def test_config_path_that_is_a_folder(workdir):
    assert "configs" in error_of("train", "--config=configs", "--workdir", workdir)


def test_config_file_that_forgets_to_return(tmp_path, workdir):
    path = tmp_path / "mine.py"
    path.write_text("def get_config():\n    pass\n")
    assert "config" in error_of("train", "--config", path, "--workdir", workdir)


def test_config_file_with_an_unknown_setting(tmp_path, workdir):
    path = tmp_path / "mine.py"
    path.write_text(
        "from harmoniad_jax.config import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.train.num_stesp = 3\n"
        "    return config\n"
    )
    line = error_of("train", "--config", path, "--workdir", workdir)
    assert "did you mean config.train.num_steps?" in line


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ("folder.py:rot=photos", "Did you mean 'root'?"),
        ("folder.py:photos", "key=value"),
        ("demo.py:root=photos", "root=photos"),
    ],
)
def test_config_argument_that_the_file_does_not_take(workdir, config, part):
    line = error_of("train", "--config", f"configs/{config}", "--workdir", workdir)
    assert part in line


def settings_of(*overrides):
    """The settings that `train` would run with."""
    done = run("-c", SHOW_CONFIG, *DEMO, "--workdir", "runs/never", *overrides)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_overrides_arrive():
    settings = settings_of(
        "--config.train.num_steps=7",
        "--config.train.seed",
        "3",
        "--config.model.dropout=0",
        "--noconfig.model.shrinkage",
        "--config.model.mirror",
        "--config.model.decimate=false",
        "--config.optimizer.learning_rate=1e-3",
        "--config.encoder.taps=3,4",
        "--config.data.categories=bottle,metal-nut",
        "--config.data.root=a=b,c",
        "--config.encoder.untrained.width=32",
    )
    assert settings["train"]["num_steps"] == 7
    assert settings["train"]["seed"] == 3
    assert settings["model"]["dropout"] == 0.0
    assert settings["model"]["shrinkage"] is False
    assert settings["model"]["mirror"] is True
    assert settings["model"]["decimate"] is False
    assert settings["optimizer"]["learning_rate"] == 1e-3
    assert settings["encoder"]["taps"] == [3, 4]
    assert settings["data"]["categories"] == ["bottle", "metal-nut"]
    # What is given is known, also where it is the default.
    assert settings_of("--config.evaluation.map_decay=0.25", "--noconfig.model.mirror")[
        "given"
    ] == ["evaluation.map_decay", "model.mirror"]
    assert settings_of()["given"] == []
    assert settings["data"]["root"] == "a=b,c"
    assert settings["encoder"]["untrained"]["width"] == 32
    # And everything else is as the config file has it.
    assert settings["train"]["checkpoint_every_steps"] == 100
    assert settings["loss"] == Config().to_dict()["loss"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("01", ["01"]),
        ("01,2", ["01", "2"]),
        ("pipe fryum,1x", ["pipe fryum", "1x"]),
        ("", []),
    ],
)
def test_categories_may_have_any_name(text, expected):
    """BTAD's are 01, 02 and 03."""
    settings = settings_of(f"--config.data.categories={text}")
    assert settings["data"]["categories"] == expected


# What is found once JAX is loaded. The commands add nothing to these errors but what
# the first test shows, so the others call the function behind the command.


def test_root_that_does_not_exist(tmp_path, workdir):
    line = error_of(
        "train",
        "--config",
        f"configs/folder.py:root={tmp_path / 'nowhere'},encoder=untrained",
        "--workdir",
        workdir,
        "--config.model.head_width=32",
    )
    assert str(tmp_path / "nowhere") in line
    assert "train/good" in line


def test_public_data_set_that_is_not_there(workdir, tmp_path):
    config = parse_config(mvtec.get_config())
    config = changed(config, "data", data_dir=str(tmp_path))
    with pytest.raises(UserError, match="Download mvtec_anomaly_detection.tar.xz") as error:
        train_and_evaluate(config, workdir)
    assert str(tmp_path / "downloads" / "manual") in str(error.value)
    assert "--config.data.manual_dir=DIR" in str(error.value)


def test_encoder_that_does_not_exist(products, tmp_path, workdir):
    settings = f"root={products},encoder={tmp_path / 'weights'}"
    with pytest.raises(UserError, match="config.json") as error:
        train_and_evaluate(parse_config(folder.get_config(settings)), workdir)
    assert str(tmp_path / "weights") in str(error.value)


def test_evaluate_of_an_empty_workdir(tmp_path):
    (tmp_path / "empty").mkdir()
    line = error_of("evaluate", "--workdir", tmp_path / "empty")
    assert str(tmp_path / "empty") in line
    assert "checkpoint" in line
    assert list((tmp_path / "empty").iterdir()) == []


def test_evaluate_of_an_absent_workdir(workdir):
    with pytest.raises(UserError, match="run holds no checkpoints"):
        evaluate_run(workdir)


def test_a_missing_root_is_found_before_the_encoder_is_looked_for(tmp_path, workdir):
    """Cheapest first: the model hub may be slow or out of reach."""
    config = changed(Config(), "data", root=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere"):
        train_and_evaluate(config, workdir)


def test_unknown_category(tiny_config, workdir):
    config = changed(tiny_config, "data", categories=("tabelt",))
    with pytest.raises(UserError, match="Did you mean 'tablet'?"):
        train_and_evaluate(config, workdir)


def test_mistakes_across_settings_leave_nothing_behind(tiny_config, workdir):
    config = changed(tiny_config, "train", batch_size=3, num_steps=0)
    with pytest.raises(UserError, match="config.train.num_steps is 0.*batch_size is 3"):
        train_and_evaluate(config, workdir)


def test_workdir_that_is_a_file(tiny_config, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file"):
        train_and_evaluate(tiny_config, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_damaged_image_leaves_nothing_behind(tiny_config, tmp_path, workdir):
    path = tmp_path / "photos/bottle/train/good/0.png"
    path.parent.mkdir(parents=True)
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:500])
    config = changed(tiny_config, "data", root=str(tmp_path / "photos"))
    with pytest.raises(UserError, match="0.png cannot be read"):
        train_and_evaluate(config, workdir)
