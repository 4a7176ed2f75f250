"""Runs of the campaign's sizes, with random weights and features."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scaling.programs import abstract_encoder_params, abstract_run

from campaign.sizes import Architecture
from harmoniad_jax.config import Config, with_settings
from harmoniad_jax.data.records import Dataset, Record
from harmoniad_jax.devices.mesh import place, shardings_of
from harmoniad_jax.features.encode import image_reader
from harmoniad_jax.model.encoders.encoder import Features
from harmoniad_jax.run.run import UNTRAINED, Run, prepare_run
from harmoniad_jax.steps.state import TrainState

# Features of so many images are drawn, and taken in turn.
DRAWN = 64


def config_of(architecture: Architecture, **changes: Any) -> Config:
    """Settings of a run; `changes` by dotted name, with "__" for the dots."""
    one = architecture
    settings = {
        "data.root": "nowhere",  # no image is read
        "data.image_side": one.side,
        "encoder.name": UNTRAINED,
        "encoder.untrained.width": one.width,
        "encoder.untrained.depth": one.depth,
        "encoder.untrained.heads": one.heads,
        "encoder.untrained.patch": one.patch,
        "encoder.groups": one.groups,
        "model.head_width": one.head_width,
        "model.high_depth": one.blocks,
        "model.low_depth": one.blocks,
        "model.plain_depth": 2 * one.blocks,
        "cache.on_device": "always",
    }
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return with_settings(Config(), settings | named)


def head_run(architecture: Architecture, **changes: Any) -> Run:
    """A run of shapes alone, encoder and state: see `drawn_state`."""
    return abstract_run(config_of(architecture, **changes))


def drawn_state(state: TrainState) -> TrainState:
    """A state to time steps with: random weights, and nothing learnt so far.

    Args:
      state: its shapes, dtypes and shardings.
    """
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
    drawn = place(shardings_of(state), zeros)
    return drawn.replace(params=_drawn(state.params))


def drawn_encoder(run: Run) -> Any:
    """Random weights of an encoder to time it with."""
    return _drawn(abstract_encoder_params(run))


def _drawn(shapes: Any) -> Any:
    """Small random numbers: chips multiply zeros faster than others."""
    pool = 0.02 * np.random.default_rng(0).standard_normal(2**20, np.float32)

    def values(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return np.resize(pool, leaf.shape).astype(leaf.dtype)

    return place(shardings_of(shapes), jax.tree.map(values, shapes))


def random_features(run: Run, images: int) -> Features:
    """Features of so many images on the device, as a run keeps them there."""

    def draw() -> Features:
        shapes = run.encoder.feature_shapes(images)
        return jax.tree.map(
            lambda leaf: jax.random.normal(jax.random.key(0), leaf.shape).astype(
                run.config.cache.dtype
            ),
            shapes,
        )

    return jax.jit(draw)()


def random_images(architecture: Architecture, batch: int) -> jax.Array:
    """[B, S, S, 3] uint8 on the device."""
    shape = (batch, architecture.side, architecture.side, 3)
    return jax.random.randint(jax.random.key(0), shape, 0, 256).astype(jnp.uint8)


def run_from_cache(
    architecture: Architecture, images: int, folder: Path, **changes: Any
) -> Run:
    """A run to train, whose images have features in a cache, and are nowhere else.

    The features are random. They are written where they are not there yet.
    """
    config = config_of(
        architecture,
        cache__folder=str(folder),
        # No other run is here that needs room.
        cache__max_gigabytes=1000.0,
        **changes,
    )
    records = [
        Record(Path(f"{index:05d}.png"), "product", sha256=f"{index:064x}")
        for index in range(images)
    ]
    run = prepare_run(config, Dataset(records, []), for_training=True)
    cache = image_reader(run).cache
    missing = [record for record in records if record not in cache]
    for start in range(0, len(missing), DRAWN):
        chunk = missing[start : start + DRAWN]
        cache.write(chunk, _drawn_rows(run, len(chunk)))
    return run


def _drawn_rows(run: Run, count: int) -> Iterator[Mapping[str, np.ndarray]]:
    """Features of so many images by name."""
    random = np.random.default_rng(0)
    shapes = run.encoder.feature_shapes(1)._asdict()
    drawn = {
        name: random.standard_normal(2 * np.prod(leaf.shape, dtype=int), np.float32)
        for name, leaf in shapes.items()
    }
    for index in range(count):
        # Other numbers for each, without drawing them all.
        yield {
            name: values[index : index + values.size // 2].reshape(shapes[name].shape[1:])
            for name, values in drawn.items()
        }


def describe_device() -> dict[str, Any]:
    """What everything is measured on."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "devices": jax.device_count(),
        "backend": jax.default_backend(),
        "jax": jax.__version__,
        "memory_bytes": (device.memory_stats() or {}).get("bytes_limit"),
    }


def peak_bytes() -> int | None:
    """Most bytes of the device that this process had; None where it is not counted."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
