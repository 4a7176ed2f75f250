"""The measurements of the campaign. Each gives figures that can be written as JSON."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from training_parts.matmul import best_rates, matmul_parts
from training_parts.timing import Part, always_ready, time_parts

from campaign.keep import Deadline, Kept
from campaign.profiled import busiest
from campaign.runs import (
    drawn_encoder,
    drawn_state,
    head_run,
    peak_bytes,
    random_features,
    random_images,
    run_from_cache,
)
from campaign.sizes import Architecture, Sizes
from harmoniad_jax.devices.compilation import compile_ahead, flops, memory_bytes
from harmoniad_jax.devices.mesh import replicated, shardings_of
from harmoniad_jax.run.run import Run
from harmoniad_jax.steps.state import TrainState
from harmoniad_jax.training.stepper import (
    carried_shapes,
    carried_steps,
    make_stepper,
    several_steps,
)

MATMUL, REHEARSAL = "matmul", "rehearsal"
DTYPES = ("float32", "bfloat16")
VARIANTS = ("harmoniad", "plain")
ATTENTIONS = ("library", "fused")
SPLITS = {"fft": False, "matrix": True}


class Context(NamedTuple):
    """What measurements are given.

    out: folder of the results. scratch: folder for what need not be kept. compiling:
    nothing is measured; what a measurement compiles is left in the compilation cache.
    """

    sizes: Sizes
    out: Path
    scratch: Path
    kept: Kept
    deadline: Deadline
    compiling: bool = False


class Measurement(NamedTuple):
    """A measurement: those of a group are made in one process, in their order.

    seconds: that it needs at least at full size; it is not begun with less.
    is_compiled_ahead: whether it heeds `Context.compiling`.
    """

    name: str
    group: str
    work: Callable[[Context], dict[str, Any]]
    seconds: float = 15.0
    is_compiled_ahead: bool = True


def measurements(sizes: Sizes) -> list[Measurement]:
    """All of them, the most telling first: small batches, and the largest encoder."""
    smallest, *others = sorted(sizes.batches)
    largest_first = sizes.architectures[::-1]
    train = functools.partial(rehearsal, largest_first[0])
    found = [Measurement(MATMUL, MATMUL, matmul, 10, is_compiled_ahead=False)]
    for one in largest_first:
        found += [*_of_head(one, [smallest]), *_of_encoder(one, [smallest])]
        if one is largest_first[0]:
            found.append(
                Measurement(REHEARSAL, REHEARSAL, train, 60, is_compiled_ahead=False)
            )
    for one in largest_first:
        found += _of_parts(one, smallest)
    for one in largest_first:
        found += [*_of_encoder(one, others), *_of_head(one, others)]
    return found


def _group(kind: str, one: Architecture, batches: Sequence[int]) -> str:
    return f"{kind} {one.name}, batches of {', '.join(map(str, batches))}"


def _of_encoder(one: Architecture, batches: Sequence[int]) -> Iterator[Measurement]:
    for batch in batches:
        for attention in ATTENTIONS:
            for kind, work in (("encoder", encoder), ("evaluation", evaluation)):
                yield Measurement(
                    f"{kind} {one.name}, {attention} attention, {batch} images",
                    _group("encoder", one, batches),
                    functools.partial(work, one, attention, batch),
                )


def _of_head(one: Architecture, batches: Sequence[int]) -> Iterator[Measurement]:
    for batch in batches:
        for variant in VARIANTS:
            for dtype in DTYPES:
                yield Measurement(
                    f"head {one.name}, {variant}, {dtype}, {batch} images",
                    _group("head", one, batches),
                    functools.partial(head, one, variant, dtype, batch),
                )


def _of_parts(one: Architecture, batch: int) -> Iterator[Measurement]:
    """What head and encoder spend their time on: of programs that others compile."""
    group = f"parts of {one.name}"
    for dtype in DTYPES:
        name = f"profile of the head {one.name}, {dtype}, {batch} images"
        work = functools.partial(profile_head, one, dtype, batch)
        yield Measurement(name, group, work, is_compiled_ahead=False)
    for attention in ATTENTIONS:
        name = f"profile of the encoder {one.name}, {attention} attention, {batch} images"
        work = functools.partial(profile_encoder, one, attention, batch)
        yield Measurement(name, group, work, is_compiled_ahead=False)
    for kind, as_matrix in SPLITS.items():
        name = f"split {one.name}, {kind}, {batch} images"
        yield Measurement(name, group, functools.partial(split, one, as_matrix, batch))


def matmul(context: Context) -> dict[str, Any]:
    """FLOP/s of matrix multiplies in both dtypes, at JAX's default precision (TF32)."""
    mesh = head_run(context.sizes.architectures[0]).mesh
    parts = matmul_parts(mesh, DTYPES, context.sizes.matmul_sides)
    table = time_parts(parts, context.sizes.rounds, context.sizes.seconds)
    rates = best_rates(parts, [statistics.median(column) for column in table])
    return {"flops_per_second": rates}


