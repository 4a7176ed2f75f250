"""Opening a run: its latest checkpoint, its encoder and its images, as one object."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harmoniad_jax.checkpoints.store import Checkpoints
from harmoniad_jax.config import Config, with_settings
from harmoniad_jax.data.levels import Levels
from harmoniad_jax.data.records import Dataset
from harmoniad_jax.devices.processes import available_cores
from harmoniad_jax.errors import UserError
from harmoniad_jax.features.encode import evaluation_inputs, image_inputs
from harmoniad_jax.inference.trained import Trained, measured_on_good_images
from harmoniad_jax.phases import phase
from harmoniad_jax.run.calibration import Calibration
from harmoniad_jax.run.identity import Identity, check_encoder, check_identity
from harmoniad_jax.run.run import Run, prepare_run
from harmoniad_jax.run.stored import with_last_settings

logger = logging.getLogger(__name__)

# The sources whose images are files in a folder; all others are prepared data sets.
FOLDERS = {"folder", "demo"}


def open_trained(workdir: Path, changes: Mapping[str, Any] | None = None) -> Trained:
    """Opens a run at its latest checkpoint, with its images and its encoder.

    A run that is not finished is measured on its good images now. Products that it was
    never trained on are left out, and named; so are those whose images are missing.

    Args:
      workdir: folder of the run.
      changes: dotted name to value of settings that are others now, such as
        "evaluation.top_share"; none that touches learning or features.

    Raises:
      UserError: no checkpoint, or images or encoder that are not the run's.
    """
    with Checkpoints(workdir, read_only=True) as checkpoints:
        stored = checkpoints.read_identity()
        config = with_settings(with_last_settings(stored.config, workdir), changes or {})
        _check_places(config, changes or {})
        run = prepare_run(config, preprocessor=stored.preprocessor)
        given = Identity.of(run, stored.train_fingerprint)
        check_identity(stored, given, workdir)
        checkpoint = checkpoints.restore(run.abstract_state, to_train=False)
        run, missing = _of_trained_products(run, stored, checkpoint.calibration, workdir)
        # A finished run has seen its training images: they may change or go.
        if not checkpoint.finished:
            check_identity(stored, Identity.of(run, run.dataset.train_fingerprint), workdir)
    changed = stored.train_fingerprint != run.dataset.train_fingerprint
    calibration = checkpoint.calibration
    if changed and calibration and not calibration.fits(run.config.evaluation):
        # Which images were held out is known of the whole set alone.
        raise UserError(
            "the thresholds were measured with other settings of config.evaluation, and "
            f"the training images of {workdir} changed: they cannot be measured again. "
            "Evaluate with the settings of training, or bring the images back."
        )
    encoder_params = run.place_encoder()
    inputs = evaluation_inputs(run, encoder_params)
    trained = Trained(run, checkpoint.state, encoder_params, inputs, calibration, missing)
    if not checkpoint.finished:
        logger.info(
            "step %d of %d: training is not finished, calibrating now",
            int(checkpoint.state.step),
            run.config.train.num_steps,
        )
        trained = measured_on_good_images(trained)
    return trained


def _check_places(config: Config, changes: Mapping[str, Any]) -> None:
    """Refuses to be told where images are of a kind that the run does not have.

    Raises:
      UserError: naming the flag that helps.
    """
    sources = config.data.sources
    prepared = set(sources) - FOLDERS
    if "data.root" in changes and not FOLDERS & set(sources):
        raise UserError(
            f"--root={changes['data.root']} says where a folder of images is, but the run "
            f"was trained on {', '.join(sources)}; give --data_dir=DIR, where prepared "
            "data sets are."
        )
    if "data.data_dir" in changes and not prepared:
        raise UserError(
            f"--data_dir={changes['data.data_dir']} says where prepared data sets are, but "
            "the run was trained on a folder of images; give --root=FOLDER."
        )


def _of_trained_products(
    run: Run, stored: Identity, calibration: Calibration | None, workdir: Path
) -> tuple[Run, tuple[str, ...]]:
    """The run without products that it was never trained on; and the missing ones.

    Raises:
      UserError: no product is left.
    """
    data = run.dataset
    if stored.train_fingerprint == data.train_fingerprint:
        return run, ()
    known = stored.categories
    if known is None and calibration is not None:
        known = sorted([*calibration.per_category, *calibration.others])
    if known is None:
        logger.warning(
            "the images are not those of training, and this run of an earlier version did "
            "not keep the names of its products: what it was never trained on is evaluated "
            "as well"
        )
        return run, ()
    new = sorted(set(data.categories) - set(known))
    missing = tuple(sorted(set(known) - set(data.categories)))
    there = f"{workdir} was trained on {', '.join(known)}"
    if set(new) == set(data.categories):
        raise UserError(
            f"the images are of {', '.join(new)}, but {there}. Give images of these, or "
            "train on the new ones in another --workdir."
        )
    if new:
        logger.warning("never trained, so left out: %s. %s", ", ".join(new), there)
    if missing:
        logger.warning("trained, but no images there: %s", ", ".join(missing))
    parts = {
        name: [one for one in getattr(data, name) if one.category in known]
        for name in ("train", "held_out", "test")
    }
    return dataclasses.replace(run, dataset=dataclasses.replace(data, **parts)), missing


def open_for_new_images(
    workdir: Path, encoder: str | None = None, white_level: float | None = None
) -> Trained:
    """Opens a finished run for images that it has never seen; its own need not be there.

    Args:
      workdir: folder of the run.
      encoder: where the encoder is, if not where it was in training.
      white_level: what is white in images deeper than 8 bits, if not what the run measured.

    Raises:
      UserError: no checkpoint, training is not finished, or another encoder.
    """
    with Checkpoints(workdir, read_only=True) as checkpoints:
        stored = checkpoints.read_identity()
        _check_finished(checkpoints, workdir)
        config = with_settings(
            with_last_settings(stored.config, workdir),
            {
                "data.threads": available_cores(),
                "encoder.name": encoder or stored.config.encoder.name,
                # Scores are compared with those of the calibration: the same settings.
                **_score_settings(checkpoints),
            },
        )
        no_images = Dataset(train=[], test=[])
        with phase("loading the encoder"):
            run = prepare_run(config, no_images, preprocessor=stored.preprocessor)
            check_encoder(stored, Identity.of(run, stored.train_fingerprint), workdir)
        with phase("restoring"):
            checkpoint = checkpoints.restore(run.abstract_state, to_train=False)
        if white_level is not None:
            levels = Levels(fixed=white_level)
            preprocessor = dataclasses.replace(run.preprocessor, levels=levels)
            run = dataclasses.replace(run, preprocessor=preprocessor)
        # It may have turned out that the last checkpoint is damaged.
        _check_finished(checkpoints, workdir)
    return Trained(
        *(run, checkpoint.state, run.place_encoder(), image_inputs(run)),
        checkpoint.calibration,
    )


def _score_settings(checkpoints: Checkpoints) -> dict[str, Any]:
    calibration = checkpoints.read_calibration()
    settings = calibration.settings if calibration else {}
    return {f"evaluation.{name}": value for name, value in settings.items()}


def _check_finished(checkpoints: Checkpoints, workdir: Path) -> None:
    if not checkpoints.finished:
        num_steps = checkpoints.read_identity().config.train.num_steps
        raise UserError(
            f"{workdir} is at step {checkpoints.latest_step} of {num_steps}: finish "
            "its training first, with the command that began it."
        )
