"""Folders and archives as one thing: a tree of files that are read by name.

Archives are untrusted, and nothing in one is ever written to disk under a name that it
chose: files are read in place. A compressed tar has no random access, so it is
decompressed first, into a temporary file without a name that vanishes with the process.
"""

import abc
import bz2
import gzip
import lzma
import os
import re
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from harmoniad_jax.errors import UserError

DECOMPRESSORS = {
    ".tar.xz": lzma.open,
    ".txz": lzma.open,
    ".tar.gz": gzip.open,
    ".tgz": gzip.open,
    ".tar.bz2": bz2.open,
}
SUFFIXES = (".tar", *DECOMPRESSORS, ".zip")
COPY_BYTES = 1 << 20
# What browsers and file managers add to the name of a second download or a copy, before any
# of its suffixes: "a (1).tar.xz", "a.tar - Copy.xz", "a copy 2.zip", "Copy of a.zip".
COPY_MARKS = re.compile(
    r"^(?:copy of|kopie von|copie de|copia de) +"
    r"|(?: ?\(\d+\)| ?\[\d+\]| \([^()]*copy\)| +- +(?:copy|kopie|copie|copia)"
    r"|[ _-]copy(?: \d+)?)+(?=\.|$)"
)
# No image of the data sets comes near it; a larger entry is an attack or a mistake.
LARGEST_ENTRY = 1 << 29
# What the readers raise for archives that are truncated, corrupted or no archives.
UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    NotImplementedError,  # an unknown compression
    RuntimeError,  # an encrypted entry
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    MemoryError,
    OverflowError,
)


class Tree(abc.ABC):
    """Files below a folder or in an archive; a context manager.

    Attributes:
      path: the folder or archive.
      names: of all files, relative and with forward slashes, without hidden ones.
    """

    path: Path
    names: list[str]

    @abc.abstractmethod
    def read(self, name: str) -> bytes:
        """The content of a file. May be called by several threads at a time."""

    @abc.abstractmethod
    def size(self, name: str) -> int:
        """Bytes of a file."""

    def __enter__(self) -> "Tree":
        return self

    @abc.abstractmethod
    def __exit__(self, *_) -> None:
        """Closes what is open."""


class FolderTree(Tree):
    """A folder; links in it are followed, since its owner made them."""

    def __init__(self, path: Path, tops: tuple[str, ...]):
        """Lists the folders named in `tops` only: what lies beside is not ours."""
        self.path = path
        self.names = sorted(name for top in tops for name in self._walk(top))

    def _walk(self, top: str) -> Iterator[str]:
        for folder, _, files in os.walk(self.path / top, followlinks=True):
            relative = PurePosixPath(Path(folder).relative_to(self.path).as_posix())
            names = (str(relative / file) for file in files)
            yield from (name for name in names if not _hidden(name))

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def size(self, name: str) -> int:
        return (self.path / name).stat().st_size

    def __exit__(self, *_) -> None:
        pass


class _Member(tarfile.TarInfo):
    """A header whose size cannot lead the reader astray: `tarfile` believes any."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        member = super().frombuf(buf, encoding, errors)
        if not 0 <= member.size <= LARGEST_ENTRY:
            raise tarfile.ReadError(f"{member.name!r} holds {member.size} bytes")
        return member


class TarTree(Tree):
    """A tar archive, compressed or not."""

    def __init__(self, path: Path, temporary: Path):
        """Opens an archive; what it has to decompress goes to the folder `temporary`."""
        self.path = path
        name = plain_name(path.name)
        suffix = next((s for s in DECOMPRESSORS if name.endswith(s)), None)
        self._file = path.open("rb") if suffix is None else _decompress(path, temporary)
        try:
            self._places = dict(self._entries())
        except BaseException:
            self._file.close()
            raise
        self.names = sorted(self._places)

    def _entries(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Name, position and size of every file."""
        end = os.fstat(self._file.fileno()).st_size
        with tarfile.open(fileobj=self._file, mode="r:", tarinfo=_Member) as archive:
            for member in archive:
                _check_name(self.path, member.name)
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise _refused(self.path, f"{member.name!r} is a link or no plain file")
                _check_size(self.path, member.name, member.size)
                if member.size < 0:
                    raise UserError(_damaged(self.path, f"{member.name!r} has no size"))
                if member.offset_data + member.size > end:
                    raise UserError(_damaged(self.path, f"it ends within {member.name!r}"))
                if not _hidden(name := _tidy(member.name)):
                    yield name, (member.offset_data, member.size)
            # `tarfile` takes a spoilt header, or the end of an archive that was cut between
            # two files, for the end. The true one is a block of zeros.
            block = os.pread(self._file.fileno(), tarfile.BLOCKSIZE, archive.offset)
            if len(block) < tarfile.BLOCKSIZE or any(block):
                raise UserError(_damaged(self.path, "what follows is no file and no end"))

    def read(self, name: str) -> bytes:
        position, size = self._places[name]
        return os.pread(self._file.fileno(), size, position)

    def size(self, name: str) -> int:
        return self._places[name][1]

    def __exit__(self, *_) -> None:
        self._file.close()


