"""Sends every line of results.jsonl somewhere else, in order, until it is taken.

The file of results is the queue: it is on the disk, and nothing is kept in memory. So a
receiver may be away for days, and judging never waits for it.
"""

import abc
import contextlib
import math
import threading
import time
from pathlib import Path

from harmoniad_jax.errors import UserError
from harmoniad_jax.folders import write_whole

POLL_SECONDS = 0.2
FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 60.0
# Of sending after the end was asked for: Docker kills a server after ten.
CLOSING_SECONDS = 5.0


class Outbox(abc.ABC):
    """A thread that sends lines of JSON, until it is closed.

    How far it is stands in a file, which is written when a line was taken. So after a crash
    the last line may be sent twice, and none is lost. A receiver tells copies by `path`,
    `size` and `modified`.
    """

    name: str  # of the kind of receiver
    longest_wait = LONGEST_WAIT_SECONDS  # seconds between two attempts

    def __init__(self, results: Path):
        """Reads how far it was.

        Args:
          results: the file of lines, which grows. Another one in its place, which is
            shorter, is sent from its first line.

        Raises:
          UserError: a damaged file.
        """
        self._results = results
        self._place = results.with_name(f"{self.name}.offset")
        try:
            self._offset = int(self._place.read_text()) if self._place.exists() else 0
        except ValueError:
            raise UserError(
                f"{self._place} is damaged; delete it to send all results again."
            ) from None
        if self._offset > self._size:
            self._offset = 0
        self._stop, self._end = threading.Event(), math.inf
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)

    def start(self) -> None:
        if not self._offset:
            # Of a file that was moved away; it would count once this one is as large.
            with contextlib.suppress(OSError):
                self._place.unlink(missing_ok=True)
        self._thread.start()

    def stop_soon(self) -> None:
        """Asks for the end, and does not wait for it."""
        if not self._stop.is_set():
            self._end = time.monotonic() + CLOSING_SECONDS
            self._stop.set()

    def close(self) -> None:
        """Sends what is there, unless the receiver does not answer or it takes too long.

        What is not sent then is sent after the next start. A line whose answer did not come
        in time may be sent twice.
        """
        self.stop_soon()
        if self._thread.is_alive():
            self._thread.join(max(self._end - time.monotonic(), 0.0))

    @property
    def waiting_bytes(self) -> int:
        """Of the lines that were not taken yet."""
        return max(self._size - self._offset, 0)

    @property
    def _size(self) -> int:
        """Of the file of lines in bytes; 0: there is none."""
        try:
            return self._results.stat().st_size
        except OSError:
            return 0

    @abc.abstractmethod
    def _send(self, line: bytes) -> bool:
        """Sends a line without its end; whether it was taken. It may take some seconds."""

    def _run(self) -> None:
        wait = FIRST_WAIT_SECONDS
        while time.monotonic() < self._end:
            stopping = self._stop.is_set()
            line = self._next_line()
            if line is None:
                if stopping:
                    return
                self._stop.wait(POLL_SECONDS)
            elif self._send(line.strip()):
                wait = FIRST_WAIT_SECONDS
                self._offset += len(line)
                with contextlib.suppress(OSError):  # a full disk: it may be sent again
                    write_whole(self._place, str(self._offset))
            elif stopping:
                return
            else:
                self._stop.wait(wait)
                wait = min(2 * wait, self.longest_wait)

    def _next_line(self) -> bytes | None:
        """The next whole line; None: there is none yet."""
        try:
            with self._results.open("rb") as file:
                file.seek(self._offset)
                line = file.readline()
        except OSError:
            return None
        return line if line.endswith(b"\n") else None
