"""The wheel, installed into an environment of its own: what is in it, and that it runs."""

import os
import shutil
import subprocess
import sys
import venv
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import pytest
from run_helpers import overrides, shallow

from harmoniad_jax.config import with_settings

ROOT = Path(__file__).parents[1]
# What a checkout holds; what is packaged, and what must not be.
FILES = ("LICENSE", "README.md", "pyproject.toml", "setup.cfg", "setup.py")
COMMANDS = (
    *("train", "evaluate", "predict", "summarize", "submit", "ablate", "robustness"),
    *("views", "export", "serve", "calibrate"),
)
PROGRAMS = (*COMMANDS, "runtime")
PACKAGES = ("harmoniad_jax", "harmoniad_runtime", "tfds_builders")
FOLDERS = (*PACKAGES, "configs", "scripts", "benchmarks", "tests")


class Environment(NamedTuple):
    """A virtual environment with the wheel in it."""

    python: Path
    site: Path

    def run(self, *command, folder):
        """Runs a command that must succeed, without sight of the checkout."""
        environment = {**os.environ}
        environment.pop("PYTHONPATH", None)
        # One device, as users have: compiling for eight takes longer.
        flags = environment["XLA_FLAGS"].split()
        one_device = [flag for flag in flags if "device_count" not in flag]
        environment["XLA_FLAGS"] = " ".join(one_device)
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done


def major_version(name):
    try:
        return int(version(name).partition(".")[0])
    except PackageNotFoundError:
        return 0


def pip(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Environment:
    """Built and installed without the network: other packages are those of the tests."""
    for name, oldest in (("pip", 23), ("setuptools", 77)):
        if major_version(name) < oldest:
            pytest.skip(f"no {name} {oldest} or newer to build with")
    folder = tmp_path_factory.mktemp("wheel")
    # A copy, since building leaves files behind, which a later build would take up.
    source = folder / "source"
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, source)
    offline = ("--no-deps", "--no-index")
    pip("wheel", "--no-build-isolation", *offline, "--wheel-dir", folder, source)
    (wheel,) = folder.glob("*.whl")

    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv/bin/python"
    pip("--python", python, "install", "--no-compile", *offline, wheel)
    (site,) = folder.glob("venv/lib/*/site-packages")
    # Packages alone: .pth files, such as that of an editable install of this project, are
    # only read in an environment's own folder.
    others = [path for path in sys.path if Path(path).name.endswith("-packages")]
    (site / "others.pth").write_text("\n".join(others))
    return Environment(python, site)


def test_no_package_has_a_name_that_others_use(installed):
    packages = {path.name for path in installed.site.iterdir() if path.is_dir()}
    ours = {name for name in packages if not name.endswith(".dist-info")}
    assert ours == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_of_a_package_is_there(installed, package):
    """Data files too: what the report is made of, and what TFDS reads of a builder."""
    files = [path.relative_to(ROOT) for path in (ROOT / package).rglob("*.*")]
    wanted = [path for path in files if "__pycache__" not in path.parts]
    assert {".py", ".html", ".css", ".js", ".bib", ".md", ".txt"} >= {
        path.suffix for path in wanted
    }
    assert [path for path in wanted if not (installed.site / path).is_file()] == []


def test_config_files_are_in_the_package(installed):
    for path in (ROOT / "configs").glob("*.py"):
        assert (installed.site / "harmoniad_jax/configs" / path.name).is_file()


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_command_is_a_program(installed, name):
    assert os.access(installed.python.with_name(f"harmoniad-{name}"), os.X_OK)


def test_the_demo_trains_from_another_folder(installed, tiny_config, tmp_path):
    config = with_settings(shallow(tiny_config), {"train.num_steps": 3})
    done = installed.run(
        *(installed.python.with_name("harmoniad-train"), "--config", "demo"),
        *("--workdir", "run", *overrides(config)),
        folder=tmp_path,
    )
    assert "I-AUROC" in done.stdout
    assert (tmp_path / "run/results.json").is_file()


def test_what_is_imported_is_the_wheel(installed, tmp_path):
    """The other tests would pass with the checkout just as well."""
    script = "import harmoniad_jax; print(harmoniad_jax.__file__)"
    done = installed.run(installed.python, "-c", script, folder=tmp_path)
    assert Path(done.stdout.strip()).is_relative_to(installed.site)
