"""What SIGTERM and Ctrl-C do: end the program in order, within seconds.

Everywhere a signal raises `Interrupted`, as Ctrl-C always did. Within `deferred`, where
there is work in memory that is worth saving, the first one only sets a flag. Python runs
signal handlers between two of its own instructions, so a command also watches from a
thread: if it is interrupted in the middle of a long call into JAX, such as a compilation,
there is nothing to save and it ends all the same.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

# What schedulers send before they take a machine away, and Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGINT)
# How long an interrupted command has for ending by itself where nothing is deferred.
SECONDS_TO_END = 5.0


class Interrupted(KeyboardInterrupt):
    """The program is to end. `number` is the signal's."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class StopRequest:
    """Whether a signal came, and which."""

    def __init__(self) -> None:
        self.number: int | None = None

    @property
    def requested(self) -> bool:
        return self.number is not None


_deferred: StopRequest | None = None


def _handle(number: int, frame: object) -> None:
    del frame
    if _deferred is None or _deferred.requested:
        raise Interrupted(number)
    _deferred.number = number


@contextlib.contextmanager
def deferred() -> Iterator[StopRequest]:
    """Within it the first signal only sets `requested`; a second one raises.

    Only the main thread is told of signals; elsewhere nothing is ever requested.
    """
    global _deferred
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, _handle) for number in SIGNALS}
    outer, _deferred = _deferred, request
    try:
        yield request
    finally:
        _deferred = outer
        for number, handler in before.items():
            signal.signal(number, handler)


def install(end: Callable[[int], int]) -> None:
    """Makes the signals raise `Interrupted`, and watches that the program ends.

    Args:
      end: called with the signal's number if the program does not end by itself; says so
        to the user and returns the exit status.
    """
    for number in SIGNALS:
        signal.signal(number, _handle)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader, end), daemon=True).start()


def ignore() -> None:
    """Lets a command that ends in order do so, however often Ctrl-C is pressed."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _watch(reader: int, end: Callable[[int], int]) -> None:
    while True:
        number = os.read(reader, 1)[0]
        if number not in SIGNALS or _deferred is not None:
            continue
        threading.Event().wait(SECONDS_TO_END)
        if _deferred is None:
            status = end(number)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
