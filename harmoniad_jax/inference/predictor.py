"""From an opened run and images to anomaly maps and scores."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from harmoniad_jax.data.records import Record
from harmoniad_jax.devices.mesh import replicated, shard_batch
from harmoniad_jax.features.encode import Inputs
from harmoniad_jax.inference.trained import Trained
from harmoniad_jax.model.encoders.encoder import Features
from harmoniad_jax.model.scoring import Prediction
from harmoniad_jax.phases import phase
from harmoniad_jax.run.run import Run


class Predictor:
    """Anomaly maps and image scores of images, compiled once for each shape.

    Attributes:
      trained: the opened run.
    """

    def __init__(self, trained: Trained, inputs: Inputs | None = None):
        """Compiles nothing yet.

        Args:
          trained: an opened run.
          inputs: what records are predicted from; None: what the run reads of them.
        """
        self.trained, self._inputs = trained, inputs or trained.inputs
        run, state = trained.run, trained.state
        self._arguments = (state.params, state.statistics, trained.encoder_params)
        self._step = predict_program(run)
        self._programs: dict[Any, jax.stages.Compiled] = {}

    def __call__(self, records: Sequence[Record], title: str) -> Prediction:
        """N records -> their `Prediction` of numpy arrays, in their order.

        Their inputs are of one shape, as those of a category are.
        """
        batches = [prediction for _, prediction in self.batches(records, title)]
        return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)

    def batches(
        self, records: Sequence[Record], title: str
    ) -> Iterator[tuple[Sequence[Record], Prediction]]:
        """Yields some of the records at a time, in order, with their `Prediction`.

        Their inputs are of one shape, as those of a category are.
        """
        done = 0
        for batch, valid in self._inputs(records, title):
            prediction = self._predict(batch)
            count = int(valid.sum())
            rows = jax.tree.map(lambda leaf, rows=valid: leaf[rows], prediction)
            yield records[done : done + count], rows
            done += count

    def predict_batch(self, images: np.ndarray) -> Prediction:
        """[B, H, W, 3] uint8 -> their `Prediction` of numpy arrays."""
        images = shard_batch(self.trained.run.mesh, images)
        return self._predict(images)

    def _predict(self, batch: jax.Array | Features) -> Prediction:
        """A batch on the devices -> its `Prediction` of numpy arrays."""
        key = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(batch))
        if key not in self._programs:
            with phase("compiling"):
                lowered = self._step.lower(*self._arguments, batch)
                self._programs[key] = lowered.compile()
        return jax.device_get(self._programs[key](*self._arguments, batch))


def predict_program(run: Run) -> Any:
    """Jitted: parameters, statistics, encoder's weights and a batch -> `Prediction`."""
    return jax.jit(run.steps.predict_step, out_shardings=replicated(run.mesh))


def batch_sizes(largest: int, devices: int) -> tuple[int, ...]:
    """Sizes of batches that new images are judged in, ascending: each twice the last.

    Args:
      largest: the last of them, a multiple of `devices`.
      devices: that a batch is split over; every size is a multiple of it.
    """
    sizes, size = [], devices
    while size < largest:
        sizes.append(size)
        size *= 2
    return (*sizes, largest)
