"""A trained state and test images in, the figures of every category out."""

import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from harmoniad_jax.config import parse_config
from harmoniad_jax.data.pipeline import evaluation_batches, read_masks
from harmoniad_jax.data.records import Record
from harmoniad_jax.metrics import (
    category_metrics,
    mean_metrics,
    mean_metrics_per_dataset,
)
from harmoniad_jax.report.tables import results_table
from harmoniad_jax.training.checkpoints import Checkpoints, Identity, check_identity
from harmoniad_jax.training.setup import Run, prepare_run
from harmoniad_jax.training.sharding import batched, replicate, replicated
from harmoniad_jax.training.state import TrainState
from harmoniad_jax.training.step import measure_statistics

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
RESULTS_FILE = "results.json"


def evaluate_run(
    workdir: Path,
    *,
    root: str | None = None,
    data_dir: str | None = None,
    encoder: str | None = None,
) -> dict[str, Any]:
    """Evaluates the latest checkpoint of `workdir`, as at the end of its training.

    Args:
      workdir: folder of the run.
      root: where the folder of images is, if not where it was.
      data_dir: where prepared data sets are, if not where they were.
      encoder: where the encoder is, if not where it was.

    Returns:
      What it writes to `workdir/results.json`, see `evaluate`.

    Raises:
      UserError: no checkpoint, or images or encoder that are not the run's.
    """
    with Checkpoints(workdir, read_only=True) as checkpoints:
        stored = checkpoints.read_identity()
        config = stored.config.to_dict()
        # What training was last called with: these settings may have changed since.
        config["evaluation"] = json.loads((workdir / CONFIG_FILE).read_text())["evaluation"]
        if root is not None:
            config["data"]["root"] = root
        if data_dir is not None:
            config["data"]["data_dir"] = data_dir
        if encoder is not None:
            config["encoder"]["name"] = encoder
        run = prepare_run(parse_config(config))
        finished = checkpoints.latest_step == run.config.train.num_steps
        # A finished run has seen its training images: they may change or go.
        fingerprint = (
            stored.train_fingerprint if finished else run.dataset.train_fingerprint
        )
        identity = Identity.of(run.config, run.encoder, fingerprint)
        check_identity(stored, identity, workdir)
        state, _ = checkpoints.restore(jax.eval_shape(run.initial_state), run.mesh)
    encoder_params = replicate(run.mesh, run.encoder.params)
    if not finished:
        logger.info(
            "step %d of %d: training is not finished, calibrating the maps now",
            int(state.step),
            run.config.train.num_steps,
        )
        state = calibrate(run, state, encoder_params)
    return evaluate(run, state, encoder_params, workdir)


def calibrate(run: Run, state: TrainState, encoder_params: Any) -> TrainState:
    """Measures the distance maps' statistics on evenly taken training images."""
    records = run.dataset.train
    count = min(run.config.evaluation.calibration_images, len(records))
    chosen = [records[i] for i in np.linspace(0, len(records) - 1, count).astype(int)]
    step = jax.jit(run.steps.distance_step, out_shardings=replicated(run.mesh))
    batches: list[dict[str, np.ndarray]] = []
    for images, valid in _batches(run, chosen, "calibrating"):
        maps = jax.device_get(step(state.params, encoder_params, images))
        batches.append({name: values[valid] for name, values in maps.items()})
    statistics = measure_statistics(batches)
    return state.replace(statistics=replicate(run.mesh, statistics))


def evaluate(
    run: Run, state: TrainState, encoder_params: Any, workdir: Path
) -> dict[str, Any]:
    """Predicts all test images, category by category, and writes `results.json`.

    Only the maps of one category are in memory at a time.

    Returns:
      "step", "encoder", "config_hash", "per_category": name -> the seven figures as
      fractions in [0, 1] (None where undefined) and "num_images", "per_dataset": the
      means over the categories of each data set where several are joined, "mean": over
      all categories, and counts of "lost_masks" and "rescued_defects".
    """
    settings = run.config.evaluation
    predictor = Predictor(run, state, encoder_params)
    per_category: dict[str, dict[str, float]] = {}
    lost_masks = rescued_defects = 0
    for category in run.dataset.categories:
        records = [r for r in run.dataset.test if r.category == category]
        if not records:
            logger.info("%s has no test images: not evaluated", category)
            continue
        maps, scores = predictor(records)
        masks, known, rescued = read_masks(records, settings.map_side, settings.mask_rule)
        lost_masks += int((~known).sum())
        rescued_defects += rescued
        labels = np.array([record.is_anomalous for record in records])
        per_category[category] = category_metrics(
            maps, masks, scores, labels, mask_known=known
        )
    results = {
        "step": int(state.step),
        "encoder": run.encoder.description.name,
        "config_hash": run.config.hash,
        "per_category": per_category,
        "per_dataset": mean_metrics_per_dataset(per_category),
        "mean": mean_metrics(per_category) if per_category else {},
        "lost_masks": lost_masks,
        "rescued_defects": rescued_defects,
    }
    if jax.process_index() == 0:
        _write_results(results, workdir / RESULTS_FILE)
        report_results(results)
    return results


def report_results(results: dict[str, Any]) -> None:
    """Prints the table of figures, and what a reader of it must know."""
    if not results["per_category"]:
        print("There are no test images: nothing was evaluated.")
        return
    print(results_table(results))
    if results["lost_masks"]:
        print(
            f"{results['lost_masks']} defective images have no mask; they count in the "
            "image figures only."
        )
    if results["rescued_defects"]:
        print(
            f"{results['rescued_defects']} defects were smaller than half a cell of the "
            "evaluation grid; each kept its largest cell."
        )


class Predictor:
    """Anomaly maps and image scores of records, compiled once."""

    def __init__(self, run: Run, state: TrainState, encoder_params: Any):
        self._run = run
        self._arguments = (state.params, state.statistics, encoder_params)
        self._step = jax.jit(run.steps.predict_step, out_shardings=replicated(run.mesh))

    def __call__(self, records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
        """N records -> maps [N, S', S'] and scores [N], float32, in their order."""
        maps, scores = [], []
        for images, valid in _batches(self._run, records, records[0].category):
            prediction = jax.device_get(self._step(*self._arguments, images))
            maps.append(prediction.anomaly_maps[valid])
            scores.append(prediction.image_scores[valid])
        return np.concatenate(maps), np.concatenate(scores)


def _batches(
    run: Run, records: Sequence[Record], title: str
) -> Iterator[tuple[jax.Array, np.ndarray]]:
    """Batches of images on the devices, and which rows of each are real."""
    logger.info("%s: %d images", title, len(records))
    batch_size = run.config.evaluation.batch_size
    batches = evaluation_batches(
        records,
        image_side=run.config.data.image_side,
        batch_size=batch_size,
        threads=run.config.data.threads,
    )
    with tqdm(desc=title, total=len(records), unit="image", disable=None) as progress:
        for images, valid in batches:
            yield jax.device_put(images, batched(run.mesh)), valid
            progress.update(int(valid.sum()))


def _write_results(results: dict[str, Any], path: Path) -> None:
    """Writes `results.json` whole or not at all; undefined figures become null."""
    text = json.dumps(_undefined_to_none(results), indent=2)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text + "\n")
    temporary.replace(path)


def _undefined_to_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _undefined_to_none(item) for name, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
