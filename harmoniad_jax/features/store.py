"""Encoder features of images on disk, so that each image is encoded once.

A cache folder holds a subfolder for everything that decides about features but the image:
encoder weights, taps, preprocessing, precision. In it are chunks, `.npy` files with a row
for each image: the SHA-256 of the image file, a checksum, and the features. Nothing is
looked up by name or date, so what was computed otherwise is never found.

Chunks are complete when they get their name, and are not changed after that. So a process
may be killed at any time, several may write at once, and a reader needs no lock: it maps
a chunk into memory and keeps it, even if another process removes the file.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import time
import uuid
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from harmoniad_jax.errors import UserError
from harmoniad_jax.words import gigabytes

logger = logging.getLogger(__name__)

DESCRIPTION_FILE = "features.json"
UNFINISHED = ".unfinished"
FOLDER_NAME = re.compile("[0-9a-f]{16}")
# Unfinished chunks of killed processes are removed when no one can be writing them.
ABANDONED_SECONDS = 24 * 3600
IMAGE, CHECKSUM = "image", "checksum"
ROWS = 2**32  # more than a chunk has


class FeatureCache:
    """The stored features of one encoder setting."""

    def __init__(
        self,
        root: Path,
        description: Mapping[str, Any],
        shapes: Mapping[str, tuple[int, ...]],
        dtype: str,
    ):
        """Opens a cache and maps what it holds.

        Args:
          root: the cache folder, shared by all settings.
          description: everything that decides about features but the image; JSON.
          shapes: of each array of an image's features.
          dtype: that they are stored in.

        Raises:
          UserError: the folder cannot be made.
        """
        row = [(IMAGE, "S64"), (CHECKSUM, "<u4")]
        self.row = np.dtype(row + [(name, dtype, shapes[name]) for name in sorted(shapes)])
        self._names = tuple(sorted(shapes))
        self.root = root
        text = json.dumps({**description, "row": str(self.row)}, sort_keys=True, indent=2)
        self.folder = root / hashlib.sha256(text.encode()).hexdigest()[:16]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / DESCRIPTION_FILE).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(_cannot_write(self.folder, error)) from None
        self._chunks: list[tuple[Path, np.ndarray]] = []
        # Small, since there may be millions: the hash of an image to its chunk and row.
        self._rows: dict[bytes, int] = {}
        self.refresh()

    def refresh(self) -> None:
        """Maps the chunks that came since, also from other processes."""
        known = {path for path, _ in self._chunks}
        for path in sorted(self.folder.glob("*.npy")):
            if path not in known:
                self._map(path)

    def _map(self, path: Path) -> None:
        try:
            chunk = np.lib.format.open_memmap(path, mode="r")
            if chunk.dtype != self.row or chunk.ndim != 1:
                raise ValueError(f"it holds {chunk.dtype}")
            images = [bytes.fromhex(name.decode("ascii")) for name in chunk[IMAGE]]
        except FileNotFoundError:
            return  # another process made room
        except OSError as error:
            logger.warning("%s cannot be read and is left out (%s)", path, error)
            return
        except Exception as error:  # numpy lets through what Python's own parser raises
            logger.warning("%s is damaged and removed (%s)", path, error)
            _remove(path)
            return
        start = len(self._chunks) * ROWS
        self._chunks.append((path, chunk))
        self._rows.update(zip(images, range(start, start + len(chunk)), strict=True))

    def __contains__(self, image: str) -> bool:
        return bytes.fromhex(image) in self._rows

    def _find(self, image: str) -> tuple[Path, np.void]:
        """The chunk and the row of a stored image."""
        place, row = divmod(self._rows[bytes.fromhex(image)], ROWS)
        path, chunk = self._chunks[place]
        return path, chunk[row]

    def bytes_for(self, images: int) -> int:
        """The size of the features of so many images."""
        return images * self.row.itemsize

    def read(self, image: str) -> dict[str, np.ndarray]:
        """The features of an image, by the SHA-256 of its file.

        Raises:
          KeyError: they are not stored.
          UserError: they were damaged on disk.
        """
        path, mapped = self._find(image)
        row = mapped.copy()
        if _checksum(row, self._names) != row[CHECKSUM]:
            raise UserError(
                f"{path} is damaged. Delete it and start again: its images are encoded "
                "anew, and nothing else is lost."
            )
        return {name: row[name] for name in self._names}

    @property
    def empty(self) -> dict[str, np.ndarray]:
        """Zeros in the place of an image's features."""
        row = np.zeros((), self.row)
        return {name: row[name] for name in self._names}

    def write(
        self, images: Sequence[str], features: Iterable[Mapping[str, np.ndarray]]
    ) -> None:
        """Stores the features of several images as one chunk, row by row as they come.

        Args:
          images: SHA-256 of their files.
          features: arrays of each image by name, in order; of one at a time in memory.

        Raises:
          UserError: the disk is full or does not let us write.
        """
        # Named by what is in it: a second process that writes the same replaces it.
        names = np.array(images, self.row[IMAGE])
        name = hashlib.sha256(names.tobytes()).hexdigest()[:16]
        path = self.folder / f"{name}.npy"
        unfinished = self.folder / f"{name}.{uuid.uuid4().hex}{UNFINISHED}"
        header = {
            "descr": np.lib.format.dtype_to_descr(self.row),
            "fortran_order": False,
            "shape": (len(images),),
        }
        try:
            with self._open_to_write(unfinished) as file:
                with self._writing():
                    np.lib.format.write_array_header_1_0(file, header)
                for image, values in zip(images, features, strict=True):
                    row = self._row_of(image, values)
                    with self._writing():
                        file.write(row.tobytes())
            with self._writing():
                unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        self._map(path)

    def _row_of(self, image: str, values: Mapping[str, np.ndarray]) -> np.ndarray:
        row = np.zeros((), self.row)
        row[IMAGE] = image
        for name in self._names:
            row[name] = values[name]
        row[CHECKSUM] = _checksum(row, self._names)
        return row

    @contextlib.contextmanager
    def _open_to_write(self, path: Path) -> Iterator[BinaryIO]:
        """A file that is on the disk as a whole when it is closed."""
        with self._writing():
            file = path.open("wb")
        try:
            yield file
            with self._writing():
                file.flush()
                os.fsync(file.fileno())
        finally:
            with self._writing():  # closing writes what is left
                file.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Around what writes, and not around what is read meanwhile."""
        try:
            yield
        except OSError as error:
            raise UserError(_cannot_write(self.folder, error)) from None

    def make_room(self, images: Collection[str], limit: int) -> None:
        """Makes room for the features of images, see `make_room`.

        Args:
          images: SHA-256 of all images that are to be read; theirs are kept.
          limit: see `make_room`.

        Raises:
          UserError: the disk is too full all the same.
        """
        make_room([(self, images)], limit)

    def chunks_of(self, images: Collection[str]) -> set[Path]:
        """The files that hold features of these images."""
        return {self._find(image)[0] for image in images if image in self}


def make_room(wanted: Sequence[tuple[FeatureCache, Collection[str]]], limit: int) -> None:
    """Removes what was not used for longest, so that the wanted features fit.

    Args:
      wanted: caches of one root folder, and SHA-256 of all images that are to be read of
        each; theirs are kept.
      limit: size of the whole root folder in bytes, at least `bytes_for` of them.

    Raises:
      UserError: the disk is too full all the same.
    """
    for cache, _ in wanted:
        cache.refresh()
    root, folder = wanted[0][0].root, wanted[0][0].folder
    _remove_abandoned(root)
    used = set().union(*(cache.chunks_of(images) for cache, images in wanted))
    for path in used:
        _touch(path)
    needed = sum(
        cache.bytes_for(sum(image not in cache for image in images))
        for cache, images in wanted
    )
    others = [path for path in _files(root, "*.npy") if path not in used]
    sizes = {path: size for path in [*others, *used] if (size := _size(path))}
    total = sum(sizes.values())
    for path in sorted(others, key=_last_used):
        if total + needed <= limit:
            break
        if _remove(path):
            total -= sizes.get(path, 0)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"the features take {gigabytes(needed)} more, but the disk of "
            f"{folder} has {gigabytes(free)} left. Free some, name another "
            "disk with --config.cache.folder=DIR, or train without them: "
            "--config.cache.enabled=False."
        )


def _remove_abandoned(root: Path) -> None:
    for path in _files(root, f"*{UNFINISHED}"):
        if time.time() - _last_used(path) > ABANDONED_SECONDS:
            _remove(path)


def _files(root: Path, pattern: str) -> list[Path]:
    """Files of every setting in the cache folder, and nothing else that lies there."""
    folders = [
        folder
        for folder in root.iterdir()
        if FOLDER_NAME.fullmatch(folder.name) and (folder / DESCRIPTION_FILE).is_file()
    ]
    return [path for folder in folders for path in folder.glob(pattern)]


def _checksum(row: np.ndarray | np.void, names: Sequence[str]) -> int:
    checksum = 0
    for name in names:
        checksum = zlib.crc32(np.ascontiguousarray(row[name]).data, checksum)
    return checksum


def _cannot_write(folder: Path, error: OSError) -> str:
    return (
        f"features cannot be stored in {folder} ({error.strerror or error}); name another "
        "folder with --config.cache.folder=DIR, or train without them: "
        "--config.cache.enabled=False."
    )


def _remove(path: Path) -> bool:
    """Whether a file is gone; it may be another user's."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _touch(path: Path) -> None:
    try:
        os.utime(path)
    except OSError:
        pass  # removed meanwhile, or another user's


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _last_used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
