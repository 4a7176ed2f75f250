"""What training reads: images, or the features that each of them was encoded into once."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import grain
import jax
import numpy as np

from harmoniad_jax.data.batches import training_order
from harmoniad_jax.data.records import Record
from harmoniad_jax.devices.mesh import replicate
from harmoniad_jax.devices.processes import all_agree
from harmoniad_jax.errors import UserError
from harmoniad_jax.features.encode import image_reader, stored_features
from harmoniad_jax.features.reading import ImageReader
from harmoniad_jax.features.store import FeatureCache
from harmoniad_jax.model.encoders.encoder import Features
from harmoniad_jax.run.run import Run
from harmoniad_jax.words import gigabytes

logger = logging.getLogger(__name__)

# After three epochs of all views 95 of 100 views were read.
EPOCHS_OF_VIEWS = 3


class TrainingData(NamedTuple):
    """The order of a run's images, and what is read of each.

    Attributes:
      order: endless, of records.
      load: gives an image [S, S, 3] uint8, the arrays of `Features` by name, or a row of
        `table`.
      is_encoded: whether it gives features.
      table: `Features` of all images, on every device; None: they are read as needed.
    """

    order: grain.MapDataset
    load: Callable[[Record], Any]
    is_encoded: bool
    table: Features | None = None


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
    if run.config.cache.enabled:
        reader = reader or image_reader(run)
        records = reader.hashed(records)
        order = _order(run, records)
        images = _visited(run, order, records)
        cache = stored_features(run, encoder_params, reader, images)
        if cache is not None:
            if _fits_on_device(run, cache.bytes_for(len(images))):
                rows = {image: np.int32(row) for row, image in enumerate(images)}
                table = _load_on_device(run, cache, list(images))
                return TrainingData(order, lambda r: rows[r.sha256], True, table)
            return TrainingData(order, lambda record: cache.read(record.sha256), True)
    if run.config.variation.views:
        records = (reader or image_reader(run)).hashed(records)
    return TrainingData(_order(run, records), run.load_image, False)


def _order(run: Run, records: Sequence[Record]) -> grain.MapDataset:
    order = training_order(
        records,
        seed=run.config.train.seed,
        class_balanced=run.config.data.class_balanced,
        views=run.config.variation.views,
        view_of=run.view_of,
    )
    # grain counts batches as a float, and that of an endless order of batches of one image
    # overflows. Half of it is endless as well.
    return order[: len(order) // 2]


def _visited(
    run: Run, order: grain.MapDataset, records: Sequence[Record]
) -> dict[str, Record]:
    """The images and views that the run reads, by hash: not all, if it is a short one."""
    reads = run.config.train.num_steps * run.config.train.batch_size
    views = run.config.variation.views
    # Images come in turn, views by chance: after some time nearly all were read.
    enough = len(records) * (EPOCHS_OF_VIEWS * (views + 1) if views else 1)
    if reads < enough:
        visited = [order[i] for i in range(reads)]
        # Views of one image one after the other, so that it is decoded once.
        visited.sort(key=lambda record: record.source or record.sha256)
    else:
        visited = [run.view_of(r, view) for r in records for view in range(views + 1)]
    return {record.sha256: record for record in visited}


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


def _load_on_device(run: Run, cache: FeatureCache, images: Sequence[str]) -> Features:
    """`Features` of N images in the cache's dtype, in their order, on every device."""
    logger.info("loading %s to every device", gigabytes(cache.bytes_for(len(images))))
    shapes = run.encoder.feature_shapes(len(images))
    table = jax.tree.map(lambda s: np.empty(s.shape, run.config.cache.dtype), shapes)
    for row, image in enumerate(images):
        for name, values in cache.read(image).items():
            getattr(table, name)[row] = values
    return replicate(run.mesh, table)
