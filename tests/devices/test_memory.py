"""Memory that was freed is used again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harmoniad_jax.devices import memory
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


def test_a_container_has_what_its_limit_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    machine = available_memory()
    if machine is None:
        pytest.skip("the system does not say")
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("5000\n")
    assert available_memory() == 4000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory() > 4000


def test_the_users_own_settings_stay():
    assert use_twice(MALLOC_TRIM_THRESHOLD_="0")[0] == 0
