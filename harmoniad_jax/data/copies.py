"""Which images of a data set are copies of each other, byte for byte or nearly.

A copy that is trained on makes the score of a held-out image too low, and so the threshold.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from harmoniad_jax.data.records import Record

# Bytes that are compared before a whole file is: so many pieces, evenly over the file.
PIECES = 8
PIECE_BYTES = 4096
THUMBNAIL_SIDE = 16
# Root mean square of grey levels between thumbnails. JPEG of quality 70 moves one by 0.5,
# sensor noise of 5 levels by 0.7. Different parts of six real products differ by 0.7 to 5.
NEARLY_ALIKE = 0.6
# Thumbnails that are compared with all others at a time.
BLOCK = 512


def copies(records: Sequence[Record]) -> list[list[Record]]:
    """Groups of two or more records with the same image, in order.

    Few files are read: those of the same size, and of these a few pieces. Files whose
    pieces agree are read as a whole. The SHA-256 of a record is used where it is known. A
    file that cannot be read is not a copy: the check of the images reports it.
    """
    known = [record for record in records if record.sha256 is not None]
    files = [
        record
        for record in records
        if record.sha256 is None and isinstance(record.image, Path)
    ]
    groups = _split([known], lambda record: record.sha256)
    rest = [files]
    for same in (_size, _pieces, _digest):
        rest = _split(rest, lambda record, same=same: same(record.image))
    order = {id(record): index for index, record in enumerate(records)}
    return sorted(groups + rest, key=lambda group: order[id(group[0])])


def first_of(groups: Iterable[Sequence[Record]]) -> Mapping[Record, Record]:
    """Every record of the groups to the first one of its group."""
    return {record: group[0] for group in groups for record in group}


def thumbnail(pixels: np.ndarray) -> bytes:
    """What is left of an image [S, S, 3] uint8 when noise is averaged out: 256 bytes."""
    grey = Image.fromarray(pixels).convert("L")
    small = grey.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
    return small.tobytes()


def nearly_alike(thumbnails: Sequence[bytes]) -> list[tuple[int, int]]:
    """The places of thumbnails that are nearly like another one, and of the nearest one.

    Only those of nearly the same brightness are compared: means differ by no more than the
    root mean square of the differences. Memory grows with the number of thumbnails, not
    with its square.
    """
    values = np.frombuffer(b"".join(thumbnails), np.uint8).reshape(-1, THUMBNAIL_SIDE**2)
    means = values.mean(axis=1)
    order = np.argsort(means, kind="stable")
    values, means = values[order].astype(np.float32), means[order]
    squares = np.square(values).sum(axis=1)
    found = []
    for start in range(0, len(values), BLOCK):
        rows = slice(start, min(start + BLOCK, len(values)))
        reach = means[rows][[0, -1]] + [-NEARLY_ALIKE, NEARLY_ALIKE]
        # A hair more, since the means are rounded.
        first, last = np.searchsorted(means, reach + [-1e-6, 1e-6])
        distances = squares[rows, None] + squares[first:last]
        distances -= 2 * values[rows] @ values[first:last].T
        places = np.arange(rows.start, rows.stop)
        distances[places - start, places - first] = np.inf
        nearest = first + distances.argmin(axis=1)
        alike = distances.min(axis=1) <= NEARLY_ALIKE**2 * values.shape[1]
        pairs = order[places[alike]], order[nearest[alike]]
        found += zip(*(places.tolist() for places in pairs), strict=True)
    return sorted(found)


def _split(
    groups: Iterable[Sequence[Record]], feature: Callable[[Record], Hashable]
) -> list[list[Record]]:
    """Groups of two or more of what has the same feature too."""
    found = []
    for group in groups:
        parts: dict[Hashable, list[Record]] = defaultdict(list)
        for record in group:
            try:
                parts[feature(record)].append(record)
            except OSError:
                continue
        found += [part for part in parts.values() if len(part) > 1]
    return found


def _size(path: Path) -> int:
    return path.stat().st_size


def _pieces(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= PIECES * PIECE_BYTES:
            return file.read()
        pieces = []
        for index in range(PIECES):
            file.seek(index * (size - PIECE_BYTES) // (PIECES - 1))
            pieces.append(file.read(PIECE_BYTES))
    return hashlib.sha256(b"".join(pieces)).digest()


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
