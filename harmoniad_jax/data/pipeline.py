"""Records in, batches of pixels out.

Training reads every image once an epoch, in an order that the seed decides, over all
categories jointly. Evaluation reads in order and pads the last batch.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np

from harmoniad_jax.data.preprocess import preprocess, read_image, read_mask, resize_mask
from harmoniad_jax.data.records import Record

# What is decoded ahead of the device: batches in training, images in evaluation.
PREFETCHED_BATCHES = 4
PREFETCHED_IMAGES = 64


class EvaluationBatch(NamedTuple):
    """A batch in order of the records.

    images: [B, S, S, 3] uint8; rows that only fill the batch are zero.
    valid: [B] bool, False for these rows.
    """

    images: np.ndarray
    valid: np.ndarray


def training_batches(
    records: Sequence[Record],
    *,
    image_side: int,
    batch_size: int,
    seed: int,
    threads: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """An endless iterator over this process's share of shuffled batches.

    Args:
      records: training images; each is read once an epoch, over all processes.
      image_side: S in pixels.
      batch_size: B over all processes, a multiple of their number.
      seed: of the order.
      threads: that decode at the same time.
      process_index, process_count: which rows of each batch to read.

    Returns:
      Yields [B / process_count, S, S, 3] uint8. `get_state` and `set_state` continue it
      exactly after the last batch that was taken.
    """
    dataset = (
        grain.MapDataset.source(records)
        .seed(seed)
        .shuffle()
        .repeat()
        .slice(slice(process_index, None, process_count))
        .map(lambda record: preprocess(read_image(record.image), image_side))
        .batch(batch_size // process_count)
    )
    return iter(dataset.to_iter_dataset(grain.ReadOptions(threads, PREFETCHED_BATCHES)))


def evaluation_batches(
    records: Sequence[Record],
    *,
    image_side: int,
    batch_size: int,
    threads: int,
) -> Iterator[EvaluationBatch]:
    """Yields all records in order, the last batch padded to `batch_size`."""
    dataset = grain.MapDataset.source(records).map(
        lambda record: preprocess(read_image(record.image), image_side)
    )
    rows = []
    images = dataset.to_iter_dataset(grain.ReadOptions(threads, PREFETCHED_IMAGES))
    for index, image in enumerate(images, 1):
        rows.append(image)
        if len(rows) == batch_size or index == len(records):
            padding = batch_size - len(rows)
            valid = np.arange(batch_size) < len(rows)
            rows += [np.zeros_like(image)] * padding
            yield EvaluationBatch(np.stack(rows), valid)
            rows = []


def read_masks(
    records: Sequence[Record], side: int, rule: str
) -> tuple[np.ndarray, np.ndarray, int]:
    """Masks of test images on the evaluation grid.

    Args:
      records: N test images.
      side: S' of the grid.
      rule: see `resize_mask`.

    Returns:
      masks [N, S', S'] bool; known [N] bool, False where a defective image has no mask
      or an empty one; and how many defects only their largest cell kept alive.
    """
    masks = np.zeros((len(records), side, side), bool)
    known = np.ones(len(records), bool)
    rescued = 0
    for row, record in enumerate(records):
        if record.mask is not None:
            masks[row], lost = resize_mask(read_mask(record.mask), side, rule)
            rescued += lost
        known[row] = not record.is_anomalous or masks[row].any()
    return masks, known, rescued
