"""Runs a command of the package, and notes the most device memory that it took so far.

    python benchmarks/rehearsal/device_memory.py NOTES harmoniad_jax.train --config ...

The command is run as `python -m` would. NOTES gets a line whenever the figure grew: the
time of `time.monotonic`, and bytes. It stays empty where JAX does not count them (CPU).
"""

import logging
import runpy
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

INTERVAL = 0.25  # seconds between two looks


def peak_bytes(devices: Sequence[Any]) -> int:
    """Most bytes ever in use on the fullest of some JAX devices; 0 where not counted."""
    known = [stats for device in devices if (stats := device.memory_stats())]
    return max((stats.get("peak_bytes_in_use", 0) for stats in known), default=0)


class Notes(logging.Handler):
    """Looks at the devices from the program's first message on.

    By then the program has set JAX up itself. A look before that would do it instead.
    """

    def __init__(self, path: Path):
        super().__init__()
        self._file = path.open("w", buffering=1)
        self._highest = 0
        self._started, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        self._started.set()

    def _run(self) -> None:
        self._started.wait()
        while not self._stop.wait(INTERVAL):
            self._look()

    def _look(self) -> None:
        import jax

        if (peak := peak_bytes(jax.local_devices())) > self._highest:
            self._highest = peak
            self._file.write(f"{time.monotonic()} {peak}\n")

    def finish(self) -> None:
        """Looks a last time, if the program came that far."""
        self._stop.set()
        if self._started.is_set():
            self._thread.join()
            self._look()
        self._file.close()


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    notes = Notes(Path(sys.argv[1]))
    logging.getLogger("harmoniad_jax").addHandler(notes)
    sys.argv = sys.argv[2:]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    finally:
        notes.finish()


if __name__ == "__main__":
    main()
