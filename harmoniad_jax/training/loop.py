"""Training from the first step, or the last checkpoint, to the printed table."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from harmoniad_jax.config import Config
from harmoniad_jax.data.pipeline import training_batches
from harmoniad_jax.data.sources import check_images
from harmoniad_jax.model.backbone import Features
from harmoniad_jax.report.html import ReportWriter
from harmoniad_jax.training.checkpoints import (
    Checkpoints,
    Identity,
    check_identity,
    has_checkpoints,
)
from harmoniad_jax.training.evaluation import CONFIG_FILE, REPORT_FOLDER, evaluate
from harmoniad_jax.training.features import training_data
from harmoniad_jax.training.optimizer import learning_rate_schedule
from harmoniad_jax.training.prediction import calibrate, with_statistics
from harmoniad_jax.training.setup import Run, prepare_run
from harmoniad_jax.training.sharding import batched, replicate, replicated, shard_batch
from harmoniad_jax.training.state import TrainState

logger = logging.getLogger(__name__)

# One step of training: state and batch in, state and metrics out.
Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Trains to `config.train.num_steps`, continuing a run that is in `workdir`.

    Leaves in `workdir`: `config.json`, `checkpoints/`, `metrics.jsonl`, `tensorboard/`
    and `results.json`.

    Returns:
      The results, see `training.evaluation.evaluate`.

    Raises:
      UserError: bad settings or data, or `workdir` holds another run.
    """
    run = prepare_run(config)
    identity = Identity.of(run.config, run.encoder, run.dataset.train_fingerprint)
    if run.config.evaluation.report:
        # Better now than after training: a folder of that name that holds other things.
        ReportWriter(workdir / REPORT_FOLDER)
    resumes = has_checkpoints(workdir)
    if not resumes and run.config.data.check_images:
        logger.info("checking that every image can be read")
        records = [*run.dataset.train, *run.dataset.held_out, *run.dataset.test]
        # Prepared data sets were checked when they were prepared.
        check_images([record for record in records if record.sha256 is None])
    with Checkpoints(workdir, keep=run.config.train.keep_checkpoints) as checkpoints:
        if resumes:
            check_identity(checkpoints.read_identity(), identity, workdir)
        _write_config(run.config, workdir)

        encoder_params = replicate(run.mesh, run.encoder.params)
        describe_run(run, encoder_params)
        if resumes:
            abstract = jax.eval_shape(run.initial_state)
            state, iterator_state = checkpoints.restore(abstract, run.mesh)
            calibration = checkpoints.read_calibration()
            logger.info("continuing after step %d", int(state.step))
        else:
            state = jax.jit(run.initial_state, out_shardings=replicated(run.mesh))()
            iterator_state = None

        if int(state.step) < run.config.train.num_steps:
            batches, step = training_steps(run, encoder_params)
            if iterator_state is not None:
                batches.set_state(iterator_state)
            state = _train(run, state, step, batches, checkpoints, identity, workdir)
            state = with_statistics(run, state, encoder_params)
            calibration = calibrate(run, state, encoder_params)
            checkpoints.save(state, batches.get_state(), identity, calibration)
    return evaluate(run, state, encoder_params, calibration, workdir)


def describe_run(run: Run, encoder_params: Any) -> None:
    """Says what is about to be trained, on what, and what a step costs."""
    description, data = run.encoder.description, run.dataset
    untrained = description.folder is None
    state = jax.eval_shape(run.initial_state)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    features = run.encoder.feature_shapes(run.config.train.batch_size)
    images = jax.ShapeDtypeStruct(
        (run.config.train.batch_size, *2 * [run.encoder.image_side], 3), np.uint8
    )
    update = jax.jit(run.steps.update).lower(state, features)
    encode = jax.jit(run.encoder.encode).lower(encoder_params, images)
    lines = (
        f"data     {len(data.train)} training, {len(data.held_out)} held-out and "
        f"{len(data.test)} test images of "
        f"{len(data.categories)} categories: {', '.join(data.categories)}",
        f"encoder  {description.name} ({description.hf_config.model_type}, "
        f"{run.config.encoder.dtype}), {run.encoder.image_side} px, blocks "
        + " | ".join(" ".join(map(str, group)) for group in run.encoder.groups),
        "         UNTRAINED: random weights, for trying the program out only"
        if untrained
        else f"         weights {run.encoder.weight_hash[:12]}, frozen",
        f"model    {run.config.model.variant}, {parameters:,} trainable parameters",
        f"step     {_gigaflops(update)} trained and {_gigaflops(encode)} frozen for "
        f"{run.config.train.batch_size} images",
        f"devices  {jax.device_count()} {jax.devices()[0].device_kind}",
    )
    if jax.process_index() == 0:
        for line in lines:
            logger.info(line)


