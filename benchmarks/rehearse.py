"""Rehearses `configs/mvtec.py` whole: how long, how much memory, how much disk.

    python benchmarks/rehearse.py                            # at full size: for a GPU
    python benchmarks/rehearse.py --share 0.001 --steps 4 --batch_size 2    # for two cores

It draws a data set with MVTec AD's classes and counts, prepares it, trains on it with a
CLIP ViT-L/14 at 336 px of random weights, evaluates, and restores and saves a checkpoint.
Training and evaluation are the commands that users run, watched from outside. What was
measured, and what follows from it for the full size, stand in a table each, printed and
in `rehearsal.md`; `rehearsal.json` has both. Settings of the run may be added as
--config.NAME=VALUE.

Images and prepared records are kept, and used again by the next rehearsal; everything
after them is measured anew each time. An interrupted rehearsal is simply started again.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from command_line import Parser, whole_number
from rehearsal.command import Command
from rehearsal.costs import Stage, extrapolated_table, measured_table
from rehearsal.full import COUNTS, full_size
from rehearsal.watch import watch

from harmoniad_jax.config import Config, parse_config
from harmoniad_jax.config_files import load_config
from harmoniad_jax.errors import USER_ERROR_STATUS, UserError
from harmoniad_jax.folders import cache_folder
from harmoniad_jax.locks import lock
from harmoniad_jax.run.datasets import drawing_version

ROOT = Path(__file__).resolve().parents[1]
PARTS = ROOT / "benchmarks" / "rehearsal"
FEWEST_LINES = 10  # of metrics.jsonl, or else every step gets one

# What the commands say, by which their stages are told apart: titles of progress bars,
# and beginnings of lines that belong into the report.
DRAWING = ("drawing",)
PREPARING = ("mvtec_ad train", "mvtec_ad test")
ENCODING = ("encoding",)
TRAINING = ("training",)
CALIBRATING = ("calibrating",)
SAID = ("encoder ", "model ", "step ", "memory", "compile", "devices ")

MEASURED_NOTE = """\
Host memory is the most that was resident during a stage, mapped files included. Device
memory is the most that the command had taken until the end of the stage, where JAX counts
it. Rows are images of batches, padding included. What a command does once, such as
compilation, belongs to the stage in which it does it."""


class Rehearsal:
    """A rehearsal in a folder of its own."""

    def __init__(self, options: argparse.Namespace, overrides: Sequence[str]):
        self._options, self._overrides = options, overrides
        self.defaults = parse_config(load_config("mvtec"))
        self._full = full_size(self.defaults)
        drawn = hashlib.sha256((PARTS / "draw.py").read_bytes()).hexdigest()[:4]
        name = f"{options.side}px-{options.share:g}-{drawing_version()}{drawn}"
        root = Path(options.folder).expanduser() if options.folder else None
        self.folder = (root or cache_folder() / "rehearsal").absolute() / name
        self._images, self._data = self.folder / "images", self.folder / "prepared"
        self._run = self.folder / "run"
        self._workdir, self._cache = self._run / "workdir", self._run / "features"
        # What the commands said that a reader of the figures should know.
        self.said: list[str] = []

    def stages(self) -> list[Stage]:
        """Goes through all of them; returns their costs in order."""
        shutil.rmtree(self._run, ignore_errors=True)
        self._run.mkdir(parents=True)
        drawn = self._draw()
        prepared = self._remembered("prepare", self._data, self._prepare)
        trained = self._train()
        return [*drawn, *prepared, *trained, *self._evaluate(), *self._checkpoint()]

    def _draw(self) -> list[Stage]:
        """Draws what is missing; without figures if the last call ended just after it."""
        options = self._options
        command = self._watch(
            "draw",
            *(sys.executable, PARTS / "draw.py", "--folder", self._images),
            *("--side", options.side, "--share", options.share),
            *(("--workers", options.workers) if options.workers else ()),
        )

        def measure() -> list[Stage]:
            if not command.watched.marks:
                return []
            stage = command.through("draw", DRAWING, self._full.images, to_the_end=True)
            there = len(list(self._images.glob("*/t*/*/*.png")))
            return [stage.leaves(size_of(self._images), there, self._full.images)]

        return self._remembered("draw", self._images, measure)

    def _prepare(self) -> list[Stage]:
        command = self._watch(
            "prepare",
            *(sys.executable, "-m", "tfds_builders.prepare", "mvtec_ad", "--overwrite"),
            *("--manual_dir", self._images, "--data_dir", self._data),
        )
        stage = command.through("prepare", PREPARING, self._full.images, to_the_end=True)
        return [stage.leaves(size_of(self._data), stage.count, stage.full)]

    def _remembered(
        self, name: str, result: Path, measure: Callable[[], list[Stage]]
    ) -> list[Stage]:
        """What was measured when a result was made that is kept."""
        path = self.folder / f"{name}.json"
        if not (path.exists() and result.exists()):
            stages = measure()
            if not stages:
                return []
            unfinished = path.with_suffix(".unfinished")
            unfinished.write_text(json.dumps([dataclasses.asdict(one) for one in stages]))
            unfinished.replace(path)
        return [Stage(**stage) for stage in json.loads(path.read_text())]

    def _train(self) -> list[Stage]:
        full, metrics = self._full, self._workdir / "metrics.jsonl"
        command = self._watch_jax(
            *("train", "harmoniad_jax.train", "--config", "configs/mvtec.py"),
            *("--workdir", self._workdir),
            *(f"--config.{name}={value}" for name, value in self._settings().items()),
            *self._overrides,
        )
        self.said += [line for line in command.watched.lines if line.startswith(SAID)]
        rows = {"unit": "row", "batch": self.config.evaluation.batch_size}
        start = command.until("train: start", ENCODING)
        encode = command.through("train: encode", ENCODING, full.encoded_rows, **rows)
        steps = command.through(
            "train: steps", TRAINING, full.trained, each=self.config.train.batch_size
        )
        encoded = command.watched.marks_of(ENCODING)[-1].done
        logs = size_of(metrics) + size_of(self._workdir / "tensorboard")
        lines = len(metrics.read_text().splitlines())
        return [
            start,
            encode.leaves(size_of(self._cache), encoded, full.encoded),
            steps.leaves(logs, lines, full.log_lines),
            command.through("train: calibrate", CALIBRATING, full.calibrated_rows, **rows),
            command.through(
                *("train: evaluate", self._evaluating, full.evaluated_rows),
                **rows,
                to_the_end=True,
            ),
        ]

    def _settings(self) -> dict[str, object]:
        """The settings in which the run differs from its config file."""
        options, train = self._options, self.defaults.train
        steps = options.steps or train.num_steps
        settings = {
            "data.manual_dir": self._images,
            "data.data_dir": self._data,
            "data.image_side": options.image_side,
            "cache.folder": self._cache,
            "encoder.name": "untrained",
            "encoder.untrained.width": options.width,
            "encoder.untrained.depth": options.depth,
            "encoder.untrained.heads": options.heads,
            "encoder.untrained.patch": options.patch,
            "train.num_steps": steps,
        }
        if options.batch_size:
            settings["train.batch_size"] = options.batch_size
            settings["evaluation.batch_size"] = options.batch_size
        if steps < FEWEST_LINES * train.log_every_steps:
            # Steps are dispatched ahead: only a bar that waits for each tells their time.
            settings["train.log_every_steps"] = 1
        return settings

    @property
    def config(self) -> Config:
        """The settings that the run had."""
        return parse_config(json.loads((self._workdir / "config.json").read_text()))

    @property
    def _evaluating(self) -> tuple[str, ...]:
        """Titles of the bars of evaluation: the categories."""
        return tuple(self.config.data.categories or COUNTS)

    def _evaluate(self) -> list[Stage]:
        """As a command of its own, which does the end of training once more."""
        command = self._watch_jax(
            "evaluate", "harmoniad_jax.evaluate", "--workdir", self._workdir
        )
        start = command.until("evaluate: start", self._evaluating)
        images = command.through(
            *("evaluate: images, report", self._evaluating, self._full.evaluated_rows),
            unit="row",
            batch=self.config.evaluation.batch_size,
            to_the_end=True,
        )
        folder = self._workdir / "report"
        pictures = len(list(folder.glob("images/*-image.jpg")))
        return [start, images.leaves(size_of(folder), pictures, self._full.pictures)]

    def _checkpoint(self) -> list[Stage]:
        saved = self._run / "saved"
        command = self._watch(
            "checkpoint",
            *(sys.executable, PARTS / "checkpoint.py"),
            *("--workdir", self._workdir, "--scratch", saved),
        )
        watched = command.watched
        figures = json.loads(next(line for line in watched.lines if line[0] == "{"))
        self.said.append(
            f"a save of {figures['save_seconds']:.1f} s holds training up for "
            f"{figures['blocking_seconds']:.1f} s of them"
        )
        restore = Stage("restore a checkpoint", figures["restore_seconds"])
        save = Stage(
            *("save checkpoints", figures["save_seconds"], "save", 1, self._full.saves)
        )
        return [
            dataclasses.replace(stage, host_bytes=watched.largest)
            for stage in (restore, save.leaves(size_of(saved), 1, self._full.kept))
        ]

    def _watch_jax(self, name: str, *command: object) -> Command:
        notes = self._run / f"{name}.memory"
        return self._watch(
            *(name, sys.executable, PARTS / "device_memory.py", notes, *command),
            notes=notes,
        )

    def _watch(self, name: str, *command: object, notes: Path | None = None) -> Command:
        log = self.folder / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        # As on a new machine, nothing is compiled yet, unless the user wants it so.
        environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(self._run / "compiled"))
        watched = watch([str(part) for part in command], ROOT, log, environment)
        print(f"{name}: {watched.seconds:,.1f} s", file=sys.stderr, flush=True)
        return Command(watched, notes)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def report(rehearsal: Rehearsal, stages: Sequence[Stage]) -> str:
    """The tables, and what a reader of them must know, as Markdown."""
    paragraphs = [
        "## Measured",
        "\n".join(f"    {line}" for line in rehearsal.said),
        measured_table(stages),
        MEASURED_NOTE,
    ]
    if rehearsal.config.train.batch_size != rehearsal.defaults.train.batch_size:
        paragraphs.append(
            f"Batches had {rehearsal.config.train.batch_size} images instead of "
            f"{rehearsal.defaults.train.batch_size}. Memory is that of the small batches, "
            "and the cost of an image is extrapolated too high: small batches share what "
            "a step costs in any case, such as the update of the parameters."
        )
    if not all(stage.is_full for stage in stages):
        paragraphs += [
            "## Extrapolated to the full size",
            extrapolated_table(stages),
            "Nothing here was measured, except where it says so. Disk grows in "
            "proportion to images, log lines, checkpoints and pictures; memory is not "
            "extrapolated.",
        ]
    return "\n\n".join(paragraphs) + "\n"


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The options, and settings for the run."""
    parser = Parser(
        description=__doc__.partition("\n")[0],
        epilog="Settings of the run may be added as --config.NAME=VALUE.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--folder", default="", help="where to keep everything (default: a user cache)")
    add("--share", type=float, default=1.0, help="of the images, above 0 and up to 1")
    add("--steps", type=whole_number, help="of training (default: those of the config)")
    add(
        "--batch_size",
        type=whole_number,
        help="of all batches (default: that of the config)",
    )
    add("--side", type=whole_number, default=1024, help="of the drawn images, in pixels")
    add("--workers", type=whole_number, help="processes that draw (default: one a core)")
    add("--image_side", type=whole_number, default=336, help="of the encoder's input")
    add("--width", type=whole_number, default=1024, help="of the encoder")
    add("--depth", type=whole_number, default=24, help="of the encoder, in blocks")
    add("--heads", type=whole_number, default=16, help="of the encoder")
    add("--patch", type=whole_number, default=14, help="of the encoder, in pixels")
    options, settings = parser.parse_known_args(arguments)
    if not 0 < options.share <= 1:
        raise UserError(f"--share={options.share:g} must be above 0 and at most 1.")
    for setting in settings:
        if not setting.startswith("--config.") or "=" not in setting:
            raise UserError(
                f"{setting!r} is no option; see --help. Settings of the run are given as "
                "--config.NAME=VALUE."
            )
    return options, settings


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a second rehearsal out of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    file = lock(folder / ".lock")
    if file is None:
        raise UserError(
            f"another rehearsal runs in {folder}; wait for it, or give another --folder."
        )
    with file:
        yield


def main(arguments: Sequence[str] | None = None) -> None:
    """The command's entry point."""
    try:
        rehearsal = Rehearsal(*parse(arguments))
        with locked(rehearsal.folder):
            stages = rehearsal.stages()
            text = report(rehearsal, stages)
            (rehearsal.folder / "rehearsal.md").write_text(text)
            figures = {
                "said": rehearsal.said,
                "settings": rehearsal.config.to_dict(),
                "stages": [stage.to_json() for stage in stages],
            }
            path = rehearsal.folder / "rehearsal.json"
            path.write_text(json.dumps(figures, indent=2) + "\n")
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR_STATUS)
    except KeyboardInterrupt:
        print("interrupted; the same command starts again", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    print(text)
    print(f"Figures: {path}. Everything else in {path.parent} may be deleted.")


if __name__ == "__main__":
    main()
