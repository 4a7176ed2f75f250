"""Compares a run with its exported files: size, start, memory and time of an image.

    python benchmarks/time_export.py --workdir runs/photos model.onnx model-int8.onnx

Each is judged by a process of its own, one after the other, on the same cores: the run by
JAX, a file by ONNX Runtime and, where it is installed, by OpenVINO. "Start" is from the
start of the process to the scores of the first image, "memory" the largest resident size,
"time" the median of an image at batch 1, with the encoder's input ready in memory, and
"core time" what all threads computed for it, which other programs hardly touch. JAX starts
twice: with an empty cache of compiled programs and with a filled one.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from command_line import Parser, whole_number

from harmoniad_jax import terminal
from harmoniad_jax.errors import UserError

ROOT = Path(__file__).parents[1]
# What has to be installed; what these need is found.
INSTALLED = {
    "JAX": ("harmoniad-jax",),
    "ONNX Runtime": ("numpy", "pillow", "scipy", "tifffile", "imagecodecs", "onnxruntime"),
    "OpenVINO": ("numpy", "pillow", "openvino"),
}


def jax_model(path):
    from harmoniad_jax.devices.compilation import enable_compilation_cache
    from harmoniad_jax.inference.predictor import Predictor
    from harmoniad_jax.inference.restore import open_for_new_images

    enable_compilation_cache()
    trained = open_for_new_images(Path(path))
    predictor = Predictor(trained)
    return trained.run.preprocessor, lambda images: predictor.predict_batch(images)[1]


def onnx_model(path):
    import harmoniad_runtime

    model = harmoniad_runtime.load(path)
    preprocessor = model.description.preprocessor
    return preprocessor, lambda images: model.predict_batch(images)[1]


def openvino_model(path):
    from harmoniad_jax.data.preprocess import Preprocessor

    sys.modules["openvino_telemetry"] = None  # it would fork this process
    import openvino

    stored = json.loads(Path(path).with_suffix(".json").read_text())
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", hints)
    preprocessor = Preprocessor.from_json(stored["preprocessor"])
    return preprocessor, lambda images: compiled(images)["image_scores"]


RUNTIMES = {"JAX": jax_model, "ONNX Runtime": onnx_model, "OpenVINO": openvino_model}


def measure(runtime: str, path: str, images: int) -> None:
    """Runs in a process of its own; prints its figures as JSON."""
    preprocessor, scores = RUNTIMES[runtime](path)
    shape = (*preprocessor.all_shapes[0], 3)
    random = np.random.default_rng(0)
    first = random.integers(0, 256, (1, *shape), np.uint8)
    scores(first)
    ready = time.time()
    seconds, core_seconds = [], []
    for _ in range(images):
        image = random.integers(0, 256, (1, *shape), np.uint8)
        start, core_start = time.perf_counter(), time.process_time()
        scores(image)
        seconds.append(time.perf_counter() - start)
        core_seconds.append(time.process_time() - core_start)
    found = {
        "ready": ready,
        "image": statistics.median(seconds),
        "core": statistics.median(core_seconds),
        "memory": peak_memory(),
    }
    print(json.dumps(found))


def peak_memory() -> int:
    """The largest resident size of this process in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def measured(runtime: str, path: Path, images: int, cache: str) -> dict[str, float]:
    """Seconds to the start, seconds of an image, bytes of memory."""
    environment = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": cache, "JAX_PLATFORMS": "cpu"}
    start = time.time()
    done = subprocess.run(
        [sys.executable, __file__, "--measure", runtime, "--images", str(images), path],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise UserError(f"{runtime} cannot run {path}: {done.stderr.splitlines()[-1]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return {**found, "start": found["ready"] - start}


def installed_size(names: tuple[str, ...]) -> int:
    """Bytes of these distributions and of all that they require."""
    sizes: dict[str, int] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in sizes:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        files = [Path(distribution.locate_file(file)) for file in distribution.files or ()]
        sizes[name] = sum(file.stat().st_size for file in files if file.is_file())
        for text in distribution.requires or ():
            if ";" not in text:
                waiting.append(re.match(r"[\w.-]+", text)[0])
    return sum(sizes.values())


def main() -> None:
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, help="exported .onnx files")
    parser.add_argument("--workdir", type=Path, help="of the run")
    parser.add_argument("--images", type=whole_number, default=40)
    parser.add_argument("--measure", choices=tuple(RUNTIMES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, str(options.files[0]), options.images)
        return
    if not options.workdir:
        raise UserError("--workdir is missing; give the folder of the run.")
    cases = [
        ("JAX", options.workdir, "run"),
        ("JAX, compiled before", options.workdir, "run"),
    ]
    for path in options.files:
        stored = json.loads(path.with_suffix(".json").read_text())
        cases.append(("ONNX Runtime", path, stored["precision"]))
        other = importlib.util.find_spec("openvino") is not None
        if other and stored["precision"] != "int8":
            cases.append(("OpenVINO", path, stored["precision"]))
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
    print("| | precision | file | installed | start | memory | time | core time |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as cache:
        for name, path, precision in cases:
            runtime = name.partition(",")[0]
            found = measured(runtime, path, options.images, cache)
            size = f"{path.stat().st_size / 1e6:.0f} MB" if path.is_file() else ""
            print(
                f"| {name} | {precision} | {size} | "
                f"{installed_size(INSTALLED[runtime]) / 1e6:.0f} MB | "
                f"{found['start']:.1f} s | {found['memory'] / 1e9:.2f} GB | "
                f"{1000 * found['image']:.0f} ms | {1000 * found['core']:.0f} ms |",
                flush=True,
            )


if __name__ == "__main__":
    terminal.run(main)
