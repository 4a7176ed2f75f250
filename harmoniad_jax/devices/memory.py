"""Host memory that is used again instead of being asked for anew."""

import contextlib
import ctypes
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

# Names of glibc's malloc.h. A value of -1 is the largest.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
# Pieces of the heap that are left between others may need as much again, and other programs
# need some as well.
SPARE = 4
PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def share_heap() -> bool:
    """Lets all threads that are still to come take memory from one heap.

    `keep_memory` needs it, and JAX's threads begin when it is first used. Settings of the
    user (`GLIBC_TUNABLES`, `MALLOC_`) have precedence.

    Returns:
      Whether it is so; other C libraries stay as they are.
    """
    return _set({M_ARENA_MAX: 1})


def keep_memory(needed: int) -> bool:
    """Lets this process keep the memory that it frees, for its next use.

    XLA takes its working memory anew in every step. glibc would give a gigabyte back to the
    system each time, which then has to find, clear and map 300,000 pages again. For this
    large pieces come from the heap, and none of it is given back.

    Args:
      needed: bytes that are taken and freed again and again.

    Returns:
      Whether it is so: not where so much memory may not be there, and see `share_heap`.
    """
    available = available_memory()
    if available is None or SPARE * needed > available:
        return False
    return _set({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1})


def available_memory(proc: Path = PROC, cgroup: Path = CGROUP) -> int | None:
    """Bytes that this process may still take; None where the system does not say.

    Containers and jobs of a cluster have less than the machine: each control group that the
    process is in, and each group around it, may have a limit.

    Args:
      proc: where the system describes its processes.
      cgroup: where control groups are.
    """
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith("MemAvailable:"))
        available = 1024 * int(line.split()[1])
    except (OSError, ValueError):
        return None
    return min([available, *_left_in_groups(proc, cgroup)])


def _left_in_groups(proc: Path, cgroup: Path) -> Iterator[int]:
    """The bytes that each control group with a limit leaves, of both versions of them."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        lines = []
    # "0::/path" in version 2; "4:memory:/path" in version 1, perhaps with several names.
    paths = {"": "/", "memory": "/"}
    for line in lines:
        names, _, path = line.partition(":")[2].partition(":")
        paths |= dict.fromkeys(names.split(","), path)
    yield from _left(cgroup, paths[""], "memory.max", "memory.current")
    version_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    yield from _left(cgroup / "memory", paths["memory"], *version_1)


def _left(root: Path, path: str, limit: str, used: str) -> Iterator[int]:
    """The bytes that a group leaves, and each group around it.

    Args:
      root: folder of the outermost group.
      path: of the group in `root`. A container may have its own group as the root, and a
        path that is not there or leads out of it.
      limit, used: names of the files.
    """
    names = [name for name in path.split("/") if name]
    inside = [] if ".." in names else names
    for depth in range(len(inside) + 1):
        folder = root.joinpath(*inside[:depth])
        with contextlib.suppress(OSError, ValueError):  # no limit is "max"
            maximum, taken = (int((folder / name).read_text()) for name in (limit, used))
            yield maximum - taken


def _set(settings: Mapping[int, int]) -> bool:
    """Whether the C library took all of these."""
    if any(name.startswith(("GLIBC_TUNABLES", "MALLOC_")) for name in os.environ):
        return False
    try:
        os.confstr("CS_GNU_LIBC_VERSION")
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, ValueError):  # not glibc
        return False
    return all([mallopt(name, value) == 1 for name, value in settings.items()])
