"""The order of training: batches of loaded records, endless, and continued exactly.

Every image is read once an epoch, in an order that the seed decides, over all categories
jointly; a batch has rows of every shape of images.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from harmoniad_jax.data.batches import Loader, stacked
from harmoniad_jax.data.records import Record
from harmoniad_jax.data.shapes import Shape

# What is decoded ahead of the device in training.
PREFETCHED_BATCHES = 4


def training_order(
    records: Sequence[Record],
    *,
    seed: int,
    class_balanced: bool = False,
    views: int = 0,
    view_of: Callable[[Record, int], Record] | None = None,
    shape_of: Callable[[Record], Shape] | None = None,
    rows: Mapping[Shape, int] | None = None,
) -> grain.MapDataset:
    """The endless order in which training reads records; by index, so it is random access.

    Args:
      records: training images; each is read once an epoch of its shape.
      seed: of the order.
      class_balanced: take every category equally often, and each of its images once in
        an epoch of that category.
      views: K. Each time a record is read, it is one of its views 0 to K by chance.
      view_of: gives a record's view; needed if there are any.
      shape_of: the shape of a record's input; None: all have the same.
      rows: of each shape in a batch, see `shapes.share_rows`: every batch has these rows
        in this order. Needed where there are several shapes.
    """
    by_shape: dict[Any, list[Record]] = {}
    for record in records:
        by_shape.setdefault(shape_of and shape_of(record), []).append(record)
    if len(by_shape) <= 1:
        order = _order_of_one_shape(records, seed, class_balanced)
    else:
        parts, used = [], 0
        for shape in rows:
            own = by_shape[shape]
            # Other seeds, or shapes of equally many images would be shuffled alike.
            parts.append(_order_of_one_shape(own, seed + used, class_balanced))
            used += len(_by_category(own))
        order = grain.MapDataset.source(_RowsOfShapes(parts, tuple(rows.values())))
    if not views:
        return order

    def any_view(record: Record, random: np.random.Generator) -> Record:
        return view_of(record, int(random.integers(views + 1)))

    return order.random_map(any_view, seed=seed)


def _order_of_one_shape(
    records: Sequence[Record], seed: int, class_balanced: bool
) -> grain.MapDataset:
    """See `training_order`."""

    def shuffled(part: Sequence[Record], seed: int) -> grain.MapDataset:
        return grain.MapDataset.source(part).seed(seed).shuffle().repeat()

    if not class_balanced:
        return shuffled(records, seed)
    parts = _by_category(records).values()
    return grain.MapDataset.mix([shuffled(part, seed + i) for i, part in enumerate(parts)])


def _by_category(records: Sequence[Record]) -> dict[str, list[Record]]:
    categories: dict[str, list[Record]] = {}
    for record in records:
        categories.setdefault(record.category, []).append(record)
    return categories


@dataclasses.dataclass(frozen=True)
class _RowsOfShapes:
    """Records of several orders, so many of each in every batch.

    orders: endless, of records.
    rows: how many of each a batch has.
    """

    orders: Sequence[grain.MapDataset]
    rows: Sequence[int]

    def __len__(self) -> int:
        # As endless as the others: what they have together is more than a length may be.
        return min(map(len, self.orders))

    def __getitem__(self, index: int) -> Record:
        batch, row = divmod(index, sum(self.rows))
        part = 0
        while row >= self.rows[part]:
            row -= self.rows[part]
            part += 1
        return self.orders[part][batch * self.rows[part] + row]


def training_batches(
    order: grain.MapDataset,
    load: Loader,
    *,
    rows: Sequence[int],
    filled: Sequence[int] | None = None,
    threads: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """An endless iterator over this process's share of the batches.

    Args:
      order: see `training_order`.
      load: gives what a batch holds of a record.
      rows: of each shape in a batch over all processes; their sum is B.
      filled: rows of each shape that are yielded over all processes, multiples of their
        number: its last row is repeated up to there. None: as many as `rows`.
      threads: that load at the same time; they change nothing but the speed.
      process_index, process_count: which rows of each batch to read.

    Returns:
      Yields a tuple with an element for each shape: what `load` returns with a leading axis
      of `filled` / process_count. `get_state` and `set_state` continue it exactly after the
      last batch that was taken, with any number of processes.
    """
    sizes = [count // process_count for count in filled or rows]
    mine = [
        _own_rows(count, size, process_index)
        for count, size in zip(rows, sizes, strict=True)
    ]
    if process_count > 1:
        order = grain.MapDataset.source(_ProcessShare(order, tuple(rows), tuple(mine)))

    def by_shape(loaded: Sequence[Any]) -> tuple[Any, ...]:
        remaining = iter(loaded)
        parts = [list(itertools.islice(remaining, len(own))) for own in mine]
        return tuple(
            stacked(part, part[-1], size) for part, size in zip(parts, sizes, strict=True)
        )

    dataset = order.map(load).batch(sum(map(len, mine)), batch_fn=by_shape)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(threads, PREFETCHED_BATCHES)))


def _own_rows(count: int, size: int, process_index: int) -> range:
    """The rows of a shape that a process reads, at least one.

    Args:
      count: of that shape in a batch.
      size: rows of each process, once all are filled up.
      process_index: whose rows they are.
    """
    first = min(process_index * size, count - 1)
    return range(first, min(first + size, count))


@dataclasses.dataclass(frozen=True)
class _ProcessShare:
    """The records of one process: the same consecutive rows of each shape in every batch.

    So the batches are the same whatever the number of processes, row for row.

    rows: of each shape in a batch.
    mine: which of them this process reads.
    """

    order: grain.MapDataset
    rows: Sequence[int]
    mine: Sequence[range]

    def __len__(self) -> int:
        return len(self.order) // sum(self.rows) * sum(map(len, self.mine))

    def __getitem__(self, index: int) -> Record:
        batch, row = divmod(index, sum(map(len, self.mine)))
        first = batch * sum(self.rows)
        for count, own in zip(self.rows, self.mine, strict=True):
            if row < len(own):
                break
            row -= len(own)
            first += count
        return self.order[first + own[row]]
