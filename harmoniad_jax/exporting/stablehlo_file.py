"""A run as StableHLO, for services that run JAX but not this project."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from harmoniad_jax.exporting.files import (
    check_output,
    describe,
    partial_file,
    publish,
    write_bytes,
)
from harmoniad_jax.exporting.measure import own_calibration, with_latest_thresholds
from harmoniad_jax.exporting.program import exported_program, input_shape
from harmoniad_jax.exporting.proof import (
    draw_samples,
    proof_of,
    prove,
    say_what_is_compared,
    tolerance_of,
)
from harmoniad_jax.inference.restore import open_for_new_images
from harmoniad_runtime.description import Description

PLATFORMS = ("cpu", "cuda", "tpu")
SUFFIX = ".stablehlo"


def export_stablehlo(
    workdir: Path,
    output: Path,
    *,
    encoder: str | None = None,
    places: Mapping[str, Any] | None = None,
    images: int,
    overwrite: bool = False,
) -> Description:
    """Writes a run as a program of `jax.export`, with its description beside it.

    Args and Raises: see `onnx_file.export_onnx`. JAX promises to read such a file for six
    months.
    """
    check_output(output, SUFFIX, overwrite)
    trained, places = open_for_new_images(workdir, encoder), dict(places or {})
    trained = with_latest_thresholds(trained, workdir, "float32")
    (batch,) = jax.export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((batch, *input_shape(trained), 3), jnp.uint8)
    program = jax.export.export(jax.jit(exported_program(trained)), platforms=PLATFORMS)
    samples = draw_samples(trained, images, places)
    with partial_file(output) as partial:
        write_bytes(partial, program(shape).serialize())
        loaded = jax.jit(jax.export.deserialize(bytearray(partial.read_bytes())).call)

        def runtime(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return jax.device_get(loaded(images))

        say_what_is_compared(samples)
        name = f"JAX {jax.__version__}"
        changes = {**places, **({"encoder.name": encoder} if encoder else {})}
        own = own_calibration(workdir, trained, changes, runtime, "float32")
        found = prove(trained, samples, {name: runtime}, precision="float32", own=own)
        description = dataclasses.replace(
            describe(trained, "float32", own or trained.calibration),
            proof=proof_of(samples, found),
            score_tolerance=tolerance_of(samples, found if own is None else {}),
        )
        publish(partial, output, description)
    return description
