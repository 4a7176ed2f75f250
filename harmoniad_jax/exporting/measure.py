"""Thresholds of a file that computes otherwise than the run: in 8 bits, say."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harmoniad_jax.checkpoints.store import Checkpoints
from harmoniad_jax.errors import UserError
from harmoniad_jax.exporting.proof import Runtime, run_in_batches
from harmoniad_jax.inference.restore import open_trained
from harmoniad_jax.inference.trained import Trained
from harmoniad_jax.run.calibration import Calibration, by_category


def own_calibration(
    workdir: Path,
    trained: Trained,
    changes: Mapping[str, Any],
    runtime: Runtime,
    precision: str,
) -> Calibration | None:
    """What the thresholds of a file follow from, if not from what the run measured.

    Args:
      workdir, changes, runtime: see `measured_calibration`.
      trained: the run.
      precision: of the file.

    Raises:
      UserError: see `measured_calibration`.
    """
    in_bfloat16 = trained.run.config.encoder.dtype == "bfloat16"
    if trained.calibration is None or not (in_bfloat16 or precision == "int8"):
        return None
    return measured_calibration(workdir, changes, runtime)


def measured_calibration(
    workdir: Path, changes: Mapping[str, Any], runtime: Runtime
) -> Calibration:
    """What the held-out images of a run score in another runtime, one image at a time.

    Args:
      workdir: folder of the run.
      changes: where its images and its encoder are now, as settings by dotted name.
      runtime: of the file.

    Raises:
      UserError: the images are not at hand, or are not those of training.
    """
    try:
        # The test images are of no interest: nothing is encoded ahead.
        trained = open_trained(workdir, {**changes, "cache.evaluation": False})
    except UserError as error:
        raise UserError(
            "the thresholds of such a file are measured on the run's held-out images, and "
            f"they are not at hand: {error}"
        ) from None
    with Checkpoints(workdir, read_only=True) as checkpoints:
        stored = checkpoints.read_identity()
    run, records = trained.run, trained.run.dataset.held_out
    if stored.train_fingerprint != run.dataset.train_fingerprint or not records:
        raise UserError(
            "the thresholds of such a file are measured on the run's held-out images, but "
            f"the training images of {workdir} changed: bring them back, or export with "
            "--precision=float32."
        )
    images = np.stack([run.load_image(record) for record in records])
    maps, scores = run_in_batches(runtime, images, 1)
    return Calibration.measure(
        run.config.evaluation,
        by_category([record.category for record in records], maps, scores),
        run.dataset.categories,
    )
