"""What tests of stored features share: a cache opened, trained from and compared."""

import dataclasses
import functools
import re
from pathlib import Path

import jax
import numpy as np
from run_helpers import changed

from harmoniad_jax.data.order import training_batches
from harmoniad_jax.devices.mesh import replicate, shard_batch
from harmoniad_jax.model.encoders.encoder import Features
from harmoniad_jax.steps.state import create_state
from harmoniad_jax.training.data import training_data

IMAGES = 24  # of the drawn products, all different
LOG = re.compile(r"features of (\d+) images, (\S+ GB) in (\S+); (\d+) are to be encoded")


def with_settings(run, section, **values):
    """The same run with other settings of the cache, of the data's order or the length."""
    return dataclasses.replace(run, config=changed(run.config, section, **values))


def on_devices(run):
    return replicate(run.mesh, run.encoder.params)


def opened(run):
    return training_data(run, on_devices(run))


@functools.cache
def compiled(function):
    """Once for all tests: the parts of a run stay the same when its settings change."""
    return jax.jit(function)


@functools.cache
def compiled_state(steps, shapes, seed):
    return jax.device_get(
        jax.jit(lambda: create_state(steps.model, steps.optimizer, shapes, seed))()
    )


def initial_state(run):
    """On the host."""
    return compiled_state(run.steps, run.encoder.feature_shapes(1), run.config.train.seed)


def train(run, steps=None):
    """Losses of each step and the final state, on the host; what the loop does."""
    data, encoder_params = opened(run), on_devices(run)
    batches = training_batches(
        data.order,
        data.load,
        rows=tuple(data.batch.rows.values()),
        threads=run.config.data.threads,
    )
    state = replicate(run.mesh, initial_state(run))
    losses = []
    for _ in range(steps or run.config.train.num_steps):
        (batch,) = shard_batch(run.mesh, next(batches))
        if data.is_encoded:
            state, metrics = compiled(run.steps.update)(state, Features(**batch))
        else:
            state, metrics = compiled(run.steps.train_step)(state, encoder_params, batch)
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state)


def records_of(data, count=IMAGES):
    return [data.order[index] for index in range(count)]


def assert_fresh(run, data, count=IMAGES, tolerance=1e-5):
    """What is read is what the encoder gives for each image as it is now.

    The tolerance is for another batch: its rows may be summed in another order.
    """
    assert data.is_encoded
    records = records_of(data, count)
    images = np.stack([run.load_image(record) for record in records])
    encode = compiled(run.encoder.encode)
    expected = jax.device_get(encode(run.encoder.params, images))
    for row, record in enumerate(records):
        read = data.load(record)
        assert read.keys() == expected._asdict().keys()
        for name, values in expected._asdict().items():
            assert values[row].shape == read[name].shape
            np.testing.assert_allclose(
                read[name], values[row], rtol=tolerance, atol=tolerance
            )


def stored_bytes(data, count=IMAGES):
    """The features of each image, by its hash."""
    return {
        record.sha256: {k: v.tobytes() for k, v in data.load(record).items()}
        for record in records_of(data, count)
    }


def cache_of(run):
    return Path(run.config.cache.folder)


def chunks(run):
    return sorted(cache_of(run).glob("*/*.npy"))


def encoded(log):
    """How many images the only message says are to be encoded."""
    (match,) = filter(None, map(LOG.fullmatch, log()))
    return int(match[4])
