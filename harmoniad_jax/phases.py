"""Where the time of a start goes: code marks its phases, a command may print a table.

A phase inside another one is counted for itself alone. Only one thread marks phases.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

_seconds: dict[str, float] = {}
# Of the phases inside each open one.
_inside: list[float] = []


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Counts the time within it for this name, also where it is entered again."""
    start = time.monotonic()
    _inside.append(0.0)
    try:
        yield
    finally:
        passed = time.monotonic() - start
        note(name, passed - _inside.pop())
        if _inside:
            _inside[-1] += passed


def note(name: str, seconds: float) -> None:
    """Counts seconds for a name."""
    _seconds[name] = _seconds.get(name, 0.0) + seconds


def since_start() -> float:
    """Seconds since this process began, to a hundredth.

    Where the system does not say, the processor time that it has taken.
    """
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(time.clock_gettime(time.CLOCK_BOOTTIME) - began, 0.0)
    except (OSError, ValueError, IndexError, AttributeError):
        return time.process_time()


def table(total: float) -> str:
    """The phases so far, in their order, and what else there was of a total in seconds."""
    return in_lines(_seconds, total)


def in_lines(seconds: Mapping[str, float], total: float) -> str:
    """Seconds of phases as a table of text, with a row for the rest and one for all."""
    rest = max(total - sum(seconds.values()), 0.0)
    rows = [*seconds.items(), ("other", rest), ("total", total)]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value:6.2f} s" for name, value in rows)
