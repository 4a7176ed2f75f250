"""Images of a run into features: computed as they are needed, or once and stored."""

import dataclasses
import hashlib
import importlib.metadata
import inspect
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from harmoniad_jax.config import Config
from harmoniad_jax.data import preprocess
from harmoniad_jax.data.pipeline import Loader, evaluation_batches, image_loader
from harmoniad_jax.data.records import Record
from harmoniad_jax.devices.mesh import make_mesh, replicate, shard_batch
from harmoniad_jax.devices.processes import is_main, main_first, map_shared, together
from harmoniad_jax.errors import UserError
from harmoniad_jax.features.store import FeatureCache, UnchangedImage, image_hashes
from harmoniad_jax.fields import FEATURES, flatten, touching
from harmoniad_jax.folders import cache_folder
from harmoniad_jax.model.encoders import attention, encoder, positions
from harmoniad_jax.model.encoders.encoder import Features
from harmoniad_jax.run.run import Run
from harmoniad_jax.words import gigabytes

logger = logging.getLogger(__name__)

# A killed run has fewer than these to encode again.
CHUNK_IMAGES = 64
# A mapped chunk holds a file descriptor, of which a process often has 1024: larger sets
# have larger chunks instead of more.
MOST_CHUNKS = 256
# A change in any of these may change features.
PROGRAM = (preprocess, encoder, attention, positions)
LIBRARIES = ("flax", "jax", "pillow", "transformers")

# From records and a title for the progress bar to batches, in order, of what the steps of
# evaluation take, each with the rows of it that are real.
Inputs = Callable[
    [Sequence[Record], str], Iterator[tuple[jax.Array | Features, np.ndarray]]
]


def image_inputs(run: Run) -> Inputs:
    """Images, read whenever they are asked for."""
    return lambda records, title: _image_batches(run, records, title, run.mesh)


def evaluation_inputs(run: Run, encoder_params: Any) -> Inputs:
    """Images, or with `config.cache.evaluation` their stored features.

    Held-out and test images that are not stored yet are encoded here, all of them, so that
    none makes room for another. Where they cannot be stored, evaluation goes on with
    images: it may stand at the end of a long training.

    Args:
      run: the parts of the run.
      encoder_params: the encoder's weights on all devices.
    """
    settings, dataset = run.config.cache, run.dataset
    wanted = [*dataset.held_out, *dataset.test]
    if not (settings.evaluation and wanted):
        return image_inputs(run)
    known = dict(zip(wanted, hashed(run, wanted), strict=True))
    images = {record.sha256: record for record in known.values()}
    # Those of training stay for the next run.
    trained = hashed(run, dataset.train) if settings.enabled else []
    beside = {record.sha256 for record in trained}
    try:
        cache = stored_features(run, encoder_params, images, beside)
    except UserError as error:
        logger.warning("%s Evaluation goes on without stored features.", error)
        cache = None
    if cache is None:
        return image_inputs(run)

    def read(record: Record) -> dict[str, np.ndarray]:
        return cache.read(known[record].sha256)

    def inputs(
        records: Sequence[Record], title: str
    ) -> Iterator[tuple[jax.Array | Features, np.ndarray]]:
        # Not whether the cache has them: of other images processes may hold different ones,
        # and all of them have to run the same step.
        if not all(record in known for record in records):
            yield from _image_batches(run, records, title, run.mesh)
            return
        for features, valid in _batches(run, records, title, run.mesh, read, cache.empty):
            yield Features(**features), valid

    return inputs


def hashed(run: Run, records: Sequence[Record]) -> list[Record]:
    """The records with the SHA-256 of their images; each process reads its share."""

    def hash_share(share: Sequence[Record]) -> list[bytes]:
        return list(map(bytes.fromhex, image_hashes(share, run.config.data.threads)))

    digests = map_shared(hash_share, records, hashlib.sha256().digest_size)
    return [
        dataclasses.replace(record, sha256=digest.hex())
        for record, digest in zip(records, digests, strict=True)
    ]


