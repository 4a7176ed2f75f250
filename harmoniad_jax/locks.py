"""Files that one process at a time holds."""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Self

logger = logging.getLogger(__name__)

# What `flock` answers on file systems that have no locks, such as Lustre without an option.
NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK)
HELD = "-held"
# Seconds between two looks at a lock file that another process holds.
PATIENCE = 0.5


class Lock:
    """What this process holds, until it is closed or the process ends."""

    def __init__(self, release: Callable[[], None]):
        self.close = weakref.finalize(self, release)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def lock(path: Path, wait: bool = False) -> Lock | None:
    """Locks a file for this process alone, until it is closed or the process ends.

    The file stays when it is closed. Between machines it works where their file system
    passes `flock` on, as NFS does by default and Lustre with the option `flock`. Where
    there is no `flock`, a second file says which process of which machine holds the lock.

    Args:
      path: of the file, made if absent.
      wait: for a process that has it.

    Returns:
      The lock; None if another process has it.

    Raises:
      OSError: it cannot be made or locked.
    """
    file = path.open("w")
    try:
        # The system lets go when this process ends, however it ends.
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:
        file.close()
        if error.errno not in NO_LOCKS:
            raise
        logger.warning(
            "%s: the file system has no locks (%s), so a lock file is used",
            path.parent,
            error.strerror,
        )
        return _lock_file(path.with_name(path.name + HELD), wait)
    except BaseException:
        file.close()
        raise
    return Lock(file.close)


def _lock_file(path: Path, wait: bool) -> Lock | None:
    """A file that is there while a process holds the lock, and names it."""
    told = False
    while True:
        with contextlib.suppress(FileExistsError), path.open("x") as file:
            file.write(_name_of(os.getpid()))
            return Lock(lambda: path.unlink(missing_ok=True))
        holder = _read(path)
        if holder is None:
            continue  # it was let go just now
        if _is_gone(holder):
            _remove(path, holder)
        elif not told:
            told = True
            logger.warning(
                "%s is held by %s; delete it if that process is gone",
                path,
                holder or "a process that did not write its name",
            )
        elif not wait:
            return None
        else:
            time.sleep(PATIENCE)


def _name_of(process: int) -> str:
    """A process in words: unlike its number, no later process has the same start."""
    try:
        # Linux: the name in brackets may hold spaces; the start is the 22nd field.
        start = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        start = "?"
    return f"process {process} of {socket.gethostname()}, started at {start}"


def _is_gone(holder: str) -> bool:
    """Whether a process of this machine has ended; of others it cannot be known."""
    words = holder.split()
    if len(words) < 4 or words[3] != f"{socket.gethostname()},":
        return False
    try:
        os.kill(int(words[1]), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError):
        return False  # another user's
    return holder != _name_of(int(words[1]))


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return None


def _remove(path: Path, holder: str) -> None:
    """Removes the file of a process that is gone, and of no other."""
    found = path.with_name(f"{path.name}-{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        path.rename(found)
        if _read(found) != holder:  # another process was faster, and holds it now
            found.rename(path)
        found.unlink(missing_ok=True)
