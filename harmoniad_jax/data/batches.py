"""Records in, batches of what is loaded of them out: in order, the last one filled up.

The order of training is in `order.py`, which loads a library that evaluation does without.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from harmoniad_jax.data.ahead import prefetched
from harmoniad_jax.data.records import Record

# From a record to what a batch holds of it: an array, or a dictionary of arrays.
Loader = Callable[[Record], Any]


class EvaluationBatch(NamedTuple):
    """A batch in order of the records.

    rows: what was loaded, with a leading axis of B / process_count, this process's rows;
        those that only fill the batch are `empty`.
    valid: [B] bool of all rows, False for those.
    """

    rows: Any
    valid: np.ndarray


def stacked(rows: Sequence[Any], empty: Any, size: int) -> Any:
    """Rows as one batch, filled up.

    Args:
      rows: arrays, or dictionaries of arrays; at most `size`.
      empty: a row of the same shapes and dtypes, which fills the batch.
      size: B.

    Returns:
      The same with a leading axis of B.
    """
    rows = [*rows, *[empty] * (size - len(rows))]
    if isinstance(empty, Mapping):
        return {name: np.stack([row[name] for row in rows]) for name in empty}
    return np.stack(rows)


def evaluation_batches(
    records: Sequence[Record],
    load: Loader,
    empty: Any,
    *,
    batch_size: int,
    threads: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[EvaluationBatch]:
    """Yields all records in order, the last batch filled up to `batch_size`.

    Args:
      records: N of them.
      load: gives what a batch holds of a record.
      empty: what fills the last batch, of the same shapes and dtypes.
      batch_size: B over all processes, a multiple of their number.
      threads: that load at the same time.
      process_index, process_count: which rows of each batch to read.
    """
    share = batch_size // process_count
    first = process_index * share
    # Loaded one by one and batched after that: a batch waits for all threads, not for one.
    mine = [
        record
        for start in range(first, len(records), batch_size)
        for record in records[start : start + share]
    ]
    loaded = prefetched(mine, load, threads)
    for start in range(0, len(records), batch_size):
        count = len(records[start + first : start + first + share])
        rows = stacked(list(itertools.islice(loaded, count)), empty, share)
        valid = np.arange(start, start + batch_size) < len(records)
        yield EvaluationBatch(rows, valid)
