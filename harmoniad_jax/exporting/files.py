"""A file and its description: where they are written, and that they are whole or absent."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import harmoniad_jax
from harmoniad_jax.errors import UserError, system_problem
from harmoniad_jax.folders import check_writable, write_whole
from harmoniad_jax.inference.image_model import Rates
from harmoniad_jax.inference.trained import Trained
from harmoniad_jax.run.normality import GoodImages
from harmoniad_runtime.description import Description


def describe(
    trained: Trained, precision: str, calibration: GoodImages | None
) -> Description:
    """What a file of this run says of itself, before it is proven."""
    run = trained.run
    settings, encoder = run.config.calibration, run.encoder
    name = encoder.description.name
    return Description(
        preprocessor=run.preprocessor,
        calibration=calibration,
        rates=Rates(settings.false_positive_rate, settings.pixel_false_positive_rate),
        score_tolerance=0.0,
        precision=precision,
        encoder={"name": name, "weight_hash": encoder.weight_hash},
        program={"name": "harmoniad-jax", "version": harmoniad_jax.__version__},
        proof={},
        licence=f"The file holds weights of the encoder {name!r}, whose licence holds for "
        "them; the code that wrote it is under Apache-2.0.",
    )


def check_output(output: Path, suffix: str, overwrite: bool) -> None:
    """Refuses a place that cannot be written, before any work is done.

    Raises:
      UserError: another suffix, an existing file, or a folder that cannot be written.
    """
    if output.suffix != suffix:
        raise UserError(f"--output={output} must end with {suffix}.")
    for path in (output, output.with_suffix(".json")):
        if path.is_dir():
            raise UserError(f"--output: {path} is a folder; name a file.")
        if path.exists() and not overwrite:
            raise UserError(
                f"--output: {path} is there already; name another, or add --overwrite."
            )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        check_writable(output.parent)
    except OSError as error:
        raise UserError(f"--output cannot be written. {system_problem(error)}") from None


@contextlib.contextmanager
def partial_file(output: Path) -> Iterator[Path]:
    """A file beside `output` to write to, which is gone afterwards."""
    # Not hidden by a dot alone: OpenVINO tells the format by the suffix.
    partial = output.with_name(f".{output.stem}-{os.getpid()}{output.suffix}")
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file and waits until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def publish(partial: Path, output: Path, description: Description) -> None:
    """Gives a file its name, with its description beside it, and says so."""
    text = json.dumps(description.to_json(), indent=2)
    write_whole(output.with_suffix(".json"), text + "\n")
    partial.replace(output)
    size = output.stat().st_size / 1e6
    print(f"{output}: {size:.1f} MB; described in {output.with_suffix('.json').name}")
