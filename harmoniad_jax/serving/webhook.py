"""Sends every line of results.jsonl to an address, in order, until it is taken."""

import contextlib
import logging
import threading
import urllib.parse
import urllib.request
from pathlib import Path

from harmoniad_jax.errors import UserError
from harmoniad_jax.folders import write_whole

logger = logging.getLogger(__name__)

OFFSET = "webhook.offset"
POLL_SECONDS = 0.2
FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 60.0
TIMEOUT_SECONDS = 10.0


class Webhook:
    """A thread that posts lines of JSON, until it is closed.

    How far it is stands in a file, which is written when a line was taken. So after a crash
    the last line may be sent twice, and none is lost. A receiver tells copies by `path`,
    `size` and `modified`.
    """

    def __init__(self, address: str, results: Path):
        """Reads how far it was.

        Args:
          address: http or https.
          results: the file of lines, which grows.

        Raises:
          UserError: another kind of address, or a damaged file.
        """
        if urllib.parse.urlsplit(address).scheme not in ("http", "https"):
            raise UserError(f"--webhook={address} must begin with http:// or https://.")
        self._address, self._results = address, results
        self._place = results.with_name(OFFSET)
        try:
            self._offset = int(self._place.read_text()) if self._place.exists() else 0
        except ValueError:
            raise UserError(
                f"{self._place} is damaged; delete it to send all results again."
            ) from None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Sends what is there, unless the receiver does not answer."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        wait = FIRST_WAIT_SECONDS
        while True:
            stopping = self._stop.is_set()
            line = self._next_line()
            if line is None:
                if stopping:
                    return
                self._stop.wait(POLL_SECONDS)
            elif self._send(line):
                wait = FIRST_WAIT_SECONDS
                self._offset += len(line)
                with contextlib.suppress(OSError):  # a full disk: it may be sent again
                    write_whole(self._place, str(self._offset))
            elif stopping:
                return
            else:
                self._stop.wait(wait)
                wait = min(2 * wait, LONGEST_WAIT_SECONDS)

    def _next_line(self) -> bytes | None:
        """The next whole line; None: there is none yet."""
        try:
            with self._results.open("rb") as file:
                file.seek(self._offset)
                line = file.readline()
        except OSError:
            return None
        return line if line.endswith(b"\n") else None

    def _send(self, line: bytes) -> bool:
        """Whether it was taken: answered with a status of 200 to 299."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._address, line.strip(), headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):
                return True
        except (OSError, ValueError) as error:  # HTTPError is an OSError
            logger.warning("webhook: %s; it is tried again", error)
            return False
