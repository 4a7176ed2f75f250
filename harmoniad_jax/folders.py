"""The user's cache folder, and files that are whole or absent."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The user's own cache folder for this program."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "harmoniad_jax"


def write_whole(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)
