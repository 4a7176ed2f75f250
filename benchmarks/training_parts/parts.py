"""The parts of training and evaluation: the program's own functions, on its own data."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from harmoniad_jax.data.order import PREFETCHED_BATCHES
from harmoniad_jax.devices.compilation import compile_ahead, flops, memory_bytes
from harmoniad_jax.devices.mesh import replicated, shard_batch
from harmoniad_jax.model.encoders.encoder import Features
from harmoniad_jax.run.run import Run
from harmoniad_jax.training.stepper import Stepper, make_stepper
from training_parts.timing import Part, always_ready, nothing_read_ahead

READ_IMAGES, READ_FEATURES = "read and decode images", "read cached features"
ENCODER, HEAD, STEP = "encoder", "head", "whole step, encoder and head"
EVALUATION = "evaluation"
FROM_IMAGES, FROM_FEATURES = "train from images", "train from cached features"
FROM_DEVICE = "train from device memory"
IN_ORDER = (
    *(READ_IMAGES, READ_FEATURES, ENCODER, HEAD, STEP, EVALUATION),
    *(FROM_IMAGES, FROM_FEATURES, FROM_DEVICE),
)

# Operations by dtype; None where XLA does not count them.
Flops = Mapping[str, float] | None

# Batches read come in bursts, one of each thread: a few bursts make a rate.
FEWEST_READS = 8
# Steps from what is read: in the first one the next batch is on its way.
FEWEST_STEPS = 2


class _Training:
    """The state that all parts train in turn, so that there is one in memory."""

    def __init__(self, run: Run):
        self.state = run.new_state()

    def call(self, program: jax.stages.Compiled, *arguments: Any) -> Any:
        """Calls a compiled step; returns its metrics."""
        self.state, metrics = program(self.state, *arguments)
        return metrics

    def advance(self, stepper: Stepper) -> Any:
        """Takes as many steps as one call can; returns the metrics of the last."""
        self.state, metrics = stepper.advance(self.state, stepper.steps_per_call)
        return metrics

    @contextlib.contextmanager
    def carried(self, stepper: Stepper) -> Iterator[Callable[[], Any]]:
        """Gives `advance`, while the state has the form that a stepper carries."""
        self.state = stepper.begin(self.state)
        yield lambda: self.advance(stepper)
        self.state = stepper.end(self.state)


def training_parts(runs: Sequence[Run]) -> list[Part]:
    """All parts; compiles them, and fills the feature cache.

    Args:
      runs: the same run with one kind of attention each.
    """
    run = runs[0]
    params, training = run.place_encoder(), _Training(run)
    # The same for all: the arithmetic does not depend on how attention is computed.
    counts = _count_flops(run)
    parts: list[Part] = []
    for index, other in enumerate(runs):
        stepper = make_stepper(_with_cache(other, enabled=False), params)
        if index == 0:
            parts.append(_reading(READ_IMAGES, run, stepper))
        parts += _image_parts(other, stepper, params, training, counts)
    parts += _feature_parts(run, params, training, counts[HEAD])
    return sorted(parts, key=lambda part: IN_ORDER.index(part.name))


def _with_cache(run: Run, **changes: Any) -> Run:
    cache = dataclasses.replace(run.config.cache, **changes)
    return dataclasses.replace(run, config=dataclasses.replace(run.config, cache=cache))


def _image_parts(
    run: Run,
    stepper: Stepper,
    encoder_params: Any,
    training: _Training,
    counts: Mapping[str, Flops],
) -> list[Part]:
    """What the encoder takes part in."""
    batch = run.config.train.batch_size
    (images,) = shard_batch(run.mesh, next(stepper.batches))  # of one shape
    encode = compile_ahead(
        "the encoder", jax.jit(run.encoder.encode), encoder_params, images
    )
    # As `training.prediction` compiles it.
    predict = compile_ahead(
        "the evaluation",
        jax.jit(run.steps.predict_step, out_shardings=replicated(run.mesh)),
        *(training.state.params, training.state.statistics, encoder_params, images),
    )

    def evaluate() -> Any:
        state = training.state
        return predict(state.params, state.statistics, encoder_params, images)

    part = functools.partial(Part, images=batch, attention=run.config.encoder.attention)
    return [
        part(
            name=ENCODER,
            ready=always_ready(lambda: encode(encoder_params, images)),
            flops=counts[ENCODER],
            memory_bytes=memory_bytes(encode),
        ),
        part(
            name=STEP,
            ready=always_ready(
                lambda: training.call(stepper.program, encoder_params, images)
            ),
            flops=counts[STEP],
            memory_bytes=memory_bytes(stepper.program),
        ),
        part(
            name=EVALUATION,
            ready=always_ready(evaluate),
            flops=counts[EVALUATION],
            memory_bytes=memory_bytes(predict),
        ),
        part(
            name=FROM_IMAGES,
            ready=_stepping(run, stepper, training),
            flops=counts[STEP],
            memory_bytes=memory_bytes(stepper.program),
            fewest_calls=FEWEST_STEPS,
        ),
    ]


def _feature_parts(
    run: Run, encoder_params: Any, training: _Training, head: Flops
) -> list[Part]:
    """What begins with features: in the cache, or in the devices' memory."""
    reading, in_memory = (
        make_stepper(_with_cache(run, enabled=True, on_device=on_device), encoder_params)
        for on_device in ("never", "always")
    )
    batch, steps = run.config.train.batch_size, in_memory.steps_per_call
    (arrays,) = shard_batch(run.mesh, next(reading.batches))  # of one shape
    features = Features(**arrays)
    several = head and {dtype: steps * count for dtype, count in head.items()}
    return [
        _reading(READ_FEATURES, run, reading),
        Part(
            name=HEAD,
            ready=always_ready(lambda: training.call(reading.program, features)),
            images=batch,
            flops=head,
            memory_bytes=memory_bytes(reading.program),
        ),
        Part(
            name=FROM_FEATURES,
            ready=_stepping(run, reading, training),
            images=batch,
            flops=head,
            memory_bytes=memory_bytes(reading.program),
            fewest_calls=FEWEST_STEPS,
        ),
        Part(
            name=FROM_DEVICE,
            ready=lambda: training.carried(in_memory),
            images=steps * batch,
            flops=several,
            memory_bytes=memory_bytes(in_memory.program),
        ),
    ]


