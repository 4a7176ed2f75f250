"""Compiles the steps of a run for a mesh, without a weight or an image in memory."""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from harmoniad_jax.config import Config
from harmoniad_jax.devices.compilation import flops
from harmoniad_jax.devices.mesh import (
    abstract_on,
    batched,
    make_mesh,
    replicated,
    shardings_of,
    split_over_model,
)
from harmoniad_jax.model.encoders.encoder import Encoder, EncoderDescription
from harmoniad_jax.run.run import Run, assemble, resolve_config
from harmoniad_jax.steps.step import Steps
from scaling.hlo import Array, Collective, collectives

# From stored features, as runs with a feature cache train, and from images.
PROGRAMS = ("features", "images")
FEWEST = 8  # elements: arrays of so many or fewer are losses, norms and flags


class Program(NamedTuple):
    """A compiled step.

    collectives: of one step.
    flops: of one step over all devices, by XLA's count before compilation.
    argument_bytes, temporary_bytes: of one device, by XLA's count.
    """

    collectives: list[Collective]
    flops: float
    argument_bytes: int
    temporary_bytes: int


def abstract_run(config: Config) -> Run:
    """A run on as many devices as its mesh has, of shapes alone."""
    config, description = resolve_config(config, with_data=False)
    encoder = abstract_encoder(config, description)
    return assemble(config, None, encoder, make_mesh(config.sharding))


def abstract_encoder(config: Config, description: EncoderDescription) -> Encoder:
    """An encoder with the shapes of its weights in place of them."""
    family, side = description.family, config.data.image_side
    hf_config = type(description.hf_config).from_dict(description.hf_config.to_dict())
    hf_config.image_size = side
    dtype = jnp.dtype(config.encoder.dtype)
    module = family.module(hf_config, dtype=dtype)
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    groups = np.array_split(config.encoder.taps, config.encoder.groups)
    return Encoder(
        description=description,
        image_side=side,
        groups=tuple(tuple(group.tolist()) for group in groups),
        image_mean=family.image_mean,
        image_std=family.image_std,
        module=module,
        params=jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes),
        weight_hash="",
        attention=config.encoder.attention,
        recentre=config.encoder.recentre,
        chroma_sigma=config.encoder.chroma_sigma,
    )


def abstract_encoder_params(run: Run) -> Any:
    """The encoder's weights with the shardings of `Run.place_encoder`."""
    params = run.encoder.params
    if run.config.sharding.encoder:
        return abstract_on(split_over_model(run.mesh, params), params)
    return abstract_on(replicated(run.mesh), params)


def compile_step(run: Run, program: str) -> Program:
    """Compiles one of `PROGRAMS`, as `training.stepping` does."""
    batch, side = run.config.train.batch_size, run.config.data.image_side
    split, state = batched(run.mesh), run.abstract_state
    if program == "features":
        arguments = (abstract_on(split, run.stored_features(batch)),)
    else:
        images = jax.ShapeDtypeStruct((batch, side, side, 3), np.uint8, sharding=split)
        arguments = (abstract_encoder_params(run), images)
    shardings = shardings_of(state)

    def step_of(steps: Steps) -> Callable:
        return steps.update if program == "features" else steps.train_step

    jitted = jax.jit(
        step_of(run.steps),
        out_shardings=(shardings, replicated(run.mesh)),
        donate_argnums=0,
    )
    compiled = jitted.lower(state, *arguments).compile()
    memory = compiled.memory_analysis()
    return Program(
        collectives(compiled.as_text()),
        flops(step_of(run.steps.counted), state, *arguments),
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
    )


@dataclasses.dataclass
class Row:
    """What all collectives of one kind and purpose move together."""

    operations: int = 0
    num_bytes: float = 0.0
    sent_bytes: float = 0.0
    largest: Array | None = None
    in_open_loop: bool = False


def by_purpose(found: Iterable[Collective], run: Run) -> dict[tuple[str, str], Row]:
    """Sums over collectives by (purpose, kind), the most bytes first."""
    weights = weight_shapes(run)
    rows: dict[tuple[str, str], Row] = collections.defaultdict(Row)
    for collective in found:
        names = joined_names(collective.name, len(collective.arrays))
        parts = collections.defaultdict(list)
        for array, name in zip(collective.arrays, names, strict=True):
            parts[purpose(collective.kind, array, name, weights)].append(array)
        for what, arrays in parts.items():
            row = rows[what, collective.kind]
            part = dataclasses.replace(collective, arrays=tuple(arrays))
            row.operations += part.times
            row.num_bytes += part.num_bytes
            row.sent_bytes += part.sent_bytes
            candidates = [*arrays, *([row.largest] if row.largest else [])]
            row.largest = max(candidates, key=lambda array: array.num_bytes)
            row.in_open_loop |= part.in_open_loop
    return dict(sorted(rows.items(), key=lambda item: -item[1].sent_bytes))


def purpose(kind: str, array: Array, name: str, weights: set[tuple[int, ...]]) -> str:
    """What an array of a collective is, by where it was made and by its shape."""
    if "quantile" in name:
        return "hard mining"
    if math.prod(array.shape) <= FEWEST:
        return "scalars"
    # The gradient of a learnt gate is summed as that of its gain, no weight's shape.
    if _bare(array.shape) in weights or ("/split/" in name and kind == "all-reduce"):
        return "weights" if kind == "all-gather" else "gradients"
    return "activations"


def joined_names(name: str, count: int) -> list[str]:
    """The names of the operations that the compiler joined into one, one an array.

    It writes them as "a/(b:c)" for "a/b" and "a/c".
    """
    prefix, found, rest = name.partition("/(")
    names = [f"{prefix}/{part}" for part in rest.split(":")] if found else [name]
    return names if len(names) == count else [name] * count


def weight_shapes(run: Run) -> set[tuple[int, ...]]:
    """Shapes of weights, whole and of one device, without regard to the order of axes.

    And of the rows of depthwise kernels, whose gradients are summed one by one.
    """
    weights = jax.tree.leaves((run.abstract_state.params, abstract_encoder_params(run)))
    return {
        _bare(shape)
        for leaf in weights
        for shape in (
            leaf.shape,
            leaf.sharding.shard_shape(leaf.shape),
            *([leaf.shape[1:]] if len(leaf.shape) == 3 else []),
        )
    }


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(size for size in shape if size > 1))


def bytes_per_device(tree: Any) -> int:
    """Of a pytree of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