def stored_features(
    run: Run,
    encoder_params: Any,
    images: Mapping[str, Record],
    beside: Collection[str] = (),
) -> FeatureCache | None:
    """The cache, after it was given the features of images that it does not hold yet.

    Args:
      run: the parts of the run.
      encoder_params: the encoder's weights on all devices.
      images: by the SHA-256 of each.
      beside: SHA-256 of more images, whose features are to stay where they are stored.

    Returns:
      None if they do not fit into `config.cache.max_gigabytes`.

    Raises:
      UserError: the cache cannot be written, or an image cannot be read.
    """
    cache, settings = together(lambda: _open_cache(run)), run.config.cache
    count, limit = len({*images, *beside}), int(settings.max_gigabytes * 1e9)
    size = cache.bytes_for(count)
    if size > limit:
        logger.warning(
            "features of %d images take %s, more than config.cache.max_gigabytes=%g "
            "allows: going on without the cache, which encodes images whenever they are "
            "read",
            count,
            gigabytes(size),
            settings.max_gigabytes,
        )
        return None
    kept = {*images, *(image for image in beside if image in cache)}
    # The folder may be one that all processes share, or each may have its own.
    main_first(lambda: cache.make_room(kept, limit))
    missing = sum(image not in cache for image in images)
    logger.info(
        "features of %d images, %s in %s; %d are to be encoded",
        len(images),
        gigabytes(cache.bytes_for(len(images))),
        cache.folder,
        missing,
    )
    processes = jax.process_count()
    # By place in the whole list, so that processes agree, whatever each of them found.
    share = list(images)[jax.process_index() :: processes]
    together(lambda: _fill(run, encoder_params, cache, _missing(cache, images, share)))
    if processes > 1:
        # What the others encoded is there now, or on disks that are not ours.
        cache.refresh()
        together(lambda: _fill(run, encoder_params, cache, _missing(cache, images, images)))
    return cache


def _open_cache(run: Run) -> FeatureCache:
    folder = run.config.cache.folder
    shapes, settings = (
        run.encoder.feature_shapes(1)._asdict(),
        flatten(run.config.to_dict()),
    )
    return FeatureCache(
        Path(folder).expanduser() if folder else cache_folder() / "features",
        {
            "architecture": run.encoder.description.hf_config.to_dict(),
            "weights": run.encoder.weight_hash,
            "settings": {path: settings[path] for path in touching(Config, FEATURES)},
            "image_mean": run.encoder.image_mean,
            "image_std": run.encoder.image_std,
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


def _missing(
    cache: FeatureCache, images: Mapping[str, Record], wanted: Iterable[str]
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
    for images, valid in _image_batches(run, unchanged, "encoding", mesh):
        features = jax.device_get(encode(encoder_params, images))._asdict()
        for row in np.flatnonzero(valid):
            yield {name: values[row] for name, values in features.items()}


def _image_batches(
    run: Run, records: Sequence[Record], title: str, mesh: Mesh
) -> Iterator[tuple[jax.Array, np.ndarray]]:
    side = run.encoder.image_side
    empty = np.zeros((side, side, 3), np.uint8)
    return _batches(run, records, title, mesh, image_loader(side), empty)


def _batches(
    run: Run, records: Sequence[Record], title: str, mesh: Mesh, load: Loader, empty: Any
) -> Iterator[tuple[Any, np.ndarray]]:
    """Batches of what `load` gives on the devices of a mesh, and which rows are real.

    Where the mesh is that of several processes, each reads its share of every batch.
    """
    logger.info("%s: %d images", title, len(records))
    shared = mesh.is_multi_process
    batches = evaluation_batches(
        records,
        load,
        empty,
        batch_size=run.evaluation_batch_size,
        threads=run.config.data.threads,
        process_index=jax.process_index() if shared else 0,
        process_count=jax.process_count() if shared else 1,
    )
    with tqdm(
        desc=title,
        total=len(records),
        unit="image",
        disable=None if is_main() else True,
    ) as progress:
        for rows, valid in batches:
            yield shard_batch(mesh, rows), valid
            progress.update(int(valid.sum()))
