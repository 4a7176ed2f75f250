"""Training from the first step, or the last checkpoint, to the printed table."""

import contextlib
import functools
import logging
import signal
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np

from harmoniad_jax.checkpoints.folders import has_checkpoints
from harmoniad_jax.checkpoints.store import Checkpoints
from harmoniad_jax.config import Config
from harmoniad_jax.data.folder import masks_of
from harmoniad_jax.devices.compilation import gigaflops, in_background
from harmoniad_jax.devices.processes import Agreement, is_main
from harmoniad_jax.errors import UserError
from harmoniad_jax.evaluation.evaluate import REPORT_FOLDER, evaluate
from harmoniad_jax.features.encode import evaluation_inputs, image_reader
from harmoniad_jax.features.reading import ImageReader
from harmoniad_jax.inference.compile_early import compile_evaluation
from harmoniad_jax.inference.trained import Trained, measured_on_good_images
from harmoniad_jax.report.html.writer import ReportWriter
from harmoniad_jax.run.identity import Identity, as_begun, check_identity
from harmoniad_jax.run.run import Run, prepare_run
from harmoniad_jax.run.stored import write_config
from harmoniad_jax.signals import Interrupted, deferred
from harmoniad_jax.steps.state import TrainState
from harmoniad_jax.steps.step import FINITE
from harmoniad_jax.training.data import Batch, batch_of
from harmoniad_jax.training.progress import Fetched, MetricsWriter
from harmoniad_jax.training.stepper import Stepper, make_stepper
from harmoniad_jax.words import in_words

logger = logging.getLogger(__name__)

OTHER_BATCHES = (
    "the run was begun by another version, which made up batches of several shapes in "
    "another way: it goes on with other batches, and learns what neither version alone "
    "would. To compare runs, train anew in another --workdir."
)


def train_and_evaluate(
    config: Config, workdir: Path, given: Collection[str] = ()
) -> dict[str, Any]:
    """Trains to `config.train.num_steps`, continuing a run that is in `workdir`.

    Leaves in `workdir`: `config.json`, `checkpoints/`, `metrics.jsonl`, `tensorboard/`
    and `results.json`.

    Args:
      config: settings of the run.
      workdir: its folder.
      given: dotted paths of settings that were asked for by name. A run that was scored as
        earlier versions did goes on so, unless it is asked for another way.

    Returns:
      The results, see `training.evaluation.evaluate`.

    Raises:
      UserError: bad settings or data, `workdir` holds another run, or the loss stays
        without a finite value.
      Interrupted: a signal came; what was trained is saved.
    """
    exact = config.train.check_numerics
    with jax.default_matmul_precision("highest") if exact else contextlib.nullcontext():
        return _train_and_evaluate(config, workdir, given)


def _train_and_evaluate(
    config: Config, workdir: Path, given: Collection[str]
) -> dict[str, Any]:
    resumes = has_checkpoints(workdir)
    preprocessor, step = None, 0
    if resumes:
        stored, step = _stored(workdir)
        preprocessor = stored.preprocessor
        config = as_begun(config, stored, workdir, given)
    run = prepare_run(config, preprocessor=preprocessor, for_training=True)
    identity = Identity.of(run, run.dataset.train_fingerprint)
    settings = run.config.train
    # A trained run needs no batch: its steps may have been made in another way.
    batch = batch_of(run) if step < settings.num_steps else None
    if run.config.evaluation.report:
        # Better now than after training: a folder of that name that holds other things.
        ReportWriter(workdir / REPORT_FOLDER)
    reader = None if resumes else image_reader(run)
    if reader is not None and run.config.data.check_images:
        read_images(run, reader)
    with Checkpoints(
        workdir, keep=settings.keep_checkpoints, keep_every=settings.keep_every_steps
    ) as checkpoints:
        if resumes:
            check_identity(checkpoints.read_identity(), identity, workdir)
        if is_main():
            write_config(run.config, workdir)

        encoder_params = run.place_encoder()
        with in_background() as begin:
            new_state = None if resumes else begin(run.state_program)
            describe_run(run, batch)
            done, iterator_state, calibration, finished = 0, None, None, False
            if resumes:
                state, iterator_state, calibration, finished = checkpoints.restore(
                    run.abstract_state
                )
                done = int(state.step)
                logger.info("continuing after step %d", done)
                if batch is not None and stored.composition != identity.composition:
                    logger.warning(OTHER_BATCHES)
            has_steps_left = done < settings.num_steps
            if has_steps_left:
                evaluation = begin(
                    functools.partial(compile_evaluation, run, encoder_params)
                )
            inputs = evaluation_inputs(run, encoder_params, reader)
            if has_steps_left:
                stepper = make_stepper(run, encoder_params, reader)
                reader = None  # and what it still keeps in memory
            if new_state is not None:
                state = new_state()()
        if has_steps_left:
            if iterator_state is not None:
                stepper.batches.set_state(iterator_state)
            state = _train(run, state, stepper, checkpoints, identity, workdir)
            iterator_state = stepper.batches.get_state()
            evaluation()
        trained = Trained(run, state, encoder_params, inputs, calibration)
        if not finished:
            trained = _finish(trained, iterator_state, checkpoints, identity)
    return evaluate(trained, workdir)


