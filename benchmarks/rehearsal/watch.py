"""Runs a command as at a terminal, and notes its progress and its memory over time."""

import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from harmoniad_jax.errors import UserError

INTERVAL = 0.1  # seconds between two looks at the memory
# Wide enough that no progress bar loses its numbers.
ROWS, COLUMNS = 24, 200
BAR = re.compile(r"(?P<title>[^%|]+): +\d+%\|.*?\| (?P<done>\d+)/(?P<total>\d+) \[")
CURSOR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Mark(NamedTuple):
    """A progress bar at a time, in seconds of `time.monotonic`."""

    time: float
    title: str
    done: int
    total: int


@dataclass(frozen=True)
class Watched:
    """What a command did.

    Attributes:
      begin, end: of the process, in seconds of `time.monotonic`.
      marks: its progress bars, in order of time.
      lines: all else that it said.
      resident: resident bytes of its first process over time.
      largest: most resident bytes of any of its processes, as the system counts them.
    """

    begin: float
    end: float
    marks: Sequence[Mark]
    lines: Sequence[str]
    resident: Sequence[tuple[float, int]]
    largest: int

    @property
    def seconds(self) -> float:
        return self.end - self.begin

    def marks_of(self, titles: Collection[str]) -> list[Mark]:
        """The marks of some progress bars.

        Raises:
          UserError: one of them was never seen.
        """
        seen = {mark.title for mark in self.marks}
        if absent := [title for title in titles if title not in seen]:
            raise UserError(
                f"the command showed no progress of {', '.join(absent)}, but of "
                f"{', '.join(sorted(seen)) or 'nothing'}; rehearse.py and it are of "
                "different versions."
            )
        return [mark for mark in self.marks if mark.title in titles]

    def resident_between(self, begin: float, end: float) -> int:
        """Most resident bytes in a span of time, 0 if it was not looked at."""
        before = [size for moment, size in self.resident if moment <= begin]
        within = [size for moment, size in self.resident if begin < moment <= end]
        return max(within or before[-1:], default=0)


def watch(
    command: Sequence[str],
    folder: Path,
    log: Path,
    environment: Mapping[str, str] | None = None,
) -> Watched:
    """Runs a command in a folder to its end; what it says goes to a file and a terminal.

    Raises:
      UserError: it failed.
    """
    # At a terminal the program shows bars, which say more than its log lines.
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (ROWS, COLUMNS))
    reader, resident = _Reader(), []
    begin = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=its,
        stderr=its,
    )
    os.close(its)
    try:
        with log.open("wb") as file:
            while (said := _read(ours)) is not None:
                file.write(said)
                reader.add(said)
                if sys.stderr.isatty():
                    os.write(sys.stderr.fileno(), said)
                if size := _resident(process.pid):
                    resident.append((time.monotonic(), size))
        _, status, usage = os.wait4(process.pid, 0)
        end = time.monotonic()
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        os.close(ours)
        if process.returncode is None:
            process.terminate()
            process.wait()
    if process.returncode != 0:
        last = reader.lines[-1] if reader.lines else "it said nothing"
        raise UserError(
            f"{' '.join(command[1:4])} ended with status {process.returncode}: "
            f"{last.removeprefix('error: ')} All that it said is in {log}."
        )
    largest = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Watched(begin, end, reader.marks, reader.lines, resident, largest)


class _Reader:
    """Takes what a program says apart, into progress bars and lines."""

    def __init__(self):
        self.marks: list[Mark] = []
        self.lines: list[str] = []
        # The last piece, whose end was not read yet, and whether it is a bar already: a
        # bar ends its line only when the next one comes.
        self._rest, self._taken = b"", False

    def add(self, said: bytes) -> None:
        *pieces, self._rest = re.split(rb"[\r\n]", self._rest + said)
        for piece in pieces:
            if not self._taken and not self._takes(piece):
                self.lines += filter(None, [_text(piece).rstrip()])
            self._taken = False
        self._taken = self._taken or self._takes(self._rest)

    def _takes(self, piece: bytes) -> bool:
        bar = BAR.match(_text(piece))
        if bar is None:
            return False
        title, done, total = bar["title"].strip(), int(bar["done"]), int(bar["total"])
        self.marks.append(Mark(time.monotonic(), title, done, total))
        return True


def _text(said: bytes) -> str:
    return CURSOR.sub("", said.decode(errors="replace"))


def _read(terminal: int) -> bytes | None:
    """What was said within an interval; None when the last speaker has gone."""
    ready, _, _ = select.select([terminal], [], [], INTERVAL)
    if not ready:
        return b""
    try:
        return os.read(terminal, 1 << 16) or None
    except OSError:  # how Linux says it
        return None


def _resident(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
