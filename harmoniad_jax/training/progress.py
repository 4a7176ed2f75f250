"""What a run tells while it trains: progress bar, `metrics.jsonl` and TensorBoard."""

import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
from tensorboardX import SummaryWriter
from tqdm import tqdm

from harmoniad_jax.config import Config
from harmoniad_jax.devices.processes import is_main
from harmoniad_jax.folders import write_whole
from harmoniad_jax.steps.optimizer import learning_rate_schedule
from harmoniad_jax.steps.step import FINITE

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class Fetched(NamedTuple):
    """Metrics on the host, and the step that they are of."""

    step: int
    values: dict[str, float]


class MetricsWriter:
    """A context manager.

    Metrics are fetched from the device when the steps after them are dispatched, so that
    the device never waits for the host.
    """

    def __init__(self, workdir: Path, first: int, last: int, config: Config):
        """Opens the files, dropping what an interrupted run wrote after step `first`."""
        self._every, self._last = config.train.log_every_steps, last
        if config.train.check_numerics:
            self._every = 1
        self._schedule = learning_rate_schedule(config.optimizer, last)
        self._waiting: tuple[int, Mapping[str, jax.Array]] | None = None
        self._since, self._since_step = time.monotonic(), first
        self._writes = is_main()
        self._progress = tqdm(
            desc="training",
            total=last,
            initial=first,
            unit="step",
            disable=None if self._writes else True,
        )
        if self._writes:
            path = workdir / METRICS_FILE
            _drop_lines_after(path, first)
            self._file = path.open("a")
            self._tensorboard = SummaryWriter(
                str(workdir / TENSORBOARD_FOLDER), purge_step=first + 1
            )

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_) -> None:
        # What was taken is written, also when an exception ends the run.
        self.fetch()
        self._progress.close()
        if self._writes:
            self._file.close()
            self._tensorboard.close()

    def steps_until_next(self, step: int) -> int:
        """Steps from `step` to the next one whose metrics are wanted."""
        return min(self._every - step % self._every, self._last - step)

    def dispatched(self, step: int, metrics: Mapping[str, jax.Array]) -> Fetched | None:
        """Takes the metrics of the latest step; returns those that were taken before."""
        fetched = self.fetch()
        if step % self._every == 0 or step == self._last:
            self._waiting = (step, metrics)
        self._progress.update(step - self._progress.n)
        return fetched

    def fetch(self) -> Fetched | None:
        """Waits for the metrics that were taken last, and writes them."""
        if self._waiting is None:
            return None
        (step, metrics), self._waiting = self._waiting, None
        fetched = {name: value.item() for name, value in jax.device_get(metrics).items()}
        values = {k: v for k, v in fetched.items() if not k.startswith(FINITE)}
        now = time.monotonic()
        values["learning_rate"] = float(self._schedule(step - 1))
        values["steps_per_second"] = (step - self._since_step) / (now - self._since)
        self._since, self._since_step = now, step
        if self._writes:
            self._write(step, values)
        return Fetched(step, fetched)

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        # JSON has no number for what is not finite.
        line = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **line}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if math.isfinite(value):
                self._tensorboard.add_scalar(f"train/{name}", value, step)
        self._progress.set_postfix_str(f"loss {values['loss']:.4f}", refresh=False)
        if self._progress.disable:
            logger.info(
                "step %d of %d: loss %.4f, %.2f steps/s",
                step,
                self._last,
                values["loss"],
                values["steps_per_second"],
            )


def _drop_lines_after(path: Path, step: int) -> None:
    """Removes what a killed run wrote beyond its last checkpoint, and broken lines."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    write_whole(path, "".join(kept))
