"""Images of a run into features: computed as they are needed, or once and stored."""

import contextlib
import hashlib
import importlib.metadata
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from harmoniad_jax.config import Config
from harmoniad_jax.data import deep, levels, preprocess
from harmoniad_jax.data import images as image_files
from harmoniad_jax.data.batches import Loader, evaluation_batches
from harmoniad_jax.data.preprocess import empty_input
from harmoniad_jax.data.records import Record
from harmoniad_jax.data.shapes import Shape
from harmoniad_jax.devices.mesh import make_mesh, replicate, shard_batch
from harmoniad_jax.devices.processes import is_main, main_first, my_share, together
from harmoniad_jax.errors import UserError
from harmoniad_jax.features.caches import FeatureCaches
from harmoniad_jax.features.reading import ImageReader
from harmoniad_jax.features.store import FeatureCache
from harmoniad_jax.fields import FEATURES, flatten, touching
from harmoniad_jax.folders import cache_folder
from harmoniad_jax.model import encoders
from harmoniad_jax.model.encoders.encoder import Features
from harmoniad_jax.run.run import Run
from harmoniad_jax.words import gigabytes

logger = logging.getLogger(__name__)

# A killed run has fewer than these to encode again.
CHUNK_IMAGES = 64
# After so many batches the rest of the time is estimated.
TIMED_BATCHES = 2
LONG_SECONDS = 30
# A mapped chunk holds a file descriptor, of which a process often has 1024: larger sets
# have larger chunks instead of more.
MOST_CHUNKS = 256
# A change in any of these may change features: files, and folders with all their files.
PROGRAM = (
    *(Path(module.__file__) for module in (deep, image_files, levels, preprocess)),
    Path(encoders.__file__).parent,
)
LIBRARIES = ("flax", "imagecodecs", "jax", "pillow", "tifffile", "transformers")

# From records of one shape and a title for the progress bar to batches, in order, of what
# the steps of evaluation take, each with the rows of it that are real.
Inputs = Callable[
    [Sequence[Record], str], Iterator[tuple[jax.Array | Features, np.ndarray]]
]


def image_inputs(run: Run) -> Inputs:
    """Images, read whenever they are asked for."""
    load = run.load_image
    return lambda records, title: _batches(run, records, title, run.mesh, load, empty_input)


def image_reader(run: Run) -> ImageReader:
    """The reader of a run's images; it opens the feature cache. Every process calls it.

    Raises:
      UserError: the cache that training is to read cannot be made.
    """
    settings, cache = run.config.cache, None
    try:
        if settings.enabled or settings.evaluation:
            cache = together(lambda: _open_cache(run))
    except UserError as error:
        if settings.enabled:
            raise
        logger.warning("%s Evaluation goes on without stored features.", error)
    config = run.config
    return ImageReader(run.preprocessor, config.data.threads, cache, config.variation)


def evaluation_inputs(
    run: Run, encoder_params: Any, reader: ImageReader | None = None
) -> Inputs:
    """Images, or with `config.cache.evaluation` their stored features.

    Held-out and test images that are not stored yet are encoded here, all of them, so that
    none makes room for another. Where they cannot be stored, evaluation goes on with
    images: it may stand at the end of a long training.

    Args:
      run: the parts of the run.
      encoder_params: the encoder's weights on all devices.
      reader: that has read images of the run already.
    """
    settings, dataset = run.config.cache, run.dataset
    wanted = [*dataset.held_out, *dataset.test]
    if not (settings.evaluation and wanted):
        return image_inputs(run)
    try:
        reader = reader or image_reader(run)
        known = dict(zip(wanted, reader.hashed(wanted), strict=True))
        # Those of training stay for the next run.
        extra = reader.hashed(dataset.train) if settings.enabled else []
        cache = stored_features(run, encoder_params, reader, list(known.values()), extra)
    except UserError as error:
        logger.warning("%s Evaluation goes on without stored features.", error)
        cache = None
    if cache is None:
        return image_inputs(run)

    def read(record: Record) -> dict[str, np.ndarray]:
        return cache.read(known[record])

    def inputs(
        records: Sequence[Record], title: str
    ) -> Iterator[tuple[jax.Array | Features, np.ndarray]]:
        # Not whether the cache has them: of other images processes may hold different ones,
        # and all of them have to run the same step.
        if not all(record in known for record in records):
            yield from image_inputs(run)(records, title)
            return
        for features, valid in _batches(run, records, title, run.mesh, read, cache.empty):
            yield Features(**features), valid

    return inputs


def stored_features(
    run: Run,
    encoder_params: Any,
    reader: ImageReader,
    records: Sequence[Record],
    extra: Sequence[Record] = (),
) -> FeatureCaches | None:
    """The cache, after it was given the features of images that it does not hold yet.

    Args:
      run: the parts of the run.
      encoder_params: the encoder's weights on all devices.
      reader: of the images, with the cache.
      records: hashed; copies may be among them.
      extra: more of them, whose features are to stay if they are stored.

    Returns:
      None if there is no cache, or they do not fit into `config.cache.max_gigabytes`.

    Raises:
      UserError: the cache cannot be written, or an image cannot be read.
    """
    cache, settings = reader.cache, run.config.cache
    if cache is None:
        return None
    images = {cache.key(record): record for record in records}
    everything = {cache.key(record): record for record in extra} | images
    limit = int(settings.max_gigabytes * 1e9)
    size = cache.bytes_for(everything.values())
    if size > limit:
        logger.warning(
            "features of %d images take %s, more than config.cache.max_gigabytes=%g "
            "allows: going on without the cache, which encodes images whenever they are "
            "read",
            len(everything),
            gigabytes(size),
            settings.max_gigabytes,
        )
        return None
    kept = [*images.values(), *(record for record in extra if record in cache)]
    # The folder may be one that all processes share, or each may have its own.
    main_first(lambda: cache.make_room(kept, limit))
    missing = len(_missing(cache, images.values()))
    logger.info(
        "features of %d images, %s in %s; %d are to be encoded",
        len(images),
        gigabytes(cache.bytes_for(images.values())),
        cache.place,
        missing,
    )
    processes = jax.process_count()
    # By place in the whole list, so that processes agree, whatever each of them found.
    share = my_share(list(images.values()))
    together(lambda: _fill(run, encoder_params, reader, _missing(cache, share)))
    if processes > 1:
        # What the others encoded is there now, or on disks that are not ours.
        cache.refresh()
        together(
            lambda: _fill(
                run, encoder_params, reader, _missing(cache, list(images.values()))
            )
        )
    return cache


