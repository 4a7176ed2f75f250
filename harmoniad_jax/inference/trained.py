"""An opened run, and what it learns of good images after its last step."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
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
from harmoniad_jax.run.calibration import Calibration, rows_by_category
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
    size = run.evaluation_batch_size

    def scored(
        one: Distances, places: Sequence[int]
    ) -> Iterator[tuple[np.ndarray, np.float32]]:
        """Maps and scores of some of the distances; those of a batch are in memory."""
        for start in range(0, len(places), size):
            chosen = places[start : start + size]
            batch = {
                name: _filled(values[chosen], size) for name, values in one.maps.items()
            }
            batch = shard_batch(run.mesh, batch)
            prediction = jax.device_get(score(state.statistics, batch))
            maps, scores = prediction.anomaly_maps, prediction.image_scores
            # Copies: a map may outlive its batch.
            yield from ((maps[i].copy(), scores[i]) for i in range(len(chosen)))

    held_out = run.dataset.held_out
    products = (
        (category, scored(one, places))
        for one in distances
        for category, places in rows_by_category(
            [held_out[row].category for row in one.rows]
        ).items()
    )
    return Calibration.measure(
        *(run.config.evaluation, products, run.dataset.categories),
        appearance=_appearance(run, held_out),
    )


def _appearance(run: Run, records: Sequence[Record]) -> dict[str, list[dict[str, float]]]:
    """What the records of each category look like; empty if one cannot be read any more."""

    def measure(record: Record) -> dict[str, float]:
        return measure_appearance(run.load_image(record))

    try:
        looks = list(prefetched(records, measure, run.config.data.threads))
    except UserError as error:
        # The features may be stored while the images are gone. Training shall not fail at
        # its end for this.
        logger.warning("%s What good images look like is not stored.", error)
        return {}
    rows = rows_by_category([record.category for record in records])
    return {category: [looks[row] for row in rows[category]] for category in rows}


def distance_program(run: Run) -> Any:
    """Jitted: parameters, encoder's weights and a batch -> `Steps.distance_step`."""
    return jax.jit(run.steps.distance_step, out_shardings=replicated(run.mesh))


def _distances(trained: Trained, records: Sequence[Record], title: str) -> list[Distances]:
    """Distances of the records, for each shape of images."""
    run, step = trained.run, distance_program(trained.run)
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
