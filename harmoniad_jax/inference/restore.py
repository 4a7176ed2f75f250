"""Opening a run: its latest checkpoint, its encoder and its images, ready for use."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from harmoniad_jax.checkpoints.store import Checkpoints
from harmoniad_jax.config import with_settings
from harmoniad_jax.errors import UserError
from harmoniad_jax.features.encode import evaluation_inputs
from harmoniad_jax.inference.predictor import calibrate, with_statistics
from harmoniad_jax.run.calibration import Calibration
from harmoniad_jax.run.identity import Identity, check_identity
from harmoniad_jax.run.run import Run, prepare_run
from harmoniad_jax.run.stored import with_last_settings
from harmoniad_jax.steps.state import TrainState

logger = logging.getLogger(__name__)


class Restored(NamedTuple):
    """A run at its latest checkpoint, ready for `evaluate`.

    Attributes:
      run: its parts.
      state: with statistics of the distances.
      encoder_params: on all devices.
      calibration: None where no image was held out.
    """

    run: Run
    state: TrainState
    encoder_params: Any
    calibration: Calibration | None


def restore_run(workdir: Path, changes: Mapping[str, Any] | None = None) -> Restored:
    """Reads the latest checkpoint of `workdir`, and the images and encoder of its run.

    Args:
      workdir: folder of the run.
      changes: dotted name to value of settings that are others now, such as
        "evaluation.top_share"; none that touches training.

    Raises:
      UserError: no checkpoint, or images or encoder that are not the run's.
    """
    with Checkpoints(workdir, read_only=True) as checkpoints:
        stored = checkpoints.read_identity()
        config = with_last_settings(stored.config, workdir)
        run = prepare_run(with_settings(config, changes or {}))
        given = Identity.of(run.config, run.encoder, stored.train_fingerprint)
        check_identity(stored, given, workdir)
        state, _, calibration, finished = checkpoints.restore(run.abstract_state())
        # A finished run has seen its training images: they may change or go.
        if not finished:
            fingerprint = run.dataset.train_fingerprint
            given = dataclasses.replace(given, train_fingerprint=fingerprint)
            check_identity(stored, given, workdir)
    changed = stored.train_fingerprint != run.dataset.train_fingerprint
    if changed and calibration and not calibration.fits(run.config.evaluation):
        # Which images were held out is known of the whole set alone.
        raise UserError(
            "the thresholds were measured with other settings of config.evaluation, and "
            f"the training images of {workdir} changed: they cannot be measured again. "
            "Evaluate with the settings of training, or bring the images back."
        )
    encoder_params = run.place_encoder()
    if not finished:
        logger.info(
            "step %d of %d: training is not finished, calibrating now",
            int(state.step),
            run.config.train.num_steps,
        )
        inputs = evaluation_inputs(run, encoder_params)
        state = with_statistics(run, state, encoder_params, inputs)
        calibration = calibrate(run, state, encoder_params, inputs)
    return Restored(run, state, encoder_params, calibration)
