"""Memory that was freed is used again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harmoniad_jax.devices.memory import available_memory

ROOT = Path(__file__).parents[2]
PROGRAM = """
import resource, sys, threading
import numpy as np
from harmoniad_jax.devices.memory import keep_memory, share_heap

def use():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(64 * 2**20, np.uint8)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

share_heap()
kept, faults = keep_memory(int(sys.argv[1])), []
for _ in range(2):  # by another thread each time, as XLA's are
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
print(int(kept), *faults)
"""


def use_twice(needed=0, **variables):
    """Whether memory is kept, and the pages that the same use took at first and again."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GLIBC", "MALLOC_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(needed)],
        cwd=ROOT,
        env={**kept, **variables},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return tuple(map(int, done.stdout.split()))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="for glibc")
def test_what_was_freed_is_used_again():
    kept, first, again = use_twice()
    if not kept:
        pytest.skip("another C library")
    assert again < first / 100


def test_nothing_is_kept_where_memory_is_short():
    assert use_twice(needed=available_memory() or 1)[0] == 0


GIB = 2**30
V2, V1 = (
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)


@pytest.fixture
def machine(tmp_path):
    """A system with 64 GiB to spare: `machine(lines, groups)` is what a process may take.

    lines: of /proc/self/cgroup, None: it is not there. groups: folder below /sys/fs/cgroup
    to (names of its files, limit, use).
    """

    def available(lines, groups):
        proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
        (proc / "self").mkdir(parents=True)
        (proc / "meminfo").write_text(f"MemFree: 1 kB\nMemAvailable: {64 * 2**20} kB\n")
        if lines is not None:
            (proc / "self" / "cgroup").write_text(lines)
        for folder, (names, *values) in groups.items():
            (cgroup / folder).mkdir(parents=True, exist_ok=True)
            for name, value in zip(names, values, strict=True):
                (cgroup / folder / name).write_text(f"{value}\n")
        return available_memory(proc, cgroup)

    return available


@pytest.mark.parametrize(
    ("lines", "groups", "expected"),
    [
        # Neither limits nor groups.
        (None, {}, 64 * GIB),
        ("0::/\n", {}, 64 * GIB),
        ("0::/\n", {".": (V2, "max", GIB)}, 64 * GIB),
        ("0::/\n", {".": (V2, 99 * GIB, GIB)}, 64 * GIB),
        # A container sees its own group as the root, by its path or not.
        (None, {".": (V2, 5 * GIB, GIB)}, 4 * GIB),
        ("0::/\n", {".": (V2, 5 * GIB, GIB)}, 4 * GIB),
        ("0::/docker/1\n", {".": (V2, 5 * GIB, GIB)}, 4 * GIB),
        ("0::/../../job\n", {".": (V2, 5 * GIB, GIB)}, 4 * GIB),
        # A job of Slurm: the limit is that of a group around the process's own.
        (
            "0::/slurm/job_7/step_0/task_0\n",
            {
                "slurm": (V2, "max", 50 * GIB),
                "slurm/job_7": (V2, 8 * GIB, 6 * GIB),
                "slurm/job_7/step_0": (V2, 8 * GIB, 2 * GIB),
                "slurm/job_7/step_0/task_0": (V2, "max", GIB),
                "slurm/job_8": (V2, GIB, 0),  # of another job
            },
            2 * GIB,
        ),
        # Version 1, whose root has no limit: a huge number.
        (
            "5:cpu,cpuacct:/\n4:memory:/slurm/uid_1/job_7\n1:name=systemd:/user\n0::/\n",
            {
                "memory": (V1, 2**63 - 4096, 50 * GIB),
                "memory/slurm/uid_1": (V1, 20 * GIB, GIB),
                "memory/slurm/uid_1/job_7": (V1, 6 * GIB, 3 * GIB),
                "memory/user": (V1, GIB, 0),
            },
            3 * GIB,
        ),
        ("4:memory:/docker/1\n", {"memory": (V1, 5 * GIB, GIB)}, 4 * GIB),
        ("3:cpu,memory:/a:b\n", {"memory/a:b": (V1, 5 * GIB, GIB)}, 4 * GIB),
        # A group that has taken more than its limit, and what is not for us to read.
        ("0::/a\n", {"a": (V2, GIB, 2 * GIB)}, -GIB),
        ("?\n0::/a\n\n", {"a": (V2, "", "")}, 64 * GIB),
    ],
)
def test_a_process_has_what_the_smallest_limit_leaves(machine, lines, groups, expected):
    assert machine(lines, groups) == expected


def test_a_system_that_does_not_say(tmp_path):
    assert available_memory(tmp_path, tmp_path) is None


def test_the_users_own_settings_stay():
    assert use_twice(MALLOC_TRIM_THRESHOLD_="0")[0] == 0
