"""The user's cache folder, and files that are whole or absent."""

import contextlib
import os
from pathlib import Path


def cache_folder() -> Path:
    """The user's own cache folder for this program."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "harmoniad_jax"


def write_whole(path: Path, text: str) -> None:
    """Writes a UTF-8 text file whole or not at all.

    Bytes of a file name that are not text are spelt out.

    Raises:
      OSError: naming the file, which stays as it was.
    """
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            # Otherwise a power cut may leave the new name without its content.
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None


def check_writable(folder: Path) -> None:
    """Tries whether files can be made in a folder, before hours of work for them.

    Raises:
      OSError: naming the folder.
    """
    probe = folder / f".probe-{os.getpid()}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None
