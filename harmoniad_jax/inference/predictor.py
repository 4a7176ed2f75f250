"""From an opened run and images to anomaly maps and scores."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from harmoniad_jax.data.records import Record
from harmoniad_jax.devices.mesh import replicated, shard_batch
from harmoniad_jax.features.encode import Inputs
from harmoniad_jax.inference.trained import Trained
from harmoniad_jax.model.scoring import Prediction


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
        self._step = jax.jit(run.steps.predict_step, out_shardings=replicated(run.mesh))

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
            prediction = jax.device_get(self._step(*self._arguments, batch))
            count = int(valid.sum())
            rows = jax.tree.map(lambda leaf, rows=valid: leaf[rows], prediction)
            yield records[done : done + count], rows
            done += count

    def predict_batch(self, images: np.ndarray) -> Prediction:
        """[B, H, W, 3] uint8 -> their `Prediction` of numpy arrays."""
        images = shard_batch(self.trained.run.mesh, images)
        return jax.device_get(self._step(*self._arguments, images))
