"""From a trained state and records to anomaly maps, scores and what good images score."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from harmoniad_jax.data.pipeline import evaluation_batches
from harmoniad_jax.data.records import Record
from harmoniad_jax.model.scoring import Prediction
from harmoniad_jax.training.calibration import Calibration
from harmoniad_jax.training.processes import is_main
from harmoniad_jax.training.setup import Run
from harmoniad_jax.training.sharding import replicate, replicated, shard_batch
from harmoniad_jax.training.state import TrainState
from harmoniad_jax.training.step import measure_statistics

logger = logging.getLogger(__name__)


class Predictor:
    """Anomaly maps and image scores of images, compiled once."""

    def __init__(self, run: Run, state: TrainState, encoder_params: Any):
        self._run = run
        self._arguments = (state.params, state.statistics, encoder_params)
        self._step = jax.jit(run.steps.predict_step, out_shardings=replicated(run.mesh))

    def __call__(self, records: Sequence[Record], title: str) -> Prediction:
        """N records -> their `Prediction` of numpy arrays, in their order."""
        batches = [prediction for _, prediction in self.batches(records, title)]
        return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)

    def batches(
        self, records: Sequence[Record], title: str
    ) -> Iterator[tuple[Sequence[Record], Prediction]]:
        """Yields some of the records at a time, in order, with their `Prediction`."""
        done = 0
        for images, valid in image_batches(self._run, records, title, self._run.mesh):
            prediction = jax.device_get(self._step(*self._arguments, images))
            count = int(valid.sum())
            rows = jax.tree.map(lambda leaf, rows=valid: leaf[rows], prediction)
            yield records[done : done + count], rows
            done += count

    def predict_batch(self, images: np.ndarray) -> Prediction:
        """[B, S, S, 3] uint8 -> their `Prediction` of numpy arrays."""
        images = shard_batch(self._run.mesh, images)
        return jax.device_get(self._step(*self._arguments, images))


def with_statistics(run: Run, state: TrainState, encoder_params: Any) -> TrainState:
    """The state with statistics of the distances on good images.

    On those held out, if there are any: the network knows those it was trained on.
    """
    records = run.dataset.held_out or run.dataset.train
    count = min(run.config.evaluation.calibration_images, len(records))
    chosen = [records[i] for i in np.linspace(0, len(records) - 1, count).astype(int)]
    step = jax.jit(run.steps.distance_step, out_shardings=replicated(run.mesh))
    batches: list[dict[str, np.ndarray]] = []
    for images, valid in image_batches(run, chosen, "standardising", run.mesh):
        maps = jax.device_get(step(state.params, encoder_params, images))
        batches.append({name: values[valid] for name, values in maps.items()})
    statistics = measure_statistics(batches)
    return state.replace(statistics=replicate(run.mesh, statistics))


def calibrate(run: Run, state: TrainState, encoder_params: Any) -> Calibration | None:
    """Measures what the held-out images score; None if there are none."""
    records = run.dataset.held_out
    if not records:
        return None
    prediction = Predictor(run, state, encoder_params)(records, "calibrating")
    return Calibration.measure(
        run.config.evaluation,
        [record.category for record in records],
        prediction.anomaly_maps,
        prediction.image_scores,
        run.dataset.categories,
    )


def image_batches(
    run: Run, records: Sequence[Record], title: str, mesh: Mesh
) -> Iterator[tuple[jax.Array, np.ndarray]]:
    """Batches of images on the devices of a mesh, and which rows of each are real.

    Where the mesh is that of several processes, each reads its share of every batch.
    """
    logger.info("%s: %d images", title, len(records))
    shared = mesh.is_multi_process
    batches = evaluation_batches(
        records,
        image_side=run.config.data.image_side,
        batch_size=run.evaluation_batch_size,
        threads=run.config.data.threads,
        process_index=jax.process_index() if shared else 0,
        process_count=jax.process_count() if shared else 1,
    )
    with tqdm(
        desc=title,
        total=len(records),
        unit="image",
        disable=None if is_main() else True,
    ) as progress:
        for images, valid in batches:
            yield shard_batch(mesh, images), valid
            progress.update(int(valid.sum()))
