"""From a finished run to one file that is proven before it has its name."""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnxruntime

import harmoniad_jax
from harmoniad_jax.errors import UserError, system_problem
from harmoniad_jax.exporting.convert import to_onnx
from harmoniad_jax.exporting.measure import measured_calibration
from harmoniad_jax.exporting.program import exported_program, input_shape
from harmoniad_jax.exporting.proof import (
    BATCHES,
    Bound,
    Differences,
    Samples,
    compare,
    draw_samples,
    openvino_runtime,
    run_in_batches,
)
from harmoniad_jax.exporting.quantize import quantized
from harmoniad_jax.folders import check_writable, write_whole
from harmoniad_jax.inference.image_model import Rates
from harmoniad_jax.inference.restore import open_for_new_images
from harmoniad_jax.inference.trained import Trained
from harmoniad_jax.run.normality import GoodImages
from harmoniad_jax.words import in_words
from harmoniad_runtime.description import MAPS, METADATA_KEY, SCORES, Description
from harmoniad_runtime.model import ExportedModel

PRECISIONS = ("float32", "float16", "int8")
# By the precision of the file. Rounding of another order makes about 1e-6; half precision
# of the weights about 1e-3, 8 bits of weights and activations about 3e-2.
BOUNDS = {
    "float32": Bound(1e-4, 1e-4),
    "float16": Bound(2e-2, 2e-2),
    "int8": Bound(0.2, 0.2),
}
# An encoder that computed in bfloat16 computes in float32 in the file.
BFLOAT16_BOUND = Bound(0.2, 0.2)
# Of a score: runtimes, batches and processors differ by no less, whatever the proof saw.
SMALLEST_TOLERANCE = 1e-5
IMAGES = 24


def export_run(
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
      precision: one of `PRECISIONS`; of the stored weights.
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
    model = to_onnx(
        exported_program(trained),
        shape=input_shape(trained),
        outputs=(MAPS, SCORES),
        metadata={},
        half_weights=precision == "float16",
    )
    samples = draw_samples(trained, images, places)
    # The proof is part of the description, and the description of the file.
    unproven = describe(trained, precision, trained.calibration)
    own = None
    with partial_file(output) as partial:
        _say_what_is_compared(samples)
        if precision == "int8":
            _write(model, describe(trained, "float32", trained.calibration), partial)
            _prove(trained, samples, partial, "float32")
            model = quantized(model, trained.run.encoder.width)
        _write(model, unproven, partial)
        in_bfloat16 = trained.run.config.encoder.dtype == "bfloat16"
        if trained.calibration and (precision == "int8" or in_bfloat16):
            changes = {**places, **({"encoder.name": encoder} if encoder else {})}
            own = measured_calibration(
                workdir, changes, ExportedModel(partial).predict_batch
            )
        found = _prove(trained, samples, partial, precision, own)
        worst = max(one.scores for one in found.values())
        smallest = SMALLEST_TOLERANCE * max(1.0, abs(samples.scores).max())
        description = dataclasses.replace(
            unproven,
            calibration=own or trained.calibration,
            proof={
                "images": len(samples.images),
                "source": samples.source,
                "runtimes": {name: one._asdict() for name, one in found.items()},
            },
            score_tolerance=float(max(0 if own else 2 * worst, smallest)),
        )
        _write(model, description, partial)
        _check_again(partial, description)
        _publish(partial, output, description)
    size = output.stat().st_size / 1e6
    print(f"{output}: {size:.1f} MB; described in {output.with_suffix('.json').name}")
    return description


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


def _write(model: Any, description: Description, path: Path) -> None:
    del model.metadata_props[:]
    model.metadata_props.add(key=METADATA_KEY, value=json.dumps(description.to_json()))
    write_bytes(path, model.SerializeToString())


def _say_what_is_compared(samples: Samples) -> None:
    count = in_words(len(samples.images), "image", "images")
    print(f"Compared with the run on {count} ({samples.source}); largest differences:")


def _prove(
    trained: Trained,
    samples: Samples,
    path: Path,
    precision: str,
    own: GoodImages | None = None,
) -> dict[str, Differences]:
    """Compares every runtime there is with the run.

    Args:
      trained: the run.
      samples: to compare on.
      path: of the file.
      precision: of the file.
      own: what its thresholds follow from, if not from what the run measured.

    Returns:
      The differences by the name of the runtime and the batch.

    Raises:
      UserError: they are beyond the bound, or a verdict flips.
    """
    bound = BOUNDS[precision]
    if trained.run.config.encoder.dtype == "bfloat16":
        bound = max(bound, BFLOAT16_BOUND)
    name = f"ONNX Runtime {onnxruntime.__version__}"
    runtimes, batches = [(name, ExportedModel(path).predict_batch)], BATCHES
    if precision == "int8":
        batches = (1,)
    elif other := openvino_runtime(path):
        runtimes.append(other)
    found = {}
    for name, runtime in runtimes:
        for batch in batches:
            start = time.perf_counter()
            maps, scores = run_in_batches(runtime, samples.images, batch)
            seconds = (time.perf_counter() - start) / len(samples.images)
            one = compare(trained, samples, maps, scores, own)
            found[f"{name}, batch {batch}"] = one
            verdicts = (
                "no thresholds"
                if one.flipped is None
                else in_words(one.flipped, "verdict flips", "verdicts flip")
            )
            print(
                f"  {precision}, {name}, batch {batch}: maps {one.maps:.2g} "
                f"({one.relative_maps:.1g} of the largest value), scores {one.scores:.2g} "
                f"({one.relative_scores:.1g}), {verdicts}, {1000 * seconds:.0f} ms an image"
            )
    wrong = [name for name, one in found.items() if not one.within(bound)]
    if wrong:
        raise UserError(
            "nothing was written: the file differs from the run by more than is allowed "
            f"({bound.maps:g} of the largest value, and no other verdict) in "
            f"{'; '.join(wrong)}. Export with another --precision, or report it with the "
            "lines above."
        )
    return found


def _check_again(path: Path, description: Description) -> None:
    """The file as it is given out loads, and says what was proven."""
    if ExportedModel(path).description.to_json() != description.to_json():
        raise UserError(f"{path} was not written as it was proven: try again.")


def _publish(partial: Path, output: Path, description: Description) -> None:
    text = json.dumps(description.to_json(), indent=2)
    write_whole(output.with_suffix(".json"), text + "\n")
    partial.replace(output)
