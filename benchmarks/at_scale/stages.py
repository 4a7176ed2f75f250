"""A run on a drawn data set, stage by stage, in a process of its own.

    python benchmarks/at_scale/stages.py --root IMAGES --folder EMPTY

Prints JSON: seconds and memory of each stage, and bytes of what stays.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import jax

import harmoniad_jax.evaluation.evaluate as evaluation
from at_scale.memory import Peak, memory_now
from harmoniad_jax.checkpoints.store import Checkpoints
from harmoniad_jax.config import Config, with_settings
from harmoniad_jax.features.encode import evaluation_inputs, image_reader, stored_features
from harmoniad_jax.inference.trained import Trained, measured_on_good_images
from harmoniad_jax.report.html.writer import ReportWriter
from harmoniad_jax.run.datasets import open_dataset
from harmoniad_jax.run.identity import Identity
from harmoniad_jax.run.run import UNTRAINED, prepare_run
from harmoniad_jax.training.loop import read_images
from harmoniad_jax.training.stepper import make_stepper

STEPS = 20
# So small that encoding and training do not hide what grows with the images.
SETTINGS = {
    "data.image_side": 32,
    "encoder.name": UNTRAINED,
    "encoder.untrained.width": 32,
    "encoder.groups": 1,
    "model.head_width": 16,
    "model.high_depth": 1,
    "model.low_depth": 1,
    "train.num_steps": STEPS,
    "evaluation.batch_size": 64,
    "evaluation.map_side": 64,
    "evaluation.smoothing_sigma": 1.0,
    "evaluation.streaming": True,
}


def settings(root: Path, folder: Path) -> Config:
    """Those of the run."""
    places = {"data.root": str(root), "cache.folder": str(folder / "features")}
    return with_settings(Config(), SETTINGS | places)


class Stages:
    """What the stages took."""

    def __init__(self):
        self.found: list[dict[str, Any]] = []

    def __call__(self, name: str, work: Callable[[], Any], **facts: Any) -> Any:
        """Does the work of a stage; returns what it returns."""
        gc.collect()
        before = memory_now()
        start, used = time.perf_counter(), time.process_time()
        with Peak() as peak:
            result = work()
        self.found.append(
            {
                "name": name,
                "seconds": time.perf_counter() - start,
                "processor_seconds": time.process_time() - used,
                "resident_bytes": peak.most.resident,
                "own_bytes": peak.most.own,
                "grown_bytes": peak.most.own - before.own,
                **facts,
            }
        )
        print(f"{name}: {self.found[-1]['seconds']:,.1f} s", file=sys.stderr, flush=True)
        return result


class TimedReport(ReportWriter):
    """Counts the seconds in which a report is written, a part of the evaluation."""

    spent: ClassVar = {"seconds": 0.0, "processor_seconds": 0.0}

    def add(self, *arguments: Any) -> None:
        self._timed(super().add, *arguments)

    def finish(self, *arguments: Any) -> Path:
        return self._timed(super().finish, *arguments)

    def _timed(self, work: Callable, *arguments: Any) -> Any:
        start, used = time.perf_counter(), time.process_time()
        result = work(*arguments)
        self.spent["seconds"] += time.perf_counter() - start
        self.spent["processor_seconds"] += time.process_time() - used
        return result


def measure(root: Path, folder: Path) -> dict[str, Any]:
    """Goes through a run.

    Args:
      root: images in the MVTec layout.
      folder: empty; of the run and its cache.

    Returns:
      "stages", a list of "name", "seconds", "processor_seconds" (of all cores),
      "resident_bytes", "own_bytes" (without mapped files) and "grown_bytes" (of them,
      beyond those before the stage); "bytes" of "cache", "checkpoint", "results" and
      "report"; "images".
    """
    config, stage = settings(root, folder), Stages()
    dataset = stage("list images", lambda: open_dataset(config))
    images = len(dataset.train) + len(dataset.test)
    del dataset
    run = stage(
        "list again, find copies, hold out",
        lambda: prepare_run(config, for_training=True),
    )
    workdir = folder / "run"
    reader = image_reader(run)
    stage("read and check every image", lambda: read_images(run, reader))
    params = run.place_encoder()
    records = reader.hashed(run.dataset.train)
    stage("encode and store", lambda: stored_features(run, params, reader, records))
    del reader
    reader = stage("open the cache", lambda: image_reader(run))
    # It hashes all images again, as the next run on them does.
    stage("hash images whose features are stored", lambda: reader.hashed(run.dataset.train))
    stepper = stage("order, compile a step", lambda: make_stepper(run, params, reader))
    state = run.new_state()

    def train(state: Any) -> Any:
        state = stepper.begin(state)
        for _ in range(STEPS):
            state, _ = stepper.advance(state, 1)
        return jax.block_until_ready(stepper.end(state))

    state = stage(f"{STEPS} steps", lambda: train(state))
    position = stepper.batches.get_state()
    trained = Trained(run, state, params, evaluation_inputs(run, params))
    trained = stage("calibrate", lambda: measured_on_good_images(trained))
    identity = Identity.of(run, run.dataset.train_fingerprint)

    def save() -> None:
        with Checkpoints(workdir) as checkpoints:
            checkpoints.save(
                trained.state, position, identity, trained.calibration, finished=True
            )

    def restore() -> Any:
        with Checkpoints(workdir, read_only=True) as checkpoints:
            return checkpoints.restore(run.abstract_state)

    stage("save a checkpoint", save)
    stage("restore it", restore)
    evaluation.ReportWriter = TimedReport
    stage("evaluate in a stream", lambda: evaluation.evaluate(trained, workdir))
    # Of that, what the report took.
    whole, spent = stage.found[-1], TimedReport.spent
    stage.found.append({**whole, **spent, "name": "report"})
    whole |= {name: whole[name] - value for name, value in spent.items()}
    kept = {
        "cache": folder / "features",
        "checkpoint": workdir / "checkpoints",
        "results": workdir / "results.json",
        "report": workdir / "report",
    }
    return {
        "images": images,
        "stages": stage.found,
        "bytes": {name: size_of(path) for name, path in kept.items()},
    }


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, required=True, help="images")
    parser.add_argument("--folder", type=Path, required=True, help="empty folder")
    parser.add_argument("--json", type=Path, required=True, help="file for the figures")
    options = parser.parse_args()
    figures = measure(options.root, options.folder)
    options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