class ZipTree(Tree):
    """A zip archive."""

    def __init__(self, path: Path):
        self.path = path
        self._archive = zipfile.ZipFile(path)
        try:
            if _zip_entries(path) not in (len(self._archive.infolist()), None):
                raise zipfile.BadZipFile("its list of files is not whole")
            self._stored = dict(self._entries())
        except BaseException:
            self._archive.close()
            raise
        self.names = sorted(self._stored)

    def _entries(self) -> Iterator[tuple[str, zipfile.ZipInfo]]:
        """Name of every file, and where it is."""
        for entry in self._archive.infolist():
            _check_name(self.path, entry.filename)
            if entry.filename.endswith(("/", "\\")):
                continue
            if stat.S_ISLNK(entry.external_attr >> 16):
                raise _refused(self.path, f"{entry.filename!r} is a link")
            _check_size(self.path, entry.filename, entry.file_size)
            if not _hidden(name := _tidy(entry.filename)):
                yield name, entry

    def read(self, name: str) -> bytes:
        try:
            return self._archive.read(self._stored[name])
        except UNREADABLE as error:
            raise UserError(_damaged(self.path, error)) from None

    def size(self, name: str) -> int:
        return self._stored[name].file_size

    def __exit__(self, *_) -> None:
        self._archive.close()


def _zip_entries(path: Path) -> int | None:
    """How many entries a zip says that it has, which `zipfile` does not compare.

    From the end record (PKWARE's APPNOTE.TXT, 4.3.16), which stands before a comment of at
    most 64 KiB. None where the number is too large for it.
    """
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 16) - 22))
        tail = file.read()
    record = tail[tail.rfind(b"PK\5\6") :]
    count = int.from_bytes(record[10:12], "little")
    return None if count == 0xFFFF else count


def plain_name(name: str) -> str:
    """The name of an archive in lower case, without what marks a copy."""
    return COPY_MARKS.sub("", name.lower())


def open_archive(path: Path, temporary: Path) -> Tree:
    """Opens an archive by its suffix, one of `SUFFIXES`.

    Args:
      path: the archive.
      temporary: folder of a disk with room for the content of a compressed tar.

    Raises:
      UserError: truncated, corrupted, or with paths or links that lead out of it.
    """
    try:
        if path.suffix.lower() == ".zip":
            return ZipTree(path)
        return TarTree(path, temporary)
    except PermissionError:
        raise UserError(f"{path} may not be read; change its permissions.") from None
    except UNREADABLE as error:
        raise UserError(_damaged(path, error)) from None


def _decompress(path: Path, temporary: Path) -> IO[bytes]:
    """The content of a compressed file as a nameless temporary file."""
    name = plain_name(path.name)
    suffix = next(s for s in DECOMPRESSORS if name.endswith(s))
    target = tempfile.TemporaryFile(dir=temporary)
    try:
        with (
            path.open("rb") as compressed,
            DECOMPRESSORS[suffix](compressed) as source,
            tqdm(
                desc=f"decompressing {path.name}",
                total=path.stat().st_size,
                unit="B",
                unit_scale=True,
                leave=False,
                disable=None,
            ) as progress,
        ):
            while block := source.read(COPY_BYTES):
                _write(target, block, temporary)
                progress.update(compressed.tell() - progress.n)
    except BaseException:
        target.close()
        raise
    target.seek(0)
    return target


def _write(target: IO[bytes], block: bytes, folder: Path) -> None:
    try:
        target.write(block)
        target.flush()
    except OSError as error:
        raise UserError(f"nothing can be written to {folder} ({error.strerror}).") from None


def _check_name(path: Path, name: str) -> None:
    """Refuses an archive that would write outside of its folder if it were extracted."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if name.startswith(("/", "\\")) or ".." in parts or ":" in name.partition("/")[0]:
        raise _refused(path, f"{name!r} leads out of it")


def _check_size(path: Path, name: str, size: int) -> None:
    if size > LARGEST_ENTRY:
        raise _refused(path, f"{name!r} holds {size:,} bytes, no image is that large")


def _refused(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is not safe: {reason}. Download it from its publisher.")


def _damaged(path: Path, reason: object) -> str:
    return f"{path} is truncated or corrupted ({reason}); download it again."


def _tidy(name: str) -> str:
    """a/b for ./a//b, and for a\\b, which some programs on Windows write."""
    return str(PurePosixPath(name.replace("\\", "/")))


def _hidden(name: str) -> bool:
    """Whether a file or a folder above it is what an operating system left behind."""
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)