def encoder(
    one: Architecture, attention: str, batch: int, context: Context
) -> dict[str, Any]:
    """Images to features, in bfloat16."""
    run = _encoding_run(one, attention)
    images, params = random_images(one, batch), drawn_encoder(run)
    count = flops(run.steps.counted.encoder.encode, run.encoder.params, images)
    return _timed(
        context, jax.jit(run.encoder.encode), (params, images), batch, "bfloat16", count
    )


def evaluation(
    one: Architecture, attention: str, batch: int, context: Context
) -> dict[str, Any]:
    """Images to anomaly maps: the encoder in bfloat16, and all that follows."""
    run = _encoding_run(one, attention)
    images, params = random_images(one, batch), drawn_encoder(run)
    state = drawn_state(run.abstract_state)
    step = jax.jit(run.steps.predict_step, out_shardings=replicated(run.mesh))
    arguments = (state.params, state.statistics, params, images)
    return _timed(context, step, arguments, batch, None, None)


@functools.cache
def _encoding_run(one: Architecture, attention: str) -> Run:
    return head_run(one, encoder__attention=attention, encoder__dtype="bfloat16")


def head(
    one: Architecture, variant: str, dtype: str, batch: int, context: Context
) -> dict[str, Any]:
    """Steps of the trained network on features in device memory, several in a call."""
    run = head_run(one, model__variant=variant, train__dtype=dtype)
    steps = context.sizes.steps_per_call
    compiled, seconds, state, arguments = _compiled_head(run, steps, batch)
    if context.compiling:
        return {"compile_seconds": seconds}
    shapes = run.abstract_state, run.encoder.feature_shapes(batch)
    count = flops(run.steps.counted.update, *shapes)

    def work() -> Any:
        nonlocal state
        state, metrics = compiled(state, *arguments)
        return metrics

    found = _figures(context, work, compiled, seconds, batch * steps)
    per_call = None if count is None else steps * count
    return {**found, "steps": steps, "flops": per_call, "dtype": dtype}


def _compiled_head(
    run: Run, steps: int, batch: int
) -> tuple[jax.stages.Compiled, float, TrainState, tuple]:
    """Several steps as one program, the seconds it took to compile, and its arguments."""
    own = carried_steps(run)
    shapes = carried_shapes(run, own)
    state = drawn_state(shapes)
    program = jax.jit(
        several_steps(run, steps, own),
        out_shardings=(shardings_of(shapes), replicated(run.mesh)),
        donate_argnums=0,
    )
    rows = np.arange(steps * batch, dtype=np.int32).reshape(steps, batch) % batch
    # Of one shape of images.
    arguments = ((random_features(run, batch),), (jnp.asarray(rows),), jnp.int32(steps))
    start = time.perf_counter()
    compiled = compile_ahead("the steps", program, state, *arguments)
    return compiled, time.perf_counter() - start, state, arguments


def split(
    one: Architecture, as_matrix: bool, batch: int, context: Context
) -> dict[str, Any]:
    """Features into bands, by Fourier transforms or as one matrix product."""
    run = head_run(one)
    module = run.steps.model.split.clone(as_matrix=as_matrix)
    patches = random_features(run, batch).patches.astype(jnp.float32)
    params = module.init(jax.random.key(0), patches)

    def bands(patches: jax.Array) -> Any:
        return module.apply(params, patches)

    return _timed(context, jax.jit(bands), (patches,), batch, None, None)


