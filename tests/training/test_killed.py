"""A run that is killed, again and again: a file of its own, since it takes longest."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from run_helpers import assert_bitwise_equal, final_state, overrides

ROOT = Path(__file__).parents[2]


def test_a_killed_run_ends_as_an_undisturbed_one(tiny_config, tmp_path):
    """SIGKILL at moments that no one chose, until the run gets through.

    As users run it: without the tests' compiler flags, and each of the two runs compiles
    for itself.
    """
    users = {name: text for name, text in os.environ.items() if name != "XLA_FLAGS"}

    def start(workdir):
        cache = {"JAX_COMPILATION_CACHE_DIR": str(workdir.with_suffix(".cache"))}
        command = [
            *(sys.executable, "-m", "harmoniad_jax.train", "--config", "configs/demo.py"),
            *("--workdir", str(workdir)),
            *overrides(tiny_config),
        ]
        return subprocess.Popen(
            command, cwd=ROOT, env=users | cache, stderr=subprocess.PIPE, text=True
        )

    def finish(workdir):
        process = start(workdir)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors

    finish(tmp_path / "undisturbed")
    killed = 0
    for delay in np.random.default_rng(0).uniform(0.0, 0.8, 2):
        process = start(tmp_path / "killed")
        # Once steps are made, a save or a step or both may be under way.
        for line in process.stderr:
            if line.startswith("step ") and " of " in line:
                break
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    assert killed > 0
    finish(tmp_path / "killed")
    assert_bitwise_equal(
        final_state(tiny_config, tmp_path / "killed"),
        final_state(tiny_config, tmp_path / "undisturbed"),
    )
    for file in ("results.json", "config.json"):
        texts = [(tmp_path / run / file).read_text() for run in ("killed", "undisturbed")]
        assert texts[0] == texts[1]
