"""A trained model for new images: `harmoniad_jax.load("runs/a").predict(images)`."""

from pathlib import Path

import numpy as np

from harmoniad_jax.data.batches import stacked
from harmoniad_jax.inference import new_thresholds
from harmoniad_jax.inference.image_model import ImageModel, Rates
from harmoniad_jax.inference.predictor import Predictor, batch_sizes
from harmoniad_jax.inference.restore import open_for_new_images
from harmoniad_jax.run.normality import GoodImages
from harmoniad_jax.run.run import Run

# A batch of another size is another program, which may add in another order: in float32 on
# CPUs scores differ by this share of the largest.
ROUNDING = 1e-5


class TrainedModel(ImageModel):
    """The latest checkpoint of a run, ready for new images, on every device."""

    def __init__(
        self,
        workdir: str | Path,
        *,
        encoder: str | None = None,
        white_level: float | None = None,
    ):
        """Restores a run.

        Args:
          workdir: folder of a training run that was finished.
          encoder: where the encoder is, if not where it was in training.
          white_level: what is white in images deeper than 8 bits, if the run did not
            measure it or these images are of another camera.

        Raises:
          UserError: no checkpoint, training is not finished, or another encoder.
        """
        folder = Path(workdir).expanduser()
        trained = open_for_new_images(folder, encoder, white_level)
        run = trained.run
        self.config, self._predictor = run.config, Predictor(trained)
        settings = run.config.calibration
        sizes = _batch_sizes(run)
        super().__init__(
            run.preprocessor,
            trained.calibration,
            Rates(settings.false_positive_rate, settings.pixel_false_positive_rate),
            batch_sizes=sizes,
            threads=run.config.data.threads,
            score_tolerance=_tolerance(trained.calibration) if len(sizes) > 1 else 0.0,
        )
        self.use(new_thresholds.latest(folder, self.own_calibration))

    def _predict_batch(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The batch is filled up to the next of the sizes: each is a program."""
        count = len(images)
        size = next(size for size in self.batch_sizes if size >= count)
        filled = stacked(images, np.zeros_like(images[0]), size)
        found = self._predictor.predict_batch(filled)
        return found.anomaly_maps[:count], found.image_scores[:count]


def _batch_sizes(run: Run) -> tuple[int, ...]:
    """Sizes of batches that new images are judged in, ascending.

    Several only where they score alike. In bfloat16 scores differ by up to 1e-2 between
    sizes, so that good images that set the threshold would be above it. Float32 on other
    devices, which may multiply in fewer bits (TF32), was not measured. There every image is
    judged in a batch of the size that calibration had.
    """
    largest = run.evaluation_batch_size
    platforms = {device.platform for device in run.mesh.devices.flat}
    if run.config.encoder.dtype == "float32" and platforms == {"cpu"}:
        return batch_sizes(largest, run.mesh.size)
    return (largest,)


def _tolerance(calibration: GoodImages | None) -> float:
    """By how much a score may differ from the one that was measured in calibration."""
    if calibration is None:
        return 0.0
    return ROUNDING * max(1.0, calibration.overall.scores[-1])