def _stored(workdir: Path) -> tuple[Identity, int]:
    """Of the run to continue: its identity, which holds for all of it, and its step."""
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.read_identity(), checkpoints.latest_step


def read_images(run: Run, reader: ImageReader) -> None:
    """Reads what is to be encoded now, and tries whether all other images can be read."""
    logger.info("checking that every image can be read")
    dataset, cache = run.dataset, run.config.cache
    encoded = [*dataset.train] if cache.enabled else []
    encoded += [*dataset.held_out, *dataset.test] if cache.evaluation else []
    # Prepared data sets were checked when they were prepared.
    unknown = [
        record
        for record in (*dataset.train, *dataset.held_out, *dataset.test)
        if record.sha256 is None
    ]
    known = set(encoded)
    images = [record.image for record in unknown if record not in known]
    reader.read(encoded, images, masks_of(unknown))


def describe_run(run: Run, batch: Batch | None) -> None:
    """Says what is about to be trained, on what, and what a step costs.

    Args:
      run: the parts of the run.
      batch: of every step; None: all steps are taken.
    """
    description, data = run.encoder.description, run.dataset
    untrained = description.folder is None
    state = run.abstract_state
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    mesh = " x ".join(f"{size} {axis}" for axis, size in run.mesh.shape.items() if size > 1)
    lines = (
        f"data     {len(data.train)} training, {len(data.held_out)} held-out and "
        f"{len(data.test)} test images of "
        f"{in_words(len(data.categories), 'category', 'categories')}: "
        f"{', '.join(data.categories)}",
        f"encoder  {description.name} ({description.hf_config.model_type}, "
        f"{run.config.encoder.dtype}), {_sides(run)} px, blocks "
        + " | ".join(" ".join(map(str, group)) for group in run.encoder.groups),
        "         UNTRAINED: random weights, for trying the program out only"
        if untrained
        else f"         weights {run.encoder.weight_hash[:12]}, frozen",
        f"model    {run.config.model.variant}, {parameters:,} trainable parameters",
        *([] if batch is None else [_cost_of_step(run, batch, state)]),
        f"devices  {run.mesh.size} {jax.devices()[0].device_kind}"
        + (f", {mesh}" if mesh else "")
        + (f", {jax.process_count()} processes" if jax.process_count() > 1 else ""),
    )
    for line in lines:
        logger.info(line)


def _cost_of_step(run: Run, batch: Batch, state: TrainState) -> str:
    """The line on it; `state` may be shapes."""
    steps, encoder, filled = run.steps.counted, run.encoder, batch.filled
    features = [encoder.feature_shapes(n, shape) for shape, n in filled.items()]
    images = [jax.ShapeDtypeStruct((n, *shape, 3), np.uint8) for shape, n in filled.items()]
    rows = tuple(batch.rows.values())
    update = functools.partial(steps.update, shares=batch.shares, rows=rows)
    trained = gigaflops(update, state, *features)
    frozen = gigaflops(
        lambda params, *images: [steps.encoder.encode(params, one) for one in images],
        *(encoder.params, *images),
    )
    parts, computed = run.config.train.micro_batches, sum(filled.values())
    return (
        f"step     {trained} trained and {frozen} frozen for {sum(rows)} images"
        + (f", filled up to {computed}" if computed > sum(rows) else "")
        + (f", in {parts} parts" if parts > 1 else "")
    )


