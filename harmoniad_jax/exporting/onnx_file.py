"""From a finished run to one file that is proven before it has its name."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime

from harmoniad_jax.errors import UserError
from harmoniad_jax.exporting.convert import to_onnx
from harmoniad_jax.exporting.files import (
    check_output,
    describe,
    partial_file,
    publish,
    write_bytes,
)
from harmoniad_jax.exporting.measure import (
    own_calibration,
    say_whose_thresholds,
    with_latest_thresholds,
)
from harmoniad_jax.exporting.program import exported_program, input_shape
from harmoniad_jax.exporting.proof import (
    BATCHES,
    Runtime,
    draw_samples,
    openvino_runtime,
    proof_of,
    prove,
    say_what_is_compared,
    tolerance_of,
)
from harmoniad_jax.exporting.quantize import quantized
from harmoniad_jax.inference.restore import open_for_new_images
from harmoniad_runtime.description import MAPS, METADATA_KEY, SCORES, Description
from harmoniad_runtime.model import ExportedModel

IMAGES = 24


def export_onnx(
    workdir: Path,
    output: Path,
    *,
    precision: str = "float32",
    encoder: str | None = None,
    places: Mapping[str, Any] | None = None,
    images: int = IMAGES,
    overwrite: bool = False,
) -> Description:
    """Writes a run as an ONNX file, with its description beside it as `.json`.

    The file is run on images before it gets its name, and refused where it differs from
    the run by more than `BOUNDS`.

    Args:
      workdir: folder of a finished run.
      output: the file to write, `.onnx`.
      precision: of the weights, a key of `proof.BOUNDS`.
      encoder: where the encoder is, if not where it was in training.
      places: where the run's images are now, as settings by dotted name; {}: where they
        were. Drawn images are taken where they are not at hand.
      images: to prove the file on.
      overwrite: replace a file of that name.

    Returns:
      What the file says of itself.

    Raises:
      UserError: a run that is not finished or cannot be exported, no encoder, a place that
        cannot be written, or a file that failed its proof.
    """
    check_output(output, ".onnx", overwrite)
    trained, places = open_for_new_images(workdir, encoder), dict(places or {})
    trained = with_latest_thresholds(trained, workdir, precision)
    model = to_onnx(
        exported_program(trained),
        shape=input_shape(trained),
        outputs=(MAPS, SCORES),
        metadata={},
        half_weights=precision == "float16",
    )
    samples = draw_samples(trained, images, places)
    changes = {**places, **({"encoder.name": encoder} if encoder else {})}

    def prove_file(path: Path, precision: str):
        """Own thresholds, if need be, and the differences from the run."""
        runtime = ExportedModel(path).predict_batch
        own = own_calibration(workdir, trained, changes, runtime, precision)
        whole = precision != "int8"
        runtimes = _runtimes(path, others=whole)
        batches = BATCHES if whole else (1,)
        return own, prove(
            trained, samples, runtimes, precision=precision, batches=batches, own=own
        )

    with partial_file(output) as partial:
        say_what_is_compared(samples)
        if precision == "int8":
            _write(model, describe(trained, "float32", trained.calibration), partial)
            prove_file(partial, "float32")
            model = quantized(model, trained.run.encoder.width)
        # The proof is part of the description, and the description of the file.
        unproven = describe(trained, precision, trained.calibration)
        _write(model, unproven, partial)
        own, found = prove_file(partial, precision)
        description = dataclasses.replace(
            unproven,
            calibration=own or trained.calibration,
            proof=proof_of(samples, found),
            score_tolerance=tolerance_of(samples, found if own is None else {}),
        )
        _write(model, description, partial)
        _check_again(partial, description)
        publish(partial, output, description)
    say_whose_thresholds(output, description.calibration)
    return description


def _write(model: Any, description: Description, path: Path) -> None:
    del model.metadata_props[:]
    model.metadata_props.add(key=METADATA_KEY, value=json.dumps(description.to_json()))
    write_bytes(path, model.SerializeToString())


def _runtimes(path: Path, *, others: bool = True) -> dict[str, Runtime]:
    """What is there to run a file with, by name."""
    name = f"ONNX Runtime {onnxruntime.__version__}"
    found: dict[str, Runtime] = {name: ExportedModel(path).predict_batch}
    if others and (other := openvino_runtime(path)):
        found.update([other])
    return found


def _check_again(path: Path, description: Description) -> None:
    """The file as it is given out loads, and says what was proven."""
    if ExportedModel(path).description.to_json() != description.to_json():
        raise UserError(f"{path} was not written as it was proven: try again.")
