"""An opened run, and what it learns of good images after its last step."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from harmoniad_jax.data.ahead import prefetched
from harmoniad_jax.data.appearance import measure_appearance
from harmoniad_jax.data.records import Record
from harmoniad_jax.devices.mesh import replicate, replicated, shard_batch
from harmoniad_jax.errors import UserError
from harmoniad_jax.features.encode import Inputs
from harmoniad_jax.model.scoring import Statistics
from harmoniad_jax.run.calibration import Calibration
from harmoniad_jax.run.run import Run
from harmoniad_jax.steps.state import TrainState
from harmoniad_jax.steps.step import measure_statistics

logger = logging.getLogger(__name__)


class Distances(NamedTuple):
    """Distances of the images of one shape.

    rows: [N] int64, of each image among the records that were asked for.
    maps: [N, G, h, w] float32 of each comparison, by its name.
    """

    rows: np.ndarray
    maps: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A run whose weights are there, ready for evaluation, prediction and more.

    Attributes:
      run: its parts.
      state: with statistics of the distances.
      encoder_params: on all devices.
      inputs: what the run reads of its records: images, or stored features.
      calibration: what good images score; None where no image was held out.
      missing: categories that it was trained on and whose images are not there now.
    """

    run: Run
    state: TrainState
    encoder_params: Any
    inputs: Inputs
    calibration: Calibration | None = None
    missing: tuple[str, ...] = ()


def measured_on_good_images(trained: Trained) -> Trained:
    """The run with statistics of the distances and a calibration, measured now.

    Statistics are of images that were held out, if there are any: the network knows those
    it was trained on. Each held-out image passes the encoder once.
    """
    run = trained.run
    held_out = run.dataset.held_out
    most = run.config.evaluation.calibration_images
    if held_out:
        distances = _distances(trained, held_out, "calibrating")
        statistics = _statistics(distances, _evenly(len(held_out), most))
    else:
        train = run.dataset.train
        records = [train[row] for row in _evenly(len(train), most)]
        distances = _distances(trained, records, "standardising")
        statistics = _statistics(distances, np.arange(len(records)))
    state = trained.state.replace(statistics=replicate(run.mesh, statistics))
    trained = dataclasses.replace(trained, state=state, calibration=None)
    if not held_out:
        return trained
    return dataclasses.replace(trained, calibration=_calibration(trained, distances))


def calibrated(trained: Trained) -> Trained:
    """The run with a calibration that is measured now, with the settings of its scores."""
    records = trained.run.dataset.held_out
    if not records:
        return dataclasses.replace(trained, calibration=None)
    distances = _distances(trained, records, "calibrating")
    return dataclasses.replace(trained, calibration=_calibration(trained, distances))


def _statistics(distances: Sequence[Distances], chosen: np.ndarray) -> Statistics:
    """Of the distances of the records in these rows."""
    parts = [(one.maps, np.flatnonzero(np.isin(one.rows, chosen))) for one in distances]
    return measure_statistics(
        [
            {name: values[rows] for name, values in maps.items()}
            for maps, rows in parts
            if len(rows)
        ]
    )


def _calibration(trained: Trained, distances: Sequence[Distances]) -> Calibration:
    """What the held-out images score, from their distances."""
    run, state = trained.run, trained.state
    score = jax.jit(run.steps.score_step, out_shardings=replicated(run.mesh))
    size, count = run.evaluation_batch_size, len(run.dataset.held_out)
    maps: list[Any] = count * [None]
    scores = np.zeros(count, np.float32)
    for one in distances:
        for start in range(0, len(one.rows), size):
            rows = one.rows[start : start + size]
            batch = {
                name: _filled(values[start : start + size], size)
                for name, values in one.maps.items()
            }
            batch = shard_batch(run.mesh, batch)
            prediction = jax.device_get(score(state.statistics, batch))
            scores[rows] = prediction.image_scores[: len(rows)]
            for row, anomaly_map in zip(rows, prediction.anomaly_maps, strict=False):
                maps[row] = anomaly_map
    return Calibration.measure(
        run.config.evaluation,
        [record.category for record in run.dataset.held_out],
        maps,
        scores,
        run.dataset.categories,
        _appearance(run, run.dataset.held_out),
    )


def _appearance(run: Run, records: Sequence[Record]) -> list[dict[str, float]]:
    """What the records look like; empty if one of them cannot be read any more."""

    def measure(record: Record) -> dict[str, float]:
        return measure_appearance(run.load_image(record))

    try:
        return list(prefetched(records, measure, run.config.data.threads))
    except UserError as error:
        # The features may be stored while the images are gone. Training shall not fail at
        # its end for this.
        logger.warning("%s What good images look like is not stored.", error)
        return []


def _distances(trained: Trained, records: Sequence[Record], title: str) -> list[Distances]:
    """Distances of the records, for each shape of images."""
    run = trained.run
    step = jax.jit(run.steps.distance_step, out_shardings=replicated(run.mesh))
    found = []
    for rows in run.preprocessor.by_shape([r.category for r in records]).values():
        batches: list[dict[str, np.ndarray]] = []
        for batch, valid in trained.inputs([records[row] for row in rows], title):
            maps = jax.device_get(step(trained.state.params, trained.encoder_params, batch))
            batches.append({name: values[valid] for name, values in maps.items()})
        maps = {n: np.concatenate([batch[n] for batch in batches]) for n in batches[0]}
        found.append(Distances(np.array(rows), maps))
    return found


def _evenly(total: int, most: int) -> np.ndarray:
    """At most so many of `total` rows, evenly taken, as int64."""
    return np.linspace(0, total - 1, min(most, total)).astype(int)


def _filled(rows: np.ndarray, size: int) -> np.ndarray:
    """Rows filled up with zeros, so that all batches have one shape and program."""
    return np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)])