def _sides(run: Run) -> str:
    """The sides of the encoder's inputs in pixels, in words."""
    if not run.preprocessor.shapes:
        return str(run.preprocessor.side)
    return ", ".join(f"{width} x {height}" for height, width in run.preprocessor.all_shapes)


def _train(
    run: Run,
    state: TrainState,
    stepper: Stepper,
    checkpoints: Checkpoints,
    identity: Identity,
    workdir: Path,
) -> TrainState:
    """The loop: from `state` to the last step, or to where a signal stops it.

    Raises:
      Interrupted: a signal came; the state after the last whole step is saved.
    """
    settings = run.config.train
    step, last = int(state.step), settings.num_steps
    every = settings.checkpoint_every_steps
    agreement = Agreement(run.mesh)
    state = stepper.begin(state)
    with deferred() as stop, MetricsWriter(workdir, step, last, run.config) as writer:
        stops = agreement(stop.requested)
        while step < last and not stops:
            steps = min(
                stepper.steps_per_call, writer.steps_until_next(step), every - step % every
            )
            state, metrics = stepper.advance(state, steps)
            step += steps
            _check_finite(run, stepper, checkpoints, writer.dispatched(step, metrics))
            if step < last and step % every == 0:
                whole = stepper.end(state)
                checkpoints.save(whole, stepper.batches.get_state(), identity)
            stops = agreement(stop.requested)
        _check_finite(run, stepper, checkpoints, writer.fetch())
        if stops:
            logger.info("stopping after step %d of %d: saving", step, last)
            whole = stepper.end(state)
            _save_and_wait(checkpoints, whole, stepper.batches.get_state(), identity)
            raise Interrupted(stop.number or signal.SIGTERM)
    return stepper.end(state)


def _save_and_wait(
    checkpoints: Checkpoints, state: TrainState, iterator_state: Any, identity: Identity
) -> None:
    """Saves a state that training is to be continued from, unless it is saved already."""
    with deferred():
        if checkpoints.latest_step != int(state.step):
            checkpoints.save(state, iterator_state, identity)
        checkpoints.wait()


def _finish(
    trained: Trained, iterator_state: Any, checkpoints: Checkpoints, identity: Identity
) -> Trained:
    """Measures what good images look like to the trained network, and saves both.

    Raises:
      Interrupted: a signal came. What was trained is saved if this is the only process;
        others may be waiting for the measurement.
    """
    try:
        trained = measured_on_good_images(trained)
    except Interrupted:
        if jax.process_count() == 1:
            _save_and_wait(checkpoints, trained.state, iterator_state, identity)
        raise
    checkpoints.save(
        trained.state, iterator_state, identity, trained.calibration, finished=True
    )
    return trained


def _check_finite(
    run: Run, stepper: Stepper, checkpoints: Checkpoints, fetched: Fetched | None
) -> None:
    """Stops a run whose loss or gradient is not finite any more.

    Raises:
      UserError: too many steps in a row were skipped.
    """
    settings = run.config.train
    if fetched is None or not fetched.values["skipped_in_a_row"]:
        return
    step, skipped = fetched.step, int(fetched.values["skipped_in_a_row"])
    logger.warning(
        "step %d: loss %s, gradient norm %s; %d steps in a row skipped",
        step,
        fetched.values["loss"],
        fetched.values["gradient_norm"],
        skipped,
    )
    if skipped < (1 if settings.check_numerics else settings.max_skipped_steps):
        return
    broken = [
        name.removeprefix(FINITE)
        for name, value in fetched.values.items()
        if name.startswith(FINITE) and not value
    ]
    kept = checkpoints.latest_step
    good = (
        "There is no checkpoint yet. "
        if kept is None
        else f"The last good checkpoint is that of step {kept}. "
    )
    raise UserError(
        f"the loss or its gradient was not finite in {skipped} steps in a row, "
        f"{step - skipped + 1} to {step}; they changed nothing. "
        + (f"Not finite are {', '.join(broken[:5])}. " if broken else "")
        + good
        + f"The images of step {step} are {', '.join(stepper.images_of(step))}. "
        + "Look at them; lower config.optimizer.learning_rate in a new run; or find the "
        "place with config.train.check_numerics=True in a new run."
    )
