"""The files of a folder: which look like photos, and a word on those that are not read."""

import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from harmoniad_jax.data.suffixes import advice_on, is_image, looks_like_photo

logger = logging.getLogger(__name__)

# Files of a folder that a warning names before it only counts them.
LISTED_FILES = 3


def warn_of_unread(folder: Path, recursive: bool = False) -> None:
    """Names the files of a folder that look like photos but cannot be read."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in photos_in(folder, recursive):
        if not is_image(path):
            found[advice_on(path.name)].append(path)
    for advice, paths in found.items():
        one = len(paths) == 1
        logger.warning(
            "%s: %d %s cannot be read and %s left out: %s. To use %s: %s.",
            *(folder, len(paths), "photo" if one else "photos", "is" if one else "are"),
            *(listed(paths), "it" if one else "them", advice),
        )


def listed(paths: Sequence[Path]) -> str:
    """The names of a few files, and how many more there are."""
    names = ", ".join(path.name for path in paths[:LISTED_FILES])
    more = len(paths) - LISTED_FILES
    return f"{names} and {more} more" if more > 0 else names


def subfolders(folder: Path) -> list[str]:
    if not can_list(folder):
        return []
    names = (entry.name for entry in _entries(folder) if _is_folder(entry))
    return sorted(name for name in names if not name.startswith("."))


def _files(folder: Path) -> list[Path]:
    """The files of a folder, sorted."""
    if not can_list(folder):
        return []
    names = (entry.name for entry in _entries(folder) if not _is_folder(entry))
    return [folder / name for name in sorted(names)]


def _entries(folder: Path) -> list[os.DirEntry]:
    """What lies in a folder; the system lists it with its kind, without a look at each."""
    with os.scandir(folder) as entries:
        return list(entries)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere, or in a circle
        return False


def files_below(folder: Path, above: frozenset[Path] = frozenset()) -> list[Path]:
    """The files of a folder and of all below it that are not hidden, sorted."""
    here = folder.resolve()
    if here in above:  # a link that leads back
        return []
    above |= {here}
    below = [files_below(folder / name, above) for name in subfolders(folder)]
    return sorted([*_files(folder), *sum(below, [])])


def photos_in(folder: Path, recursive: bool = False) -> list[Path]:
    """The files of a folder that look like photos, readable or not; sorted."""
    files = files_below(folder) if recursive else _files(folder)
    return [path for path in files if looks_like_photo(path)]


def can_list(folder: Path) -> bool:
    """Whether it is a folder whose files may be read; see `_closed_folders`."""
    try:
        if not folder.is_dir():
            return False
        with os.scandir(folder) as entries:
            for child in entries:
                child.stat(follow_symlinks=False)
                break
    except PermissionError:
        return False
    return True


def images_in(folder: Path) -> list[Path]:
    """Image files by suffix, sorted; anything else (Thumbs.db, notes) is passed over."""
    return [path for path in _files(folder) if is_image(path)]
