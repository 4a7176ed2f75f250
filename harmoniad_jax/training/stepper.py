"""The steps of a run: where each finds its images, and the compiled function it calls.

Three ways to the same numbers, by what `training.data` found room for: images are
read and encoded in every step; their features are read; or all features are in the
devices' memory and the host sends row numbers alone, for several steps at once.

A step has rows of every shape of images, and is one program. Rows of each shape are filled
up to what all devices can share; the loss takes those of the batch alone.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from harmoniad_jax.data.order import training_batches
from harmoniad_jax.devices.compilation import compile_ahead, working_bytes
from harmoniad_jax.devices.memory import keep_memory
from harmoniad_jax.devices.mesh import (
    MODEL_AXIS,
    abstract_on,
    batched,
    place,
    replicate,
    replicated,
    shard_batch,
    shardings_of,
)
from harmoniad_jax.features.reading import ImageReader
from harmoniad_jax.model.encoders.encoder import Features
from harmoniad_jax.run.run import Run
from harmoniad_jax.steps.state import TrainState
from harmoniad_jax.steps.step import Steps
from harmoniad_jax.training.data import TrainingData, training_data

Metrics = dict[str, jax.Array]


def make_stepper(
    run: Run, encoder_params: Any, reader: ImageReader | None = None
) -> "Stepper":
    """The steps of a run from its beginning, compiled; fills the feature cache first.

    Args:
      run: the parts of the run.
      encoder_params: the encoder's weights on all devices.
      reader: that has read images of the run already.
    """
    data = training_data(run, encoder_params, reader)
    if data.tables is not None:
        return TableStepper(run, data)
    if data.is_encoded:
        return FeatureStepper(run, data)
    return ImageStepper(run, data, encoder_params)


class Stepper:
    """Takes the steps of a run, one in each call.

    Attributes:
      batches: the iterator over this process's share of the data; its state continues it.
      steps_per_call: steps that can be dispatched at once.
      program: the compiled function that `advance` calls; its first argument, the state, is
        used up.
    """

    steps_per_call = 1
    program: jax.stages.Compiled

    def __init__(self, run: Run, data: TrainingData):
        self.run, self._data = run, data
        self.batches = training_batches(
            data.order,
            data.load,
            rows=tuple(data.batch.rows.values()),
            filled=tuple(data.batch.filled.values()),
            threads=run.config.data.threads,
            **self._share(),
        )

    def advance(self, state: TrainState, steps: int) -> tuple[TrainState, Metrics]:
        """Takes steps.

        Args:
          state: before them, from `begin` or `advance`; it is used up.
          steps: how many, at most `steps_per_call`.

        Returns:
          The state after them, and the metrics of the last one.
        """
        raise NotImplementedError

    def begin(self, state: TrainState) -> TrainState:
        """A state in the form that `advance` takes; the one given is used up."""
        return state

    def end(self, state: TrainState) -> TrainState:
        """A state of `advance` in its usual form, as it is saved; it is not used up."""
        return state

    def images_of(self, step: int) -> list[str]:
        """The images of a step, counted from 1."""
        size = self.run.config.train.batch_size
        first = (step - 1) * size
        return [str(self._data.order[first + row].image) for row in range(size)]

    def _share(self) -> dict[str, int]:
        """Which rows of each batch this process reads."""
        return {
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
        }

    def _compiled(
        self, function: Callable, shardings: tuple, state: TrainState, *arguments: Any
    ) -> jax.stages.Compiled:
        """A step whose state is donated.

        Args:
          function: (state, *arguments, shares=, rows=) -> (state, metrics).
          shardings: of the arguments that follow the state.
          state: its shapes and shardings.
          *arguments: their shapes.
        """
        state_sharding = shardings_of(state)
        batch = self._data.batch
        rows = tuple(batch.rows.values())
        jitted = jax.jit(
            functools.partial(function, shares=batch.shares, rows=rows),
            in_shardings=(state_sharding, *shardings),
            out_shardings=(state_sharding, replicated(self.run.mesh)),
            donate_argnums=0,
        )
        program = compile_ahead("the step", jitted, state, *arguments)
        if jax.default_backend() == "cpu":
            keep_memory(working_bytes(program))
        return program


class ImageStepper(Stepper):
    """Reads the images of each step, and encodes them in it."""

    def __init__(self, run: Run, data: TrainingData, encoder_params: Any):
        super().__init__(run, data)
        self._encoder_params = encoder_params
        split = batched(run.mesh)
        images = [
            jax.ShapeDtypeStruct((rows, *shape, 3), np.uint8, sharding=split)
            for shape, rows in data.batch.filled.items()
        ]
        shardings = (shardings_of(encoder_params), *[split] * len(images))
        self.program = self._compiled(
            run.steps.train_step, shardings, run.abstract_state, encoder_params, *images
        )

    def advance(self, state: TrainState, steps: int) -> tuple[TrainState, Metrics]:
        assert steps == 1
        images = shard_batch(self.run.mesh, next(self.batches))
        return self.program(state, self._encoder_params, *images)


class FeatureStepper(Stepper):
    """Reads the stored features of each step's images."""

    def __init__(self, run: Run, data: TrainingData):
        super().__init__(run, data)
        split = batched(run.mesh)
        features = [
            run.stored_features(rows, shape) for shape, rows in data.batch.filled.items()
        ]
        self.program = self._compiled(
            run.steps.update,
            (split,) * len(features),
            run.abstract_state,
            *abstract_on(split, features),
        )

    def advance(self, state: TrainState, steps: int) -> tuple[TrainState, Metrics]:
        assert steps == 1
        features = [Features(**arrays) for arrays in next(self.batches)]
        return self.program(state, *shard_batch(self.run.mesh, features))


