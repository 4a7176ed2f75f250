"""How much `configs/mvtec.py` works through at full size."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from harmoniad_jax.config import Config
from harmoniad_jax.data.records import Dataset, Record
from harmoniad_jax.report.content import choose_samples
from tfds_builders import BUILDERS

COUNTS = BUILDERS["mvtec_ad"].COUNTS


class FullSize(NamedTuple):
    """Counts of what the stages grow with.

    Rows are images of batches of evaluation, which are padded: they cost the same.

    Attributes:
      images: of the data set.
      encoded, encoded_rows: images that are trained on.
      trained: images that training steps take.
      log_lines: of `metrics.jsonl`.
      saves, kept: checkpoints that are written, and that stay.
      calibrated_rows: held-out images.
      evaluated_rows: test images.
      pictures: images that the report shows.
    """

    images: int
    encoded: int
    encoded_rows: int
    trained: int
    log_lines: int
    saves: int
    kept: int
    calibrated_rows: int
    evaluated_rows: int
    pictures: int


def full_size(config: Config) -> FullSize:
    """Counts what a run of some settings does with all of MVTec AD."""
    settings, batch = config.train, config.evaluation.batch_size
    records = [
        Record(Path(f"{index:03d}.png"), category)
        for category, counts in COUNTS.items()
        for index in range(counts.train)
    ]
    dataset = Dataset(records, []).hold_out(config.calibration.holdout)
    encoded, held_out = len(dataset.train), len(dataset.held_out)
    tests = [counts.good + counts.defective for counts in COUNTS.values()]
    pictures = [
        len(choose_samples(np.arange(test), np.arange(test) >= counts.good, None))
        for test, counts in zip(tests, COUNTS.values(), strict=True)
    ]
    return FullSize(
        images=len(records) + sum(tests),
        encoded=encoded,
        encoded_rows=padded(encoded, batch),
        trained=settings.num_steps * settings.batch_size,
        log_lines=-(-settings.num_steps // settings.log_every_steps),
        saves=-(-settings.num_steps // settings.checkpoint_every_steps),
        kept=settings.keep_checkpoints,
        calibrated_rows=padded(held_out, batch),
        evaluated_rows=sum(padded(count, batch) for count in tests),
        pictures=sum(pictures),
    )


def padded(count: int, batch: int) -> int:
    """Rows of the batches that hold so many images."""
    return -(-count // batch) * batch
