"""From a trained state and records to anomaly maps, scores and what good images score."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from harmoniad_jax.data.records import Record
from harmoniad_jax.devices.mesh import replicate, replicated, shard_batch
from harmoniad_jax.features.encode import Inputs, image_inputs
from harmoniad_jax.model.scoring import Prediction
from harmoniad_jax.run.calibration import Calibration
from harmoniad_jax.run.run import Run
from harmoniad_jax.steps.state import TrainState
from harmoniad_jax.steps.step import measure_statistics


class Predictor:
    """Anomaly maps and image scores of images, compiled once."""

    def __init__(
        self,
        run: Run,
        state: TrainState,
        encoder_params: Any,
        inputs: Inputs | None = None,
    ):
        """Compiles nothing yet.

        Args:
          run: the parts of the run.
          state: the trained state.
          encoder_params: the encoder's weights on all devices.
          inputs: what records are predicted from; None: their images.
        """
        self._run, self._inputs = run, inputs or image_inputs(run)
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
        for batch, valid in self._inputs(records, title):
            prediction = jax.device_get(self._step(*self._arguments, batch))
            count = int(valid.sum())
            rows = jax.tree.map(lambda leaf, rows=valid: leaf[rows], prediction)
            yield records[done : done + count], rows
            done += count

    def predict_batch(self, images: np.ndarray) -> Prediction:
        """[B, S, S, 3] uint8 -> their `Prediction` of numpy arrays."""
        images = shard_batch(self._run.mesh, images)
        return jax.device_get(self._step(*self._arguments, images))


def with_statistics(
    run: Run, state: TrainState, encoder_params: Any, inputs: Inputs | None = None
) -> TrainState:
    """The state with statistics of the distances on good images.

    On those held out, if there are any: the network knows those it was trained on. For the
    arguments see `Predictor`.
    """
    inputs = inputs or image_inputs(run)
    records = run.dataset.held_out or run.dataset.train
    count = min(run.config.evaluation.calibration_images, len(records))
    chosen = [records[i] for i in np.linspace(0, len(records) - 1, count).astype(int)]
    step = jax.jit(run.steps.distance_step, out_shardings=replicated(run.mesh))
    batches: list[dict[str, np.ndarray]] = []
    for batch, valid in inputs(chosen, "standardising"):
        maps = jax.device_get(step(state.params, encoder_params, batch))
        batches.append({name: values[valid] for name, values in maps.items()})
    statistics = measure_statistics(batches)
    return state.replace(statistics=replicate(run.mesh, statistics))


def calibrate(
    run: Run, state: TrainState, encoder_params: Any, inputs: Inputs | None = None
) -> Calibration | None:
    """Measures what the held-out images score; None if there are none.

    For the arguments see `Predictor`.
    """
    records = run.dataset.held_out
    if not records:
        return None
    prediction = Predictor(run, state, encoder_params, inputs)(records, "calibrating")
    return Calibration.measure(
        run.config.evaluation,
        [record.category for record in records],
        prediction.anomaly_maps,
        prediction.image_scores,
        run.dataset.categories,
    )
