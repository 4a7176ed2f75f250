"""The stored features of a run: a `FeatureCache` for each shape of its images."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from harmoniad_jax.data.records import Record
from harmoniad_jax.data.shapes import Shape
from harmoniad_jax.features.store import FeatureCache, make_room

Key = tuple[Shape, str]


class FeatureCaches:
    """Stores and finds features by record: by its hash, and by the shape of its input.

    Every record here has its SHA-256. An image of two categories of other shapes has
    features of both.
    """

    def __init__(
        self, caches: Mapping[Shape, FeatureCache], shape_of: Callable[[Record], Shape]
    ):
        """Takes caches of one root folder.

        Args:
          caches: at least one, by the shape of the images.
          shape_of: the shape of a record's input, one of these.
        """
        self._caches, self._shape_of = caches, shape_of

    @property
    def place(self) -> Path:
        """The folder of the features; that of all settings where there are several."""
        caches = list(self._caches.values())
        return caches[0].folder if len(caches) == 1 else caches[0].root

    def key(self, record: Record) -> Key:
        """What features are stored by: equal for copies of an image in one shape."""
        return self._shape_of(record), record.sha256

    def __contains__(self, record: Record) -> bool:
        return record.sha256 in self._caches[self._shape_of(record)]

    def read(self, record: Record) -> dict[str, np.ndarray]:
        """See `FeatureCache.read`."""
        return self._caches[self._shape_of(record)].read(record.sha256)

    def empty(self, shape: Shape) -> dict[str, np.ndarray]:
        """Zeros in the place of the features of an image of this shape."""
        return self._caches[shape].empty

    def write(
        self, records: Sequence[Record], features: Iterable[Mapping[str, np.ndarray]]
    ) -> None:
        """See `FeatureCache.write`; the records are of one shape."""
        cache = self._caches[self._shape_of(records[0])]
        cache.write([record.sha256 for record in records], features)

    def refresh(self) -> None:
        """See `FeatureCache.refresh`."""
        for cache in self._caches.values():
            cache.refresh()

    def bytes_for(self, records: Collection[Record]) -> int:
        """The size of the features of records; copies count once."""
        by_shape = self._images(records).items()
        return sum(self._caches[shape].bytes_for(len(found)) for shape, found in by_shape)

    def make_room(self, records: Collection[Record], limit: int) -> None:
        """See `store.make_room`."""
        wanted = self._images(records)
        make_room([(self._caches[s], wanted.get(s, ())) for s in self._caches], limit)

    def _images(self, records: Collection[Record]) -> dict[Shape, set[str]]:
        """The hashes of the records, by shape."""
        images: dict[Shape, set[str]] = {}
        for record in records:
            shape, image = self.key(record)
            images.setdefault(shape, set()).add(image)
        return images
