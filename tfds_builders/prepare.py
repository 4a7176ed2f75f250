"""Prepares the public data sets for training, from what was downloaded by hand.

    python -m tfds_builders.prepare mvtec_ad visa btad --manual_dir ~/Downloads

Reads the original archives, or folders extracted from them, and writes checked records to
--data_dir. A data set that is prepared already is left alone.
"""

import argparse
import contextlib
import logging
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import tensorflow_datasets as tfds
from absl import logging as absl_logging
from tensorflow_datasets.core import constants

from harmoniad_jax.errors import USER_ERROR_STATUS, UserError
from harmoniad_jax.locks import lock
from tfds_builders import BUILDERS
from tfds_builders.anomaly_builder import (
    AnomalyBuilder,
    data_archives,
    data_folders,
    missing,
)

# By name: as a command this module is called __main__.
logger = logging.getLogger("tfds_builders.prepare")

# How TFDS begins the name of a folder that is being written.
INCOMPLETE = constants.INCOMPLETE_PREFIX


def prepare(
    name: str, manual_dir: str = "", data_dir: str = "", *, overwrite: bool = False
) -> Path:
    """Prepares a data set, unless it is there.

    A second process that prepares the same one at the same time waits for the first.

    Args:
      name: of the builder.
      manual_dir: where the archives or folders are; TFDS's own default if empty.
      data_dir: where prepared data sets are; TFDS's own default if empty.
      overwrite: prepare it anew even if it is there.

    Returns:
      The folder of the prepared data set.

    Raises:
      UserError: nothing to prepare it from, a damaged or unsafe archive, a damaged
        image, or no room. Nothing half-prepared is left then.
    """
    builder = make_builder(name, data_dir)
    target = Path(builder.data_dir)
    if builder.is_prepared() and not overwrite:
        return target
    problem = missing_data(name, manual_dir, data_dir, overwrite=overwrite)
    if problem:
        raise UserError(problem)
    manual = manual_folder(manual_dir, data_dir)
    config = tfds.download.DownloadConfig(manual_dir=manual)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target.parent), _quiet_tfds():
            _clean_up(target)
            # Another process may have been first.
            if overwrite or not make_builder(name, data_dir).is_prepared():
                _write(name, target, config)
            builder = make_builder(name, data_dir)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{name} cannot be prepared in {target} ({error}).") from None
    sizes = [f"{split.num_examples} {key}" for key, split in builder.info.splits.items()]
    logger.info("%s: %s images in %s", name, " and ".join(sizes), target)
    return target


def _write(name: str, target: Path, config: tfds.download.DownloadConfig) -> None:
    """Prepares a data set beside `target`, and puts it there when it is complete."""
    scratch = target.parent / f"{INCOMPLETE}new"
    builder = make_builder(name, str(scratch))
    builder.show_progress = True
    try:
        builder.download_and_prepare(download_config=config)
        if target.exists():
            target.rename(_set_aside(target))
        Path(builder.data_dir).rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    shutil.rmtree(_set_aside(target), ignore_errors=True)


def _clean_up(target: Path) -> None:
    """Finishes, or takes back, what a killed process was at."""
    if _set_aside(target).exists() and not target.exists():
        _set_aside(target).rename(target)
    for leftover in target.parent.glob(f"{INCOMPLETE}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _set_aside(target: Path) -> Path:
    """Where the old data are in the moment before the new ones take their place."""
    return target.with_name(f"{INCOMPLETE}old_{target.name}")


def missing_data(
    name: str, manual_dir: str = "", data_dir: str = "", *, overwrite: bool = False
) -> str:
    """What to download and where to put it; empty if the data set can be had."""
    if make_builder(name, data_dir).is_prepared() and not overwrite:
        return ""
    manual, builder = manual_folder(manual_dir, data_dir), BUILDERS[name]
    if data_folders(builder, manual) or data_archives(builder, manual):
        return ""
    return missing(builder, manual)


def make_builder(name: str, data_dir: str = "") -> AnomalyBuilder:
    """The builder of a data set."""
    return BUILDERS[name](data_dir=str(Path(data_dir).expanduser()) if data_dir else None)


def manual_folder(manual_dir: str, data_dir: str) -> Path:
    """The manual directory; TFDS's own default if none is named."""
    if manual_dir:
        return Path(manual_dir).expanduser()
    root = Path(data_dir).expanduser() if data_dir else Path(tfds.core.constants.DATA_DIR)
    return root.expanduser() / "downloads" / "manual"


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lets one process at a time prepare a data set; freed when a process ends."""
    path = folder / ".lock"
    file = lock(path)
    if file is None:
        logger.info("waiting for another process that prepares %s", folder)
        file = lock(path, wait=True)
    with file:
        yield


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Silences bars without a total and sizes unknown; the builders show their own."""
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(None):
            yield
    finally:
        tfds.enable_progress_bar()


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, as the other commands do."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}", file=sys.stderr)
        sys.exit(USER_ERROR_STATUS)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command's entry point."""
    parser = _Parser(
        prog="python -m tfds_builders.prepare",
        description="Prepares public data sets from what was downloaded by hand.",
    )
    parser.add_argument(
        "names", nargs="+", choices=list(BUILDERS), metavar="NAME", help=", ".join(BUILDERS)
    )
    parser.add_argument(
        "--manual_dir",
        default="",
        help="folder of the archives (default: downloads/manual of data_dir)",
    )
    parser.add_argument(
        "--data_dir", default="", help="folder of prepared data sets (default: TFDS's own)"
    )
    parser.add_argument("--overwrite", action="store_true", help="prepare anew")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("tfds_builders").setLevel(logging.INFO)
    absl_logging.set_verbosity(absl_logging.ERROR)
    try:
        for name in options.names:
            path = prepare(
                name,
                options.manual_dir,
                options.data_dir,
                overwrite=options.overwrite,
            )
            print(f"{name} is prepared in {path}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR_STATUS)
    except KeyboardInterrupt:
        print("interrupted; nothing half-prepared was left", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)  # as a shell reports it


if __name__ == "__main__":
    main()
