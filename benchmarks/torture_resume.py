"""Kills a run at random moments until it gets through, and compares it with another.

    python benchmarks/torture_resume.py --kills 20 -- --config configs/demo.py

What stands behind -- goes to `python -m harmoniad_jax.train`. First the run is made
without a disturbance. Then it is started again and again in another folder and killed at a
moment chosen at random: while it starts, compiles, encodes, trains, saves, calibrates or
evaluates. At last it may finish. Parameters, optimizer, results and log must be those of
the first run, bit for bit. With --signal TERM its end must have status 75.

Each of the two runs has a cache folder of its own, empty at first: for drawn images,
features and compiled programs.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from harmoniad_jax.checkpoints.store import Checkpoints
from harmoniad_jax.errors import INTERRUPTED_STATUS
from harmoniad_jax.run.run import prepare_run
from harmoniad_jax.run.stored import with_last_settings

ROOT = Path(__file__).parents[1]
COMPARED_FILES = ("results.json", "config.json")


def start(workdir: Path, arguments: list[str]) -> subprocess.Popen:
    """The command as a user gives it, with a cache folder of its own."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(workdir.with_suffix(".cache"))}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    with workdir.with_suffix(".log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "harmoniad_jax.train", *arguments]
            + [f"--workdir={workdir}"],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def final_state(workdir: Path):
    """The state of the last checkpoint, on the host."""
    with Checkpoints(workdir, read_only=True) as checkpoints:
        config = with_last_settings(checkpoints.read_identity().config, workdir)
        run = prepare_run(config)
        return jax.device_get(checkpoints.restore(run.abstract_state).state)


def differing(first: Path, second: Path) -> list[str]:
    """What of two finished runs is not the same, bit for bit."""
    ours, theirs = final_state(first), final_state(second)
    names = [
        jax.tree_util.keystr(path)
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
        )
        if not np.array_equal(a, b)
    ]
    for name in COMPARED_FILES:
        if (first / name).read_bytes() != (second / name).read_bytes():
            names.append(name)
    if losses(first) != losses(second):
        names.append("metrics.jsonl")
    return names


def losses(workdir: Path) -> list[tuple[int, float]]:
    """Every logged step with its loss; its speed is another each time."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="where the runs are left")
    parser.add_argument("arguments", nargs="*", help="of harmoniad_jax.train")
    options = parser.parse_args()
    number = signal.Signals[f"SIG{options.signal}"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        torture(folder, options.arguments, number, options.kills, options.seed)


def torture(
    folder: Path, arguments: list[str], number: signal.Signals, kills: int, seed: int
) -> None:
    """Makes both runs and compares them; ends the program if they differ."""
    undisturbed, disturbed = folder / "undisturbed", folder / "disturbed"
    began = time.monotonic()
    if start(undisturbed, arguments).wait() != 0:
        sys.exit(f"the undisturbed run failed, see {undisturbed}.log")
    duration = time.monotonic() - began
    print(f"undisturbed: {duration:.0f} s", flush=True)

    draw, killed, finished = random.Random(seed), 0, 0
    while killed < kills:
        process, began = start(disturbed, arguments), time.monotonic()
        moment = draw.uniform(0.0, duration)
        try:
            status = process.wait(moment)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            asked = time.monotonic()
            status = process.wait()
            took = time.monotonic() - asked
            killed += 1
            print(f"kill {killed:3}: at {moment:6.1f} s, ended in {took:.1f} s", flush=True)
            # It may have ended by itself in the same moment, or not listened yet.
            if status not in (0, -number, INTERRUPTED_STATUS):
                sys.exit(f"status {status} after {number.name}, see {disturbed}.log")
        else:
            if status != 0:
                sys.exit(f"status {status} when continued, see {disturbed}.log")
            # It got through before it was killed often enough: begin with the next one,
            # which is faster, since its caches are filled.
            compare(disturbed, undisturbed)
            duration, finished = time.monotonic() - began, finished + 1
            disturbed.rename(folder / f"finished-{finished}")
    if start(disturbed, arguments).wait() != 0:
        sys.exit(f"the last continuation failed, see {disturbed}.log")
    compare(disturbed, undisturbed)


def compare(disturbed: Path, undisturbed: Path) -> None:
    names = differing(disturbed, undisturbed)
    if names:
        sys.exit(f"NOT THE SAME: {len(names)} differ, such as {', '.join(names[:5])}")
    print("finished with the same bits", flush=True)


if __name__ == "__main__":
    main()
