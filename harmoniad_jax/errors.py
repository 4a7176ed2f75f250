"""The one exception for mistakes that the person at the keyboard can mend."""

import errno
import os
from collections.abc import Sequence

# Exit statuses of the commands: bad input, and a run that a signal ended in order and that
# the same command continues (EX_TEMPFAIL of sysexits.h: try again).
USER_ERROR_STATUS = 2
INTERRUPTED_STATUS = 75

# What helps where the operating system refuses.
REMEDIES = {
    errno.ENOSPC: "Free some room, and try again.",
    errno.EDQUOT: "Your share of the disk is used up: free some room, and try again.",
    errno.EROFS: "It can only be read: use a copy that can be written.",
    errno.EACCES: "You need the permission for it: ask for it, or use a copy of your own.",
    errno.EPERM: "You need the permission for it: ask for it, or use a copy of your own.",
}


class UserError(Exception):
    """Bad input. The message says what was received, what is allowed, what to do.

    The commands print it as one line and exit with status 2; every other exception is
    a defect of the program and keeps its traceback. It is no `ValueError`, because absl
    and ml_collections catch those of a config file and bury them in a traceback.
    """


# Problems with files that one message lists before it only counts them.
LISTED_PROBLEMS = 10


def raise_problems(problems: Sequence[str], most: int | None = None) -> None:
    """Raises one `UserError` for all problems found, if any.

    Args:
      problems: in words.
      most: how many are listed; the others are counted. None: all.
    """
    if not problems:
        return
    text = "; ".join(problems[:most])
    more = len(problems) - len(problems[:most])
    text += f"; and {more} more" if more else ""
    raise UserError(text if text.endswith((".", "?")) else text + ".")


def system_problem(error: OSError, path: object = None) -> str:
    """What the operating system refused, as sentences that say what helps.

    Args:
      error: that it raised.
      path: what was read or written, for errors that do not name it.
    """
    name = path if error.filename is None else os.fsdecode(error.filename)
    reason = error.strerror or str(error) or type(error).__name__
    where = "" if name is None else f"{name}: "
    remedy = REMEDIES.get(error.errno, "")
    return f"{where}{reason}. {remedy}".rstrip()