def _gigaflops(lowered: jax.stages.Lowered) -> str:
    """Floating-point operations of a function, by XLA's own count."""
    cost = lowered.cost_analysis() or {}
    return f"{cost['flops'] / 1e9:,.1f} GFLOP" if "flops" in cost else "unknown FLOP"


def training_steps(run: Run, encoder_params: Any) -> tuple[grain.DatasetIterator, Step]:
    """The batches of a run, from its beginning, and the compiled step that takes one."""
    data = training_data(run, encoder_params)
    batches = training_batches(
        data.order,
        data.load,
        batch_size=run.config.train.batch_size,
        threads=run.config.data.threads,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    everywhere, split = replicated(run.mesh), batched(run.mesh)
    if data.is_encoded:
        update = jax.jit(
            run.steps.update,
            in_shardings=(everywhere, split),
            out_shardings=everywhere,
            donate_argnums=0,
        )
        return batches, lambda state, batch: update(state, Features(**batch))
    train_step = jax.jit(
        run.steps.train_step,
        in_shardings=(everywhere, everywhere, split),
        out_shardings=everywhere,
        donate_argnums=0,
    )
    return batches, lambda state, batch: train_step(state, encoder_params, batch)


def _train(
    run: Run,
    state: TrainState,
    step_function: Step,
    batches: grain.DatasetIterator,
    checkpoints: Checkpoints,
    identity: Identity,
    workdir: Path,
) -> TrainState:
    """The loop: from `state` to the last step."""
    settings = run.config.train
    first, last = int(state.step), settings.num_steps
    with MetricsWriter(workdir, first, last, run.config) as writer:
        for step in range(first + 1, last + 1):
            batch = shard_batch(run.mesh, next(batches))
            state, metrics = step_function(state, batch)
            writer.step(step, metrics)
            if step < last and step % settings.checkpoint_every_steps == 0:
                checkpoints.save(state, batches.get_state(), identity)
    return state


class MetricsWriter:
    """Progress bar, `metrics.jsonl` and TensorBoard; a context manager.

    Metrics are fetched from the device one step after they are asked for, so that the
    device never waits for the host.
    """

    def __init__(self, workdir: Path, first: int, last: int, config: Config):
        """Opens the files, dropping what an interrupted run wrote after step `first`."""
        self._every, self._last = config.train.log_every_steps, last
        self._schedule = learning_rate_schedule(config.optimizer, last)
        self._waiting: tuple[int, Mapping[str, jax.Array]] | None = None
        self._since, self._since_step = time.monotonic(), first
        self._writes = jax.process_index() == 0
        self._progress = tqdm(
            desc="training",
            total=last,
            initial=first,
            unit="step",
            disable=None if self._writes else True,
        )
        if self._writes:
            path = workdir / METRICS_FILE
            _drop_lines_after(path, first)
            self._file = path.open("a")
            self._tensorboard = SummaryWriter(
                str(workdir / TENSORBOARD_FOLDER), purge_step=first + 1
            )

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_) -> None:
        self._flush()
        self._progress.close()
        if self._writes:
            self._file.close()
            self._tensorboard.close()

    def step(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of a step that was dispatched, and writes those before it."""
        self._flush()
        if step % self._every == 0 or step == self._last:
            self._waiting = (step, metrics)
        self._progress.update()

    def _flush(self) -> None:
        if self._waiting is None:
            return
        (step, metrics), self._waiting = self._waiting, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        now = time.monotonic()
        values["learning_rate"] = float(self._schedule(step - 1))
        values["steps_per_second"] = (step - self._since_step) / (now - self._since)
        self._since, self._since_step = now, step
        if not self._writes:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(f"train/{name}", value, step)
        self._progress.set_postfix_str(f"loss {values['loss']:.4f}", refresh=False)
        if self._progress.disable:
            logger.info(
                "step %d of %d: loss %.4f, %.2f steps/s",
                step,
                self._last,
                values["loss"],
                values["steps_per_second"],
            )


def _drop_lines_after(path: Path, step: int) -> None:
    """Removes what a killed run wrote beyond its last checkpoint, and broken lines."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:
            continue
    path.write_text("".join(kept))


def _write_config(config: Config, workdir: Path) -> None:
    if jax.process_index() == 0:
        text = json.dumps(config.to_dict(), indent=2)
        (workdir / CONFIG_FILE).write_text(text + "\n")
