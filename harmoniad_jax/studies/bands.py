"""Which frequency band of the features a corruption acts through.

An image gets one band of its corrupted version and keeps the other of its clean one.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from harmoniad_jax.config import ModelConfig
from harmoniad_jax.data.records import Record
from harmoniad_jax.features.encode import Inputs, image_inputs
from harmoniad_jax.inference.trained import Trained
from harmoniad_jax.model.encoders.encoder import Features
from harmoniad_jax.model.split import low_pass

BANDS = ("low", "high")


def through_band(trained: Trained, band: str) -> Inputs:
    """What a `Predictor` predicts corrupted records from: one band of the corruption.

    Args:
      trained: the opened run.
      band: one of `BANDS`.
    """
    run, read = trained.run, image_inputs(trained.run)
    mix = functools.partial(mixed, run.encoder.encode, run.mesh, band)

    def inputs(
        records: Sequence[Record], title: str
    ) -> Iterator[tuple[Features, np.ndarray]]:
        clean = [dataclasses.replace(record, image=record.image.file) for record in records]
        pairs = zip(
            read(clean, f"{title}, clean"),
            read(records, f"{title}, {band} band"),
            strict=True,
        )
        for (one, valid), (other, _) in pairs:
            yield mix(trained.encoder_params, one, other), valid

    return inputs


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def mixed(
    encode: Callable[[Any, jax.Array], Features],
    mesh: Mesh | None,
    band: str,
    encoder_params: Any,
    clean: jax.Array,
    corrupted: jax.Array,
) -> Features:
    """The features of clean images, and of the corrupted ones in a band.

    The class token, which belongs to neither band, is that of the corrupted image.
    """
    clean, corrupted = (encode(encoder_params, images) for images in (clean, corrupted))
    change = corrupted.patches - clean.patches
    groups = jnp.ones(change.shape[1])
    # The default split: the same for every run.
    split = ModelConfig()
    low = low_pass(
        change,
        groups * split.cutoff,
        groups * split.softness,
        gate=split.gate,
        mirror=split.mirror,
        mesh=mesh,
    )
    change = low if band == "low" else change - low
    return Features(clean.patches + change, corrupted.class_token)
