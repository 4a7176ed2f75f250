"""Thresholds of a file: the run's latest, or its own where it computes otherwise."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harmoniad_jax.checkpoints.store import Checkpoints
from harmoniad_jax.data.appearance import measure_appearance
from harmoniad_jax.errors import UserError
from harmoniad_jax.exporting.proof import Runtime, run_in_batches
from harmoniad_jax.inference import new_thresholds
from harmoniad_jax.inference.restore import open_trained
from harmoniad_jax.inference.trained import Trained
from harmoniad_jax.run.calibration import Calibration, by_category, rows_by_category
from harmoniad_jax.run.normality import GoodImages


def with_latest_thresholds(trained: Trained, workdir: Path, precision: str) -> Trained:
    """The run with the calibration that its file shall have, and says which it is.

    Args:
      trained: a run, as training left it.
      workdir: its folder, with what `calibrate` stored.
      precision: of the file.

    Raises:
      UserError: what `calibrate` stored is damaged, or of another training or export.
    """
    entry = new_thresholds.latest_entry(workdir, trained.calibration)
    if entry is None:
        return trained
    if _computes_otherwise(trained, precision):
        print(
            f"The thresholds that were set on {entry.time} do not fit scores of this "
            "precision; those of training are measured again. Set new ones with python -m "
            "harmoniad_jax.calibrate FILE."
        )
        return trained
    print(f"With the thresholds of {entry.time}, by {entry.source}.")
    good = entry.good_images
    latest = Calibration(good.settings, good.overall, good.per_category, good.others)
    return dataclasses.replace(trained, calibration=latest)


def say_whose_thresholds(output: Path, calibration: GoodImages | None) -> None:
    """Prints whether what `calibrate` stored beside a file holds for the new one.

    Args:
      output: the file, which may have replaced another one.
      calibration: that it has.
    """
    beside = new_thresholds.path_beside(output)
    try:
        entry = new_thresholds.latest_entry(output, calibration)
    except UserError:
        print(
            f"{beside} belongs to an earlier file: {output.name} is refused as long as it "
            "is there. Delete it or move it away; to set new thresholds, calibrate again."
        )
        return
    if entry is not None:
        print(f"{beside} holds for it too: thresholds of {entry.time}, by {entry.source}.")


def _computes_otherwise(trained: Trained, precision: str) -> bool:
    """Whether scores of the file cannot be compared with those of the run."""
    return precision == "int8" or trained.run.config.encoder.dtype == "bfloat16"


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
    if trained.calibration is None or not _computes_otherwise(trained, precision):
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
    categories = [record.category for record in records]
    looks = [measure_appearance(image) for image in images]
    return Calibration.measure(
        run.config.evaluation,
        by_category(categories, maps, scores),
        run.dataset.categories,
        {
            category: [looks[row] for row in rows]
            for category, rows in rows_by_category(categories).items()
        },
    )