class TableStepper(Stepper):
    """Sends row numbers of features that are in the devices' memory, for several steps."""

    def __init__(self, run: Run, data: TrainingData):
        super().__init__(run, data)
        everywhere = replicated(run.mesh)
        self.steps_per_call = run.config.train.steps_per_call
        self._shapes = [(self.steps_per_call, rows) for rows in data.batch.filled.values()]
        rows = tuple(
            jax.ShapeDtypeStruct(shape, jnp.int32, sharding=everywhere)
            for shape in self._shapes
        )
        count = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
        self._steps = carried_steps(run)
        self.program = self._compiled(
            several_steps(run, self.steps_per_call, self._steps),
            3 * (everywhere,),
            carried_shapes(run, self._steps),
            *(data.tables, rows, count),
        )

    def begin(self, state: TrainState) -> TrainState:
        if self._steps.stacks is None:
            return state
        stacked = self._steps.stacks.stack_state(jax.device_get(state))
        return replicate(self.run.mesh, stacked)

    def end(self, state: TrainState) -> TrainState:
        if self._steps.stacks is None:
            return state
        whole = self._steps.stacks.unstack_state(jax.device_get(state))
        return place(shardings_of(self.run.abstract_state), whole)

    def advance(self, state: TrainState, steps: int) -> tuple[TrainState, Metrics]:
        taken = tuple(np.zeros(shape, np.int32) for shape in self._shapes)
        for step in range(steps):
            for rows, chosen in zip(taken, next(self.batches), strict=True):
                rows[step] = chosen
        placed = place(replicated(self.run.mesh), (taken, np.int32(steps)))
        return self.program(state, self._data.tables, *placed)

    def _share(self) -> dict[str, int]:
        # Row numbers are needed by all processes.
        return {"process_index": 0, "process_count": 1}


def carried_steps(run: Run) -> Steps:
    """The steps whose states are carried from one to the next on the devices.

    On CPU an operation costs nothing to begin. Weights that are split over devices are
    gathered one by one, where they are needed. So neither has stacks.
    """
    fits = jax.default_backend() != "cpu" and run.mesh.shape[MODEL_AXIS] == 1
    return run.stacked_steps if fits else run.steps


def carried_shapes(run: Run, steps: Steps) -> TrainState:
    """Shapes, dtypes and shardings of the states of these steps."""
    if steps.stacks is None:
        return run.abstract_state
    shapes = jax.eval_shape(steps.stacks.stack_state, run.abstract_state)
    return abstract_on(replicated(run.mesh), shapes)


def several_steps(run: Run, most: int, own: Steps | None = None) -> Callable:
    """A function that takes up to `most` steps on features in device memory.

    The number of steps is an argument and not compiled in: an interrupted run makes its
    calls at other steps than an undisturbed one, and must still run the same program.

    Args:
      run: the parts of the run.
      most: steps.
      own: how each is taken; None: as the run does.

    Returns:
      (state, tables, chosen, count, shares=, rows=) -> (state, metrics of the last step):
      for each shape of images, `tables` holds `Features` of N images and `chosen`
      [most, B_s] int32 are rows of it; `count` is an int32 number of steps; `shares` and
      `rows`: see `Steps.train_step`.
    """
    split, own = batched(run.mesh), own or run.steps

    def steps(
        state: TrainState,
        tables: Sequence[Features],
        chosen: Sequence[jax.Array],
        count: jax.Array,
        **counting: Any,
    ):
        def step(state: TrainState, index: jax.Array | int):
            features = [
                jax.tree.map(lambda leaf, rows=rows: leaf[rows[index]], table)
                for table, rows in zip(tables, chosen, strict=True)
            ]
            features = jax.lax.with_sharding_constraint(features, split)
            return own.update(state, *features, **counting)

        _, shapes = jax.eval_shape(step, state, 0)
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.fori_loop(
            0, count, lambda index, carry: step(carry[0], index), (state, nothing)
        )

    return steps
