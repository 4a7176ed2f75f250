"""What training reads: images, or the features that each of them was encoded into once."""

import dataclasses
import hashlib
import importlib.metadata
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import numpy as np

from harmoniad_jax.data import preprocess
from harmoniad_jax.data.feature_cache import (
    FeatureCache,
    UnchangedImage,
    gigabytes,
    image_hashes,
)
from harmoniad_jax.data.pipeline import image_loader, training_order
from harmoniad_jax.data.records import Record
from harmoniad_jax.errors import UserError
from harmoniad_jax.model import attention, backbone, position_embedding
from harmoniad_jax.model.backbone import Features
from harmoniad_jax.training.datasets import cache_folder
from harmoniad_jax.training.prediction import image_batches
from harmoniad_jax.training.processes import all_agree, main_first, map_shared, together
from harmoniad_jax.training.setup import Run
from harmoniad_jax.training.sharding import make_mesh, replicate

logger = logging.getLogger(__name__)

# A killed run has fewer than these to encode again.
CHUNK_IMAGES = 64
# A mapped chunk holds a file descriptor, of which a process often has 1024: larger sets
# have larger chunks instead of more.
MOST_CHUNKS = 256
# A change in any of these may change features.
PROGRAM = (preprocess, backbone, attention, position_embedding)
LIBRARIES = ("flax", "jax", "pillow", "transformers")


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


def training_data(run: Run, encoder_params: Any) -> TrainingData:
    """The data of a run; encodes what is not in the feature cache yet.

    Args:
      run: the parts of the run.
      encoder_params: the encoder's weights on all devices.

    Raises:
      UserError: the cache cannot be written, or an image cannot be read.
    """
    records = run.dataset.train
    if run.config.cache.enabled:
        hashes = _hashes(run, records)
        hashed = [
            dataclasses.replace(record, sha256=sha256)
            for record, sha256 in zip(records, hashes, strict=True)
        ]
        order = _order(run, hashed)
        cache = _open_cache(run)
        images = _visited(run, order, hashed)
        if _encode(run, encoder_params, cache, images):
            if _fits_on_device(run, cache.bytes_for(len(images))):
                rows = {image: np.int32(row) for row, image in enumerate(images)}
                table = _load_on_device(run, cache, list(images))
                return TrainingData(order, lambda r: rows[r.sha256], True, table)
            return TrainingData(order, lambda record: cache.read(record.sha256), True)
    return TrainingData(_order(run, records), image_loader(run.encoder.image_side), False)


def _hashes(run: Run, records: Sequence[Record]) -> list[str]:
    """The SHA-256 of every image; each process reads its share of them."""

    def hash_share(share: Sequence[Record]) -> list[bytes]:
        return list(map(bytes.fromhex, image_hashes(share, run.config.data.threads)))

    digests = map_shared(hash_share, records, hashlib.sha256().digest_size)
    return [digest.hex() for digest in digests]


def _order(run: Run, records: Sequence[Record]) -> grain.MapDataset:
    return training_order(
        records,
        seed=run.config.train.seed,
        class_balanced=run.config.data.class_balanced,
    )


def _open_cache(run: Run) -> FeatureCache:
    folder = run.config.cache.folder
    shapes = run.encoder.feature_shapes(1)._asdict()
    return FeatureCache(
        Path(folder).expanduser() if folder else cache_folder() / "features",
        {
            "architecture": run.encoder.description.hf_config.to_dict(),
            "weights": run.encoder.weight_hash,
            "blocks": run.encoder.groups,
            "image_side": run.encoder.image_side,
            "image_mean": run.encoder.image_mean,
            "image_std": run.encoder.image_std,
            "dtype": run.config.encoder.dtype,
            "attention": run.config.encoder.attention,
            "recentre": run.config.encoder.recentre,
            "matmul_precision": str(jax.config.jax_default_matmul_precision),
            "backend": jax.default_backend(),
            "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
            "program": _hash_of_program(),
        },
        {name: shape.shape[1:] for name, shape in shapes.items()},
        run.config.cache.dtype,
    )


def _hash_of_program() -> str:
    digest = hashlib.sha256()
    for module in PROGRAM:
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()


def _visited(
    run: Run, order: grain.MapDataset, records: Sequence[Record]
) -> dict[str, Record]:
    """The images that the run reads, by hash: not all, if it is shorter than an epoch."""
    reads = run.config.train.num_steps * run.config.train.batch_size
    visited = records if reads >= len(records) else [order[i] for i in range(reads)]
    return {record.sha256: record for record in visited}


def _encode(
    run: Run, encoder_params: Any, cache: FeatureCache, images: dict[str, Record]
) -> bool:
    """Encodes the images that are not in the cache; False if they do not fit into it."""
    settings = run.config.cache
    size, limit = cache.bytes_for(len(images)), int(settings.max_gigabytes * 1e9)
    if size > limit:
        logger.warning(
            "features of %d images take %s, more than config.cache.max_gigabytes=%g "
            "allows: training without the cache, which encodes every image in every epoch",
            len(images),
            gigabytes(size),
            settings.max_gigabytes,
        )
        return False
    # The folder may be one that all processes share, or each may have its own.
    main_first(lambda: cache.make_room(images, limit))
    missing = sum(image not in cache for image in images)
    logger.info(
        "features of %d images, %s in %s; %d are to be encoded",
        len(images),
        gigabytes(size),
        cache.folder,
        missing,
    )
    count = jax.process_count()
    # By place in the whole list, so that processes agree, whatever each of them found.
    share = list(images)[jax.process_index() :: count]
    together(lambda: _fill(run, encoder_params, cache, _missing(cache, images, share)))
    if count > 1:
        # What the others encoded is there now, or on disks that are not ours.
        cache.refresh()
        together(lambda: _fill(run, encoder_params, cache, _missing(cache, images, images)))
    return True


def _missing(
    cache: FeatureCache, images: dict[str, Record], wanted: Iterable[str]
) -> list[Record]:
    return [images[image] for image in wanted if image not in cache]


def _fill(
    run: Run, encoder_params: Any, cache: FeatureCache, records: Sequence[Record]
) -> None:
    """Encodes images on this process's devices and stores their features."""
    if not records:
        return
    waiting: list[tuple[str, dict[str, np.ndarray]]] = []
    chunk_images = max(CHUNK_IMAGES, len(records) // MOST_CHUNKS)

    def store() -> None:
        hashes, rows = zip(*waiting, strict=True)
        cache.write(hashes, {k: np.stack([row[k] for row in rows]) for k in rows[0]})
        waiting.clear()

    for record, features in zip(
        records, _features(run, encoder_params, records), strict=True
    ):
        waiting.append((record.sha256, features))
        if len(waiting) == chunk_images:
            store()
    if waiting:
        store()


def _features(
    run: Run, encoder_params: Any, records: Sequence[Record]
) -> Iterator[dict[str, np.ndarray]]:
    """The features of each record, in order, by name."""
    mesh = run.mesh
    if jax.process_count() > 1:  # each encodes its own share
        mesh = make_mesh(devices=jax.local_devices())
        encoder_params = replicate(mesh, run.encoder.params)
    encode = jax.jit(run.encoder.encode)
    unchanged = [
        dataclasses.replace(record, image=UnchangedImage(record.image, record.sha256))
        for record in records
    ]
    for images, valid in image_batches(run, unchanged, "encoding", mesh):
        features = jax.device_get(encode(encoder_params, images))._asdict()
        for row in np.flatnonzero(valid):
            yield {name: values[row] for name, values in features.items()}


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
