"""How much memory this process has while something runs (Linux)."""

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

INTERVAL = 0.02  # seconds between two looks
STATM = Path("/proc/self/statm")


class Memory(NamedTuple):
    """Bytes of a process: all that is resident, and that without mapped files."""

    resident: int
    own: int


def memory_now() -> Memory:
    """What the process has now."""
    _, resident, shared, *_ = map(int, STATM.read_text().split())
    page = os.sysconf("SC_PAGE_SIZE")
    return Memory(page * resident, page * (resident - shared))


class Peak:
    """A context manager: the most of both while it is open.

    Looks every few milliseconds, so that the peak of a stage is not that of an earlier one,
    as the system's own count would be.
    """

    def __init__(self):
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.most = Memory(0, 0)

    def __enter__(self) -> Self:
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _look(self) -> None:
        self.most = Memory(*map(max, zip(self.most, memory_now(), strict=True)))

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL):
            self._look()
