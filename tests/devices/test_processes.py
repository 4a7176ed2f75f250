"""Several processes on one machine: they compute what one does, and stop together."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from run_helpers import changed, overrides, shallow

from harmoniad_jax.devices.mesh import make_mesh
from harmoniad_jax.devices.processes import (
    Agreement,
    all_agree,
    in_cluster,
    join_processes,
    main_first,
    map_shared,
    together,
)
from harmoniad_jax.errors import UserError

ROOT = Path(__file__).parents[2]
DEVICES = 4
# What the network library says on stdout, its threads in the middle of each other's lines.
GLOO = re.compile(r"^(.*(\[Gloo\]|peer ranks).*|[ :\d]*)\n", re.MULTILINE)


def start(config, workdir, index=0, count=1, port=0):
    """Process `index` of `count`, each with its share of the devices."""
    flags = f"--xla_force_host_platform_device_count={DEVICES // count}"
    fast = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    command = [
        *(sys.executable, "-m", "harmoniad_jax.train", "--config", "configs/demo.py"),
        *("--workdir", str(workdir)),
        *overrides(config),
    ]
    if count > 1:
        command += [
            f"--coordinator_address=localhost:{port}",
            f"--num_processes={count}",
            f"--process_id={index}",
        ]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": " ".join([flags, *fast])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(configs, workdir):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [start(c, workdir, i, 2, port) for i, c in enumerate(configs)]


def finish(processes):
    """Exit statuses, and (stdout, stderr) without what the network library says."""
    outputs = [process.communicate(timeout=300) for process in processes]
    told = [[GLOO.sub("", text) for text in pair] for pair in outputs]
    return [process.returncode for process in processes], told


def losses_of(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def config(tiny_config, tmp_path_factory):
    """Half of each category held out, images read in every step, a report at the end."""
    config = changed(shallow(tiny_config), "calibration", holdout=0.4)
    config = changed(config, "evaluation", report=True)
    config = changed(config, "data", categories=("fabric", "tablet"))
    folder = str(tmp_path_factory.mktemp("features"))
    return changed(config, "cache", folder=folder)


def test_two_processes_are_one_that_was_stopped_in_between(config, tmp_path):
    """A signal to one of them stops both after the same step; they continue as one run."""
    single = [start(config, tmp_path / "one")]
    assert finish(single)[0] == [0]

    processes = start_two([config, config], tmp_path / "two")
    for line in processes[0].stderr:
        if line.startswith("step 2 of"):
            break
    processes[1].send_signal(signal.SIGTERM)
    statuses, outputs = finish(processes)
    assert statuses == [75, 75], outputs
    stopped = int(re.search(r"stopping after step (\d) of 6", outputs[0][1])[1])
    assert 2 <= stopped < 6
    # The one that does not speak for all says what ended it, and no more.
    assert outputs[1][0] == ""
    assert outputs[1][1].count("\n") == 1 and "SIGTERM" in outputs[1][1]

    statuses, outputs = finish(start_two([config, config], tmp_path / "two"))
    assert statuses == [0, 0], outputs
    assert f"continuing after step {stopped}" in outputs[0][1]
    assert "| mean" in outputs[0][0]
    assert outputs[1] == ["", ""]
    np.testing.assert_allclose(
        losses_of(tmp_path / "two"), losses_of(tmp_path / "one"), rtol=1e-4
    )
    one, two = (
        json.loads((tmp_path / name / "results.json").read_text())
        for name in ("one", "two")
    )
    for name, value in one["mean"].items():
        assert two["mean"][name] == pytest.approx(value, abs=0.02), name
    assert (tmp_path / "two" / "report" / "index.html").is_file()


def test_an_error_of_one_process_ends_both(config, tmp_path):
    lost = changed(config, "data", root=str(tmp_path / "nowhere"))
    statuses, outputs = finish(start_two([config, lost], tmp_path / "run"))
    assert statuses == [2, 2]
    for _, errors in outputs:
        assert "process 1: " in errors
        assert "nowhere" in errors


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (("localhost:1", None, None), "need all of"),
        ((None, 2, 0), "need all of"),
        (("localhost:1", 2, 2), "expected 0 to 1"),
        (("localhost:1", 2, -1), "expected 0 to 1"),
    ],
)
def test_flags_that_do_not_fit_are_refused(given, named):
    with pytest.raises(UserError, match=named):
        join_processes(*given)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"SLURM_NTASKS": "4"}, False),  # a batch script that does not call srun
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
    ],
)
def test_a_cluster_is_known_by_what_it_sets(environment, expected, monkeypatch):
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert in_cluster() is expected


def test_one_process_agrees_with_itself():
    def fail():
        raise UserError("no")

    assert all_agree(True) and not all_agree(False)
    assert together(lambda: 3) == main_first(lambda: 3) == 3
    assert map_shared(lambda items: [bytes([i]) for i in items], [1, 2], 1) == [
        b"\1",
        b"\2",
    ]
    agreement = Agreement(make_mesh())
    assert [agreement(False), agreement(True)] == [False, True]
    for call in (together, main_first):
        with pytest.raises(UserError, match="no"):
            call(fail)