def _open_cache(run: Run) -> FeatureCaches:
    return FeatureCaches(
        {shape: _open_cache_of(run, shape) for shape in run.preprocessor.all_shapes},
        run.shape_of,
    )


def _open_cache_of(run: Run, shape: Shape) -> FeatureCache:
    """That of images of one shape. The shapes of others decide nothing about theirs."""
    folder = run.config.cache.folder
    features = run.encoder.feature_shapes(1, shape)._asdict()
    settings = flatten(run.config.to_dict())
    return FeatureCache(
        Path(folder).expanduser() if folder else cache_folder() / "features",
        {
            "architecture": run.encoder.description.hf_config.to_dict(),
            "weights": run.encoder.weight_hash,
            "settings": {path: settings[path] for path in touching(Config, FEATURES)},
            "preprocessor": {**run.preprocessor.to_json(), "shapes": None},
            "shape": list(shape),
            "image_mean": run.encoder.image_mean,
            "image_std": run.encoder.image_std,
            "matmul_precision": str(jax.config.jax_default_matmul_precision),
            "backend": jax.default_backend(),
            "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
            "program": _hash_of_program(PROGRAM),
        },
        {name: values.shape[1:] for name, values in features.items()},
        run.config.cache.dtype,
    )


def _hash_of_program(places: Sequence[Path]) -> str:
    """SHA-256 over names and source text of Python files, and of all that folders hold."""
    digest = hashlib.sha256()
    for place in places:
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            name = path.relative_to(place.parent).as_posix()
            text = hashlib.sha256(path.read_text("utf-8").encode()).hexdigest()
            digest.update(f"{name}:{text}\n".encode())
    return digest.hexdigest()


def _missing(cache: FeatureCaches, records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record not in cache]


def _fill(
    run: Run, encoder_params: Any, reader: ImageReader, records: Sequence[Record]
) -> None:
    """Encodes images on this process's devices and stores their features."""
    reader.expect(records)
    for rows in run.preprocessor.by_shape([r.category for r in records]).values():
        _fill_shape(run, encoder_params, reader, [records[row] for row in rows])


def _fill_shape(
    run: Run, encoder_params: Any, reader: ImageReader, records: Sequence[Record]
) -> None:
    """The same for records of one shape, at least one."""
    size = max(CHUNK_IMAGES, len(records) // MOST_CHUNKS)
    with contextlib.closing(_features(run, encoder_params, reader, records)) as features:
        for start in range(0, len(records), size):
            chunk = records[start : start + size]
            reader.cache.write(chunk, itertools.islice(features, len(chunk)))
        next(features, None)  # there is none: the bar of progress comes to its end


def _features(
    run: Run, encoder_params: Any, reader: ImageReader, records: Sequence[Record]
) -> Iterator[dict[str, np.ndarray]]:
    """The features of each record, in order, by name; all are of one shape."""
    mesh = run.mesh
    if jax.process_count() > 1:  # each encodes its own share
        mesh = make_mesh(devices=jax.local_devices())
        encoder_params = replicate(mesh, run.encoder.params)
    encode = jax.jit(run.encoder.encode)
    begun, encoded = 0.0, 0
    batches = _batches(run, records, "encoding", mesh, reader.take, empty_input)
    for number, (images, valid) in enumerate(batches):
        features = jax.device_get(encode(encoder_params, images))._asdict()
        encoded += int(valid.sum())
        if number == 0:  # it was compiled, which says nothing of the others
            begun, first = time.monotonic(), encoded
        elif number == TIMED_BATCHES:
            rate = (encoded - first) / (time.monotonic() - begun)
            rest = round((len(records) - encoded) / rate)
            if rest >= LONG_SECONDS:
                logger.info("encoding takes about %s more", timedelta(seconds=rest))
        for row in np.flatnonzero(valid):
            yield {name: values[row] for name, values in features.items()}


def _batches(
    run: Run,
    records: Sequence[Record],
    title: str,
    mesh: Mesh,
    load: Loader,
    empty: Callable[[Shape], Any],
) -> Iterator[tuple[Any, np.ndarray]]:
    """Batches of what `load` gives on the devices of a mesh, and which rows are real.

    Where the mesh is that of several processes, each reads its share of every batch.

    Args:
      run: the parts of the run.
      records: of one shape.
      title: for the progress bar.
      mesh: of the devices.
      load: gives what a batch holds of a record.
      empty: gives what fills the last batch, for the shape of the records.
    """
    shapes = {run.shape_of(record) for record in records}
    if len(shapes) > 1:
        raise ValueError(f"records: received shapes {sorted(shapes)}, allowed is one")
    logger.info("%s: %d images", title, len(records))
    shared = mesh.is_multi_process
    batches = evaluation_batches(
        records,
        load,
        empty(*shapes) if shapes else None,
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
