"""What training reads: images, or the features that each of them was encoded into once."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import grain
import jax
import numpy as np

from harmoniad_jax.data.order import training_order
from harmoniad_jax.data.records import Record
from harmoniad_jax.data.shapes import Shape, share_rows
from harmoniad_jax.devices.mesh import replicate
from harmoniad_jax.devices.processes import all_agree
from harmoniad_jax.errors import UserError
from harmoniad_jax.features.caches import FeatureCaches
from harmoniad_jax.features.encode import image_reader, stored_features
from harmoniad_jax.features.reading import ImageReader
from harmoniad_jax.model.encoders.encoder import Features
from harmoniad_jax.run.run import Run
from harmoniad_jax.words import gigabytes

logger = logging.getLogger(__name__)

# After three epochs of all views 95 of 100 views were read.
EPOCHS_OF_VIEWS = 3


class Batch(NamedTuple):
    """What every training batch is made of, shape by shape.

    Attributes:
      rows: of each shape (height, width) in pixels; their sum is the batch's size. They
        are the same on any number of devices.
      shares: of each shape in the loss: that of its images, or with balanced categories
        that of its categories. What rows have to be rounded to changes no expectation.
      filled: rows of each shape that are computed: filled up, by repeating the last one,
        to a multiple of the devices and of the parts. Those count nowhere in the loss.
    """

    rows: dict[Shape, int]
    shares: tuple[float, ...]
    filled: dict[Shape, int]


class TrainingData(NamedTuple):
    """The order of a run's images, and what is read of each.

    Attributes:
      order: endless, of records.
      load: gives an image [H, W, 3] uint8, the arrays of `Features` by name, or int32: the
        row of its shape's table.
      is_encoded: whether it gives features.
      batch: what of each shape is in a batch.
      tables: for each shape `Features` of all its images, on every device; None: they are
        read as needed.
    """

    order: grain.MapDataset
    load: Callable[[Record], Any]
    is_encoded: bool
    batch: Batch
    tables: tuple[Features, ...] | None = None


def batch_of(run: Run) -> Batch:
    """The rows of each shape in the run's training batches.

    Raises:
      UserError: the batch has fewer rows than there are shapes.
    """
    shapes: dict[Shape, list[Record]] = {}
    for record in run.dataset.train:
        shapes.setdefault(run.shape_of(record), []).append(record)
    balanced = run.config.data.class_balanced
    weights = {
        shape: len({r.category for r in shapes[shape]} if balanced else shapes[shape])
        for shape in sorted(shapes)
    }
    total, settings = sum(weights.values()), run.config.train
    rows = share_rows(weights, settings.batch_size)
    shares = tuple(weight / total for weight in weights.values())
    unit = run.mesh.size * settings.micro_batches
    filled = {shape: -(-count // unit) * unit for shape, count in rows.items()}
    return Batch(rows, shares, filled)


def training_data(
    run: Run, encoder_params: Any, reader: ImageReader | None = None
) -> TrainingData:
    """The data of a run; encodes what is not in the feature cache yet.

    Args:
      run: the parts of the run.
      encoder_params: the encoder's weights on all devices.
      reader: that has read images of the run already.

    Raises:
      UserError: the cache cannot be written, or an image cannot be read.
    """
    records = run.dataset.train
    if run.config.cache.enabled or run.config.variation.views:
        reader = reader or image_reader(run)
        records = reader.hashed(records)  # a view follows from the hash of its image
    batch = batch_of(run)
    order = _order(run, records, batch)
    if run.config.cache.enabled:
        visited = _visited(run, order, records)
        cache = stored_features(run, encoder_params, reader, visited)
        if cache is not None and _fits_on_device(run, cache.bytes_for(visited)):
            return _on_device(run, cache, order, batch, visited)
        if cache is not None:
            return TrainingData(order, cache.read, True, batch)
    return TrainingData(order, run.load_image, False, batch)


def _on_device(
    run: Run,
    cache: FeatureCaches,
    order: grain.MapDataset,
    batch: Batch,
    records: Sequence[Record],
) -> TrainingData:
    """Training from tables of the features of these records, a table for each shape."""
    images = {cache.key(record): record for record in records}
    places, tables = {}, []
    for shape in batch.rows:
        keys = [key for key in images if key[0] == shape]
        places |= {key: np.int32(row) for row, key in enumerate(keys)}
        tables.append(_load_on_device(run, cache, shape, [images[key] for key in keys]))
    return TrainingData(
        order, lambda record: places[cache.key(record)], True, batch, tuple(tables)
    )


def _order(run: Run, records: Sequence[Record], batch: Batch) -> grain.MapDataset:
    order = training_order(
        records,
        seed=run.config.train.seed,
        class_balanced=run.config.data.class_balanced,
        views=run.config.variation.views,
        view_of=run.view_of,
        shape_of=run.shape_of,
        rows=batch.rows,
    )
    # grain counts batches as a float, and that of an endless order of batches of one image
    # overflows. Half of it is endless as well.
    return order[: len(order) // 2]


def _visited(run: Run, order: grain.MapDataset, records: Sequence[Record]) -> list[Record]:
    """The images and views that the run reads: not all, if it is a short one."""
    reads = run.config.train.num_steps * run.config.train.batch_size
    views = run.config.variation.views
    # Images come in turn, views by chance: after some time nearly all were read.
    enough = len(records) * (EPOCHS_OF_VIEWS * (views + 1) if views else 1)
    if reads < enough:
        visited = [order[i] for i in range(reads)]
        # Views of one image one after the other, so that it is decoded once.
        return sorted(visited, key=lambda record: record.source or record.sha256)
    return [run.view_of(record, view) for record in records for view in range(views + 1)]


def _fits_on_device(run: Run, size: int) -> bool:
    """Whether features of `size` bytes are to be kept in the memory of every device."""
    wanted = run.config.cache.on_device
    if wanted == "never":
        return False
    statistics = [device.memory_stats() or {} for device in jax.local_devices()]
    free = min(s.get("bytes_limit", 0) - s.get("bytes_in_use", 0) for s in statistics)
    if wanted == "always":
        if 0 < free < size:
            raise UserError(
                f"config.cache.on_device is 'always', but the features take "
                f"{gigabytes(size)} and a device has {gigabytes(free)} free; take 'auto'."
            )
        return True
    # On CPU the device's memory is the host's: nothing would be won.
    fits = jax.default_backend() != "cpu" and size <= free / 2
    return all_agree(fits)


def _load_on_device(
    run: Run, cache: FeatureCaches, shape: Shape, images: Sequence[Record]
) -> Features:
    """`Features` of N images in the cache's dtype, in their order, on every device."""
    logger.info("loading %s to every device", gigabytes(cache.bytes_for(images)))
    shapes = run.encoder.feature_shapes(len(images), shape)
    table = jax.tree.map(lambda s: np.empty(s.shape, run.config.cache.dtype), shapes)
    for row, image in enumerate(images):
        for name, values in cache.read(image).items():
            getattr(table, name)[row] = values
    return replicate(run.mesh, table)
