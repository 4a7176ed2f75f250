"""The steps of a run: where each finds its images, and the compiled function it calls.

Three ways to the same numbers, by what `training.features` found room for: images are
read and encoded in every step; their features are read; or all features are in the
devices' memory and the host sends row numbers alone, for several steps at once.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from harmoniad_jax.data.pipeline import training_batches
from harmoniad_jax.devices.compilation import compile_ahead
from harmoniad_jax.devices.mesh import (
    abstract_on,
    batched,
    place,
    replicated,
    shard_batch,
    shardings_of,
)
from harmoniad_jax.model.encoders.encoder import Features
from harmoniad_jax.run.run import Run
from harmoniad_jax.steps.state import TrainState
from harmoniad_jax.training.data import training_data

Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Stepper:
    """Takes the steps of a run.

    Attributes:
      batches: the iterator over this process's share of the data; its state continues it.
      advance: takes a state and a number of steps, at most `steps_per_call`; takes their
        batches and returns the state after them and the metrics of the last one. The
        state that was given is used up.
      program: the compiled function that `advance` calls; its first argument, the state,
        is used up.
      steps_per_call: steps that can be dispatched at once.
      order: the endless order of the run's images.
      batch_size: B.
    """

    batches: grain.DatasetIterator
    advance: Callable[[TrainState, int], tuple[TrainState, Metrics]]
    program: jax.stages.Compiled
    steps_per_call: int
    order: grain.MapDataset
    batch_size: int

    def images_of(self, step: int) -> list[str]:
        """The images of a step, counted from 1."""
        first = (step - 1) * self.batch_size
        return [str(self.order[first + row].image) for row in range(self.batch_size)]


def make_stepper(run: Run, encoder_params: Any) -> Stepper:
    """The steps of a run from its beginning, compiled; fills the feature cache first.

    Args:
      run: the parts of the run.
      encoder_params: the encoder's weights on all devices.
    """
    data = training_data(run, encoder_params)
    settings, mesh = run.config.train, run.mesh
    everywhere, split = replicated(mesh), batched(mesh)
    on_device = data.table is not None
    batches = training_batches(
        data.order,
        data.load,
        batch_size=settings.batch_size,
        threads=run.config.data.threads,
        # Row numbers are needed by all.
        process_index=0 if on_device else jax.process_index(),
        process_count=1 if on_device else jax.process_count(),
    )
    state = run.abstract_state()
    state_sharding = shardings_of(state)

    def compiled(function: Callable, shardings: tuple, *arguments: Any):
        """A step whose state is donated; what follows it has these shardings."""
        jitted = jax.jit(
            function,
            in_shardings=(state_sharding, *shardings),
            out_shardings=(state_sharding, everywhere),
            donate_argnums=0,
        )
        return compile_ahead("the step", jitted, state, *arguments)

    if on_device:
        most = settings.steps_per_call
        take_steps = several_steps(run, most)
        shape = (most, settings.batch_size)
        rows = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=everywhere)
        count = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
        call = compiled(take_steps, 3 * (everywhere,), data.table, rows, count)

        def advance(state: TrainState, steps: int) -> tuple[TrainState, Metrics]:
            taken = np.zeros(shape, np.int32)
            for step in range(steps):
                taken[step] = next(batches)
            return call(state, data.table, *place(everywhere, (taken, np.int32(steps))))

        return Stepper(batches, advance, call, most, data.order, settings.batch_size)

    if data.is_encoded:
        shapes = run.encoder.feature_shapes(settings.batch_size)
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, run.config.cache.dtype), shapes
        )
        call = compiled(run.steps.update, (split,), abstract_on(split, shapes))

        def advance(state: TrainState, steps: int) -> tuple[TrainState, Metrics]:
            assert steps == 1
            return call(state, Features(**shard_batch(mesh, next(batches))))

    else:
        side = run.config.data.image_side
        images = jax.ShapeDtypeStruct(
            (settings.batch_size, side, side, 3), np.uint8, sharding=split
        )
        shardings = (shardings_of(encoder_params), split)
        call = compiled(run.steps.train_step, shardings, encoder_params, images)

        def advance(state: TrainState, steps: int) -> tuple[TrainState, Metrics]:
            assert steps == 1
            return call(state, encoder_params, shard_batch(mesh, next(batches)))

    return Stepper(batches, advance, call, 1, data.order, settings.batch_size)


def several_steps(run: Run, most: int) -> Callable:
    """A function that takes up to `most` steps on features in device memory.

    The number of steps is an argument and not compiled in: an interrupted run makes its
    calls at other steps than an undisturbed one, and must still run the same program.

    Returns:
      (state, table, rows, count) -> (state, metrics of the last step): `table` holds
      `Features` of N images, `rows` [most, B] int32 into it, `count` int32 steps.
    """
    split = batched(run.mesh)

    def step(state: TrainState, table: Features, rows: jax.Array):
        features = jax.tree.map(lambda leaf: leaf[rows], table)
        return run.steps.update(state, jax.lax.with_sharding_constraint(features, split))

    def steps(state: TrainState, table: Features, rows: jax.Array, count: jax.Array):
        _, shapes = jax.eval_shape(step, state, table, rows[0])
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.fori_loop(
            0,
            count,
            lambda index, carry: step(carry[0], table, rows[index]),
            (state, nothing),
        )

    return steps
