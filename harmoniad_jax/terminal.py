"""How every command ends: errors as one line, signals and closed outputs in order."""

import argparse
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from harmoniad_jax import signals
from harmoniad_jax.errors import (
    INTERRUPTED_STATUS,
    USER_ERROR_STATUS,
    UserError,
    system_problem,
)

# New objects before a search, and searches of each generation before one of the next.
GARBAGE_THRESHOLDS = (50_000, 20, 50)


def configure_output() -> None:
    """Spells out what the terminal's encoding lacks, such as umlauts in ASCII."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a closed one is None
            stream.reconfigure(errors="backslashreplace")


class Parser(argparse.ArgumentParser):
    """Flags of the commands that run without absl; a mistake is one line and status 2."""

    def error(self, message: str) -> NoReturn:
        fail(message)


def fail(message: object) -> NoReturn:
    """Ends with an error in one line, and status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(USER_ERROR_STATUS)


def run(
    command: Callable[[], Any],
    *,
    fail: Callable[[Exception | str], NoReturn] = fail,
    continues: bool = False,
) -> Any:
    """Calls a command; bad input ends it with one line and status 2.

    So does what the operating system refuses: a full disk, a folder without permission. A
    reader of the output that has gone, such as `head`, ends the command without a word.

    Args:
      command: returns what this returns.
      fail: prints an error and ends.
      continues: whether the same command goes on where a signal ended it; the status is
        75 then, and otherwise what a shell reports of the signal.
    """

    def end(number: int) -> int:
        hint = "; the same command continues the run" if continues else ""
        print(f"interrupted by {signal.Signals(number).name}{hint}", file=sys.stderr)
        return INTERRUPTED_STATUS if continues else 128 + number

    signals.install(end)
    # Imports and tracing make many objects that stay: each search for garbage among them
    # takes long and finds none.
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    try:
        with _written_output():
            return command()
    except UserError as error:
        fail(error)
    except signals.Interrupted as interruption:
        signals.ignore()
        sys.exit(end(interruption.number))
    except BrokenPipeError:
        sys.exit(128 + signal.SIGPIPE)  # as a shell reports it
    except OSError as error:
        fail(system_problem(error, "a file or the output"))


@contextlib.contextmanager
def _written_output() -> Iterator[None]:
    """Writes what was printed; an error of that is raised, and not at the very end.

    Raises:
      OSError: the output is full or closed. What is printed after it goes nowhere.
    """
    try:
        yield
    finally:
        if sys.stdout is not None:
            try:
                sys.stdout.flush()
            except OSError:
                # Python writes what is left once more when it ends.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise
