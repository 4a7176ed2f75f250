"""The order of training: batches of loaded records, endless, and continued exactly.

Every image is read once an epoch, in an order that the seed decides, over all categories
jointly; a batch is of images of one shape.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

from harmoniad_jax.data.batches import Loader
from harmoniad_jax.data.records import Record
from harmoniad_jax.data.shapes import Shape

# What is decoded ahead of the device in training.
PREFETCHED_BATCHES = 4
# Batches in training over which shapes take turns evenly.
TURNS = 32


def training_order(
    records: Sequence[Record],
    *,
    seed: int,
    class_balanced: bool = False,
    views: int = 0,
    view_of: Callable[[Record, int], Record] | None = None,
    batch_size: int = 1,
    shape_of: Callable[[Record], Shape] | None = None,
) -> grain.MapDataset:
    """The endless order in which training reads records; by index, so it is random access.

    A batch is of one shape. Shapes take turns, each with as many batches as it has images:
    so every image is read equally often, as if batches were of all shapes. The turns are
    even over `TURNS` batches and shuffled among these: a regular pattern would keep step
    with whatever else is done every so many steps, such as logging.

    Args:
      records: training images; each is read once an epoch.
      seed: of the order.
      class_balanced: take every category equally often, and each of its images once in
        an epoch of that category.
      views: K. Each time a record is read, it is one of its views 0 to K by chance.
      view_of: gives a record's view; needed if there are any.
      batch_size: B; every B records from a multiple of B on are of one shape.
      shape_of: the shape of a record's input; None: all have the same.
    """
    by_shape: dict[Any, list[Record]] = {}
    for record in records:
        by_shape.setdefault(shape_of and shape_of(record), []).append(record)
    if len(by_shape) <= 1:
        order = _order_of_one_shape(records, seed, class_balanced)
    else:
        parts = [by_shape[shape] for shape in sorted(by_shape)]
        order = _order_of_shapes(parts, seed, class_balanced, batch_size)
    if not views:
        return order

    def any_view(record: Record, random: np.random.Generator) -> Record:
        return view_of(record, int(random.integers(views + 1)))

    return order.random_map(any_view, seed=seed)


def _order_of_shapes(
    parts: Sequence[Sequence[Record]], seed: int, class_balanced: bool, batch_size: int
) -> grain.MapDataset:
    """See `training_order`; the records of a part are of one shape."""
    orders = [_order_of_one_shape(part, seed, class_balanced) for part in parts]
    weights = [len(_by_category(part)) if class_balanced else len(part) for part in parts]
    batches = [
        grain.MapDataset.range(len(order) // batch_size).map(functools.partial(_named, i))
        for i, order in enumerate(orders)
    ]
    turns = grain.experimental.WindowShuffleMapDataset(
        grain.MapDataset.mix(batches, weights), window_size=TURNS, seed=seed % 2**31
    )
    return grain.MapDataset.source(_InTurns(orders, turns, batch_size))


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


def _named(part: int, batch: int) -> tuple[int, int]:
    return part, batch


@dataclasses.dataclass(frozen=True)
class _InTurns:
    """Records of several orders, B of one and then B of the next.

    orders: endless, of records.
    turns: whose turn it is: of each batch, the order and the number of the batch in it.
    """

    orders: Sequence[grain.MapDataset]
    turns: grain.MapDataset
    batch_size: int

    def __len__(self) -> int:
        # As endless as the others: what they have together is more than a length may be.
        return min(len(self.turns), *map(len, self.orders)) // self.batch_size

    def __getitem__(self, index: int) -> Record:
        batch, row = divmod(index, self.batch_size)
        part, number = self.turns[batch]
        return self.orders[part][number * self.batch_size + row]


def training_batches(
    order: grain.MapDataset,
    load: Loader,
    *,
    batch_size: int,
    threads: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """An endless iterator over this process's share of the batches.

    Args:
      order: see `training_order`.
      load: gives what a batch holds of a record.
      batch_size: B over all processes, a multiple of their number.
      threads: that load at the same time; they change nothing but the speed.
      process_index, process_count: which rows of each batch to read.

    Returns:
      Yields what `load` returns with a leading axis of B / process_count. `get_state` and
      `set_state` continue it exactly after the last batch that was taken, with any number
      of processes.
    """
    share = batch_size // process_count
    if process_count > 1:
        order = grain.MapDataset.source(
            _ProcessShare(order, batch_size, process_index * share, share)
        )
    dataset = order.map(load).batch(share)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(threads, PREFETCHED_BATCHES)))


@dataclasses.dataclass(frozen=True)
class _ProcessShare:
    """The records of one process: the same consecutive rows of every batch.

    So the batches are the same whatever the number of processes, row for row.
    """

    order: grain.MapDataset
    batch_size: int
    first: int
    count: int

    def __len__(self) -> int:
        return len(self.order) // self.batch_size * self.count

    def __getitem__(self, index: int) -> Record:
        batch, row = divmod(index, self.count)
        return self.order[batch * self.batch_size + self.first + row]