def _reading(name: str, run: Run, stepper: Stepper) -> Part:
    """Reading batches as training reads them, and nothing else."""

    def read() -> None:
        next(stepper.batches)

    return Part(
        name=name,
        ready=lambda: nothing_read_ahead(
            stepper.batches, _most_ahead(run), read, warm=False
        ),
        images=run.config.train.batch_size,
        fewest_calls=FEWEST_READS,
    )


def _stepping(run: Run, stepper: Stepper, training: _Training) -> Callable:
    """Steps from end to end: batches are read while the devices work."""
    return lambda: nothing_read_ahead(
        stepper.batches, _most_ahead(run), lambda: training.advance(stepper), warm=True
    )


def _most_ahead(run: Run) -> int:
    """Batches that may have been read ahead: those that wait, and one for each thread."""
    return PREFETCHED_BATCHES + run.config.data.threads


def _count_flops(run: Run) -> dict[str, Flops]:
    """Operations of a batch in each part that computes."""
    steps = run.steps.counted
    encoder = steps.encoder
    batch, side = run.config.train.batch_size, encoder.image_side
    images = jax.ShapeDtypeStruct((batch, side, side, 3), np.uint8)
    state = jax.eval_shape(run.initial_state)
    frozen = flops(encoder.encode, encoder.params, images)
    trained = flops(steps.update, state, encoder.feature_shapes(batch))
    predicted = flops(
        *(steps.predict_step, state.params, state.statistics, encoder.params, images)
    )
    names = (ENCODER, HEAD, STEP, EVALUATION)
    if frozen is None or trained is None or predicted is None:
        return dict.fromkeys(names)
    dtype = run.config.encoder.dtype

    def with_encoder(others: float) -> dict[str, float]:
        """The encoder's, and those of float32 after it."""
        if dtype == "float32":
            return {dtype: frozen + others}
        return {dtype: frozen, "float32": others}

    return {
        ENCODER: {dtype: frozen},
        HEAD: {"float32": trained},
        STEP: with_encoder(trained),
        EVALUATION: with_encoder(predicted - frozen),
    }
