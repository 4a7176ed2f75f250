"""Files that one process at a time holds."""

import fcntl
from pathlib import Path
from typing import IO


def lock(path: Path, wait: bool = False) -> IO | None:
    """Opens a file for this process alone, until it is closed or the process ends.

    The file stays when it is closed. Between machines it works where their file system
    passes `flock` on, as NFS does by default and Lustre with the option `flock`.

    Args:
      path: of the file, made if absent.
      wait: for a process that has it.

    Returns:
      The file; None if another process has it.

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
    except BaseException:
        file.close()
        raise
    return file
