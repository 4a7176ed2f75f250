"""The steps of a run: where each finds its images, and the compiled function it calls.

Three ways to the same numbers, by what `training.data` found room for: images are
read and encoded in every step; their features are read; or all features are in the
devices' memory and the host sends row numbers alone, for several steps at once.

The images of a step are of one shape, and every shape has a program of its own.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from harmoniad_jax.data.order import training_batches
from harmoniad_jax.data.shapes import Shape
from harmoniad_jax.devices.compilation import compile_ahead, working_bytes
from harmoniad_jax.devices.memory import keep_memory
from harmoniad_jax.devices.mesh import (
    abstract_on,
    batched,
    place,
    replicated,
    shard_batch,
    shardings_of,
)
from harmoniad_jax.features.reading import ImageReader
from harmoniad_jax.model.encoders.encoder import Features
from harmoniad_jax.run.run import Run
from harmoniad_jax.steps.state import TrainState
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
      programs: for each of the data's shapes, the compiled function that `advance` calls;
        its first argument, the state, is used up.
    """

    steps_per_call = 1
    programs: list[jax.stages.Compiled]

    def __init__(self, run: Run, data: TrainingData):
        self.run, self._data = run, data
        self.batches = training_batches(
            data.order,
            data.load,
            batch_size=run.config.train.batch_size,
            threads=run.config.data.threads,
            **self._share(),
        )

    def advance(self, state: TrainState, steps: int) -> tuple[TrainState, Metrics]:
        """Takes steps.

        Args:
          state: before them; it is used up.
          steps: how many, at most `steps_per_call`.

        Returns:
          The state after them, and the metrics of the last one.
        """
        raise NotImplementedError

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

    @property
    def program(self) -> jax.stages.Compiled:
        """The only program, where all images are of one shape."""
        (program,) = self.programs
        return program

    def _compiled(
        self, shape: Shape, function: Callable, shardings: tuple, *arguments: Any
    ) -> jax.stages.Compiled:
        """A step whose state is donated, for images of a shape.

        What follows the state among its arguments has these shardings.
        """
        state = self.run.abstract_state()
        state_sharding = shardings_of(state)
        jitted = jax.jit(
            function,
            in_shardings=(state_sharding, *shardings),
            out_shardings=(state_sharding, replicated(self.run.mesh)),
            donate_argnums=0,
        )
        height, width = shape
        several = f" for {width} x {height} px" if len(self._data.shapes) > 1 else ""
        program = compile_ahead(f"the step{several}", jitted, state, *arguments)
        if jax.default_backend() == "cpu":
            keep_memory(working_bytes(program))
        return program


class ImageStepper(Stepper):
    """Reads the images of each step, and encodes them in it."""

    def __init__(self, run: Run, data: TrainingData, encoder_params: Any):
        super().__init__(run, data)
        self._encoder_params = encoder_params
        split, batch = batched(run.mesh), run.config.train.batch_size
        shardings = (shardings_of(encoder_params), split)
        self.programs = [
            self._compiled(
                shape,
                run.steps.train_step,
                shardings,
                encoder_params,
                jax.ShapeDtypeStruct((batch, *shape, 3), np.uint8, sharding=split),
            )
            for shape in data.shapes
        ]

    def advance(self, state: TrainState, steps: int) -> tuple[TrainState, Metrics]:
        assert steps == 1
        images = next(self.batches)
        program = self.programs[self._data.shapes.index(images.shape[1:3])]
        images = shard_batch(self.run.mesh, images)
        return program(state, self._encoder_params, images)


class FeatureStepper(Stepper):
    """Reads the stored features of each step's images."""

    def __init__(self, run: Run, data: TrainingData):
        super().__init__(run, data)
        split, batch = batched(run.mesh), run.config.train.batch_size
        self._grids = [run.encoder.grid_of(shape) for shape in data.shapes]
        self.programs = []
        for shape in data.shapes:
            shapes = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, run.config.cache.dtype),
                run.encoder.feature_shapes(batch, shape),
            )
            features = abstract_on(split, shapes)
            program = self._compiled(shape, run.steps.update, (split,), features)
            self.programs.append(program)

    def advance(self, state: TrainState, steps: int) -> tuple[TrainState, Metrics]:
        assert steps == 1
        features = Features(**next(self.batches))
        program = self.programs[self._grids.index(features.patches.shape[2:4])]
        return program(state, shard_batch(self.run.mesh, features))


class TableStepper(Stepper):
    """Sends row numbers of features that are in the devices' memory, for several steps."""

    def __init__(self, run: Run, data: TrainingData):
        super().__init__(run, data)
        settings, everywhere = run.config.train, replicated(run.mesh)
        self.steps_per_call = settings.steps_per_call
        self._shape = (settings.steps_per_call, settings.batch_size)
        rows = jax.ShapeDtypeStruct(self._shape, jnp.int32, sharding=everywhere)
        count = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
        take_steps = several_steps(run, self.steps_per_call)
        self.programs = [
            self._compiled(shape, take_steps, 3 * (everywhere,), table, rows, count)
            for shape, table in zip(data.shapes, data.tables, strict=True)
        ]

    def advance(self, state: TrainState, steps: int) -> tuple[TrainState, Metrics]:
        batches = [next(self.batches) for _ in range(steps)]
        metrics: Metrics = {}
        # A call for as many steps as follow each other in one table.
        for table, some in itertools.groupby(batches, lambda batch: int(batch[0, 0])):
            chosen = [batch[:, 1] for batch in some]
            taken = np.zeros(self._shape, np.int32)
            taken[: len(chosen)] = chosen
            rows = place(replicated(self.run.mesh), (taken, np.int32(len(chosen))))
            program = self.programs[table]
            state, metrics = program(state, self._data.tables[table], *rows)
        return state, metrics

    def _share(self) -> dict[str, int]:
        # Row numbers are needed by all processes.
        return {"process_index": 0, "process_count": 1}


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
