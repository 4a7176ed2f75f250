"""What tests of whole runs share: changed settings, final states, commands."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs import demo
from harmoniad_jax.checkpoints.integrity import SEAL, digest
from harmoniad_jax.checkpoints.store import Checkpoints
from harmoniad_jax.config import Config, parse_config
from harmoniad_jax.fields import flatten
from harmoniad_jax.run.run import prepare_run

ROOT = Path(__file__).parents[1]


def changed(config: Config, section: str, **values) -> Config:
    """A config with some settings of one section changed."""
    part = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(config, **{section: part})


def shallow(config: Config) -> Config:
    """One group, one block in each branch: compiling is what takes time in most tests."""
    config = changed(config, "model", high_depth=1, low_depth=1, plain_depth=1)
    return changed(config, "encoder", groups=1)


def overrides(config: Config) -> list[str]:
    """The command line that turns the demo into `config`."""
    before = flatten(parse_config(demo.get_config()).to_dict())
    after = flatten(config.to_dict())
    return [
        f"--config.{name}={value}" for name, value in after.items() if before[name] != value
    ]


def final_state(config: Config, workdir: Path):
    """The state of the latest checkpoint, on the host."""
    run = prepare_run(config)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return jax.device_get(checkpoints.restore(run.abstract_state).state)


@contextlib.contextmanager
def rewritten(checkpoint: Path, name: str) -> Iterator[dict[str, Any]]:
    """Changes a JSON item of a checkpoint as if it had been saved like that."""
    path, seal_path = (checkpoint / item / "metadata" for item in (name, SEAL))
    item = json.loads(path.read_text())
    yield item
    path.write_text(json.dumps(item))
    seal = json.loads(seal_path.read_text())
    seal["items"][name] = digest(item)
    del seal["sha256"]
    seal_path.write_text(json.dumps({**seal, "sha256": digest(seal)}))


def assert_bitwise_equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def call_command(name: str, *arguments, folder: Path = ROOT):
    """Runs a command of this checkout, wherever it is given."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), environment.get("PYTHONPATH", "")])
    )
    return subprocess.run(
        [sys.executable, "-m", f"harmoniad_jax.{name}", *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