def profile_head(
    one: Architecture, dtype: str, batch: int, context: Context
) -> dict[str, Any]:
    """What a call of the head spends its time on."""
    run, steps = head_run(one, train__dtype=dtype), context.sizes.steps_per_call
    compiled, _, state, arguments = _compiled_head(run, steps, batch)
    kept = [state]

    def work() -> Any:
        kept[0], metrics = compiled(kept[0], *arguments)
        return metrics

    return _profiled(context, f"head {one.name} {dtype}", compiled, work, steps)


def profile_encoder(
    one: Architecture, attention: str, batch: int, context: Context
) -> dict[str, Any]:
    """What encoding a batch spends its time on."""
    run = _encoding_run(one, attention)
    arguments = (drawn_encoder(run), random_images(one, batch))
    compiled = jax.jit(run.encoder.encode).lower(*arguments).compile()
    name = f"encoder {one.name} {attention}"
    return _profiled(context, name, compiled, lambda: compiled(*arguments), 1)


def _profiled(
    context: Context, name: str, compiled: Any, work: Callable, steps: int
) -> dict[str, Any]:
    """Keeps the trace, and the program that XLA made, in the folder of the results."""
    folder = context.out / "profile" / name.replace("/", "-").replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "program.txt").write_text(compiled.as_text())
    jax.block_until_ready(work())
    with jax.profiler.trace(str(folder)):
        jax.block_until_ready(work())
    return {"steps": steps, "busiest": busiest(folder, steps)}


def rehearsal(one: Architecture, context: Context) -> dict[str, Any]:
    """Training of MVTec AD's size from cached features: load, compile, and all steps.

    It is noted how far it came, so that a later call takes the steps that are left.
    """
    sizes = context.sizes
    before = context.kept.get(REHEARSAL) or {"steps": 0, "seconds": 0.0, "pieces": 0}
    start = time.perf_counter()
    run = run_from_cache(
        dataclasses.replace(one, depth=one.groups),  # of features that are stored already
        sizes.images,
        context.scratch / "features",
        train__batch_size=sizes.rehearsal_batch,
        train__num_steps=sizes.steps,
        train__steps_per_call=sizes.steps_per_call,
        train__dtype="bfloat16",
        encoder__dtype="bfloat16",
    )
    written = time.perf_counter()
    stepper = make_stepper(run, run.place_encoder())
    state = stepper.begin(drawn_state(run.abstract_state))
    jax.block_until_ready(state)
    ready = time.perf_counter()
    result = {
        "images": sizes.images,
        "batch": sizes.rehearsal_batch,
        "all_steps": sizes.steps,
        "written_seconds": written - start,
        # Features from disk to the device, and compilation.
        "ready_seconds": ready - written,
        **before,
        "pieces": before["pieces"] + 1,
        "unfinished": before["steps"] < sizes.steps,
    }
    while result["steps"] < sizes.steps and context.deadline.left > 0:
        begun, done = time.perf_counter(), 0
        piece = min(sizes.piece, sizes.steps - result["steps"])
        while done < piece:
            steps = min(stepper.steps_per_call, piece - done)
            state, _ = stepper.advance(state, steps)
            done += steps
        jax.block_until_ready(state)
        result["steps"] += piece
        result["seconds"] += time.perf_counter() - begun
        result["peak_bytes"] = peak_bytes()
        result["unfinished"] = result["steps"] < sizes.steps
        context.kept.put(REHEARSAL, result)
    return result


def _timed(
    context: Context,
    function: Any,
    arguments: tuple,
    images: int,
    dtype: str | None,
    count: float | None,
) -> dict[str, Any]:
    start = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    seconds = time.perf_counter() - start
    if context.compiling:
        return {"compile_seconds": seconds}
    found = _figures(context, lambda: compiled(*arguments), compiled, seconds, images)
    return {**found, "flops": count, "dtype": dtype}


def _figures(
    context: Context, work: Callable, compiled: Any, seconds: float, images: int
) -> dict[str, Any]:
    part = Part("", always_ready(work), images)
    (rounds,) = time_parts([part], context.sizes.rounds, context.sizes.seconds)
    return {
        "seconds": statistics.median(rounds),
        "rounds": rounds,
        "images": images,
        "compile_seconds": seconds,
        "memory_bytes": memory_bytes(compiled),
    }
