"""Times the way of an image from a prepared data set to the device.

    python benchmarks/time_input.py

Draws 1024 px images, stored as PNG and as JPEG, and prepares them through the MVTec AD
builder. For one worker and for two, prints images per second at 1024 -> 336 px of

  - the image library alone: Pillow on the same bytes, already in memory, in as many
    threads (it lets go of Python's lock);
  - the pipeline: records read, decoded, scaled and batched by as many threads.

They run in turn, since machines are noisy; figures are medians over rounds. "Of its
processor time" compares how long the cores worked on an image, which other programs on
them hardly change. At last it feeds the encoder of a ViT-S/14 from the pipeline and prints
the share of the time that the device waited for images, which is what counts.
"""

import collections
import functools
import io
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import logging as absl_logging
from PIL import Image

from harmoniad_jax.config import Config
from harmoniad_jax.data.order import PREFETCHED_BATCHES, training_batches, training_order
from harmoniad_jax.data.prepared import prepared_dataset
from harmoniad_jax.data.preprocess import Preprocessor
from harmoniad_jax.data.records import Record
from harmoniad_jax.data.synthetic import DemoSpec, write_demo_dataset
from harmoniad_jax.model.encoders.encoder import describe_untrained_clip, load_encoder
from tfds_builders.prepare import prepare

STORED_SIDE, SIDE = 1024, 336
BATCH_SIZE = 16
BATCHES = 12
ROUNDS = 5
# The builder knows its categories by name only.
NAMES = {"fabric": "carpet", "tablet": "pill", "washer": "metal_nut"}
DRAWN = DemoSpec(
    side=STORED_SIDE, train_per_category=16, test_good_per_category=1, test_per_defect=1
)


def draw(folder: Path, image_format: str) -> Path:
    """Draws the demo's products under names of MVTec AD, in a manual directory."""
    drawn = folder / "drawn"
    if not drawn.exists():
        write_demo_dataset(drawn, DRAWN)
    manual = folder / image_format
    for path in drawn.glob("*/train/good/*.png"):
        category, *parts = path.relative_to(drawn).parts
        target = manual.joinpath(NAMES[category], *parts).with_suffix(f".{image_format}")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(target, quality=95)
    return manual


def decode(data: bytes) -> np.ndarray:
    """What the image library does with one image, and nothing else."""
    with Image.open(io.BytesIO(data)) as image:
        scaled = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(scaled)


class Cost(NamedTuple):
    """Seconds of an image: of the clock, and of all cores together."""

    wall: float
    cores: float


def cost(work: Callable[[], object]) -> Cost:
    """What each of the images costs that `work` goes through."""
    wall, cores = time.perf_counter(), time.process_time()
    work()
    images = BATCH_SIZE * BATCHES
    return Cost(
        (time.perf_counter() - wall) / images, (time.process_time() - cores) / images
    )


def batches_of(records: list[Record], workers: int, count: int):
    """As many batches as training would read, and no thread at work after the last."""
    order = training_order(records, seed=0)[: count * BATCH_SIZE]
    preprocessor = Preprocessor(SIDE)

    def load(record: Record) -> np.ndarray:
        return preprocessor.load(record.image)

    return training_batches(order, load, rows=(BATCH_SIZE,), threads=workers)


def compare(records: list[Record], workers: int) -> tuple[Cost, Cost]:
    """What an image costs the library and the pipeline, medians over rounds."""
    images = [record.image.read_bytes() for record in records]
    chosen = [images[index % len(images)] for index in range(BATCH_SIZE * BATCHES)]

    def library() -> None:
        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(decode, chosen):
                pass

    rounds = []
    for _ in range(ROUNDS):
        # What is read ahead while no one takes the time does not count.
        ahead = PREFETCHED_BATCHES + workers
        batches = batches_of(records, workers, ahead + BATCHES)
        for _ in range(ahead):
            next(batches)
        pipeline = functools.partial(collections.deque, batches, maxlen=0)
        rounds.append((cost(pipeline), cost(library)))
    pipelines, libraries = zip(*rounds, strict=True)
    return _median(libraries), _median(pipelines)


def _median(costs: Sequence[Cost]) -> Cost:
    return Cost(*(statistics.median(values) for values in zip(*costs, strict=True)))


def waiting_share(records: list[Record], workers: int) -> float:
    """The share of the time in which the device has nothing to encode."""
    vit = describe_untrained_clip(width=384, depth=12, heads=6, patch=14, image_side=SIDE)
    encoder = load_encoder(
        vit,
        image_side=SIDE,
        taps=vit.default_taps,
        groups=2,
        chroma_sigma=Config().encoder.chroma_sigma,
    )
    params = jax.device_put(encoder.params)
    encode = jax.jit(encoder.encode)
    batches = batches_of(records, workers, 1 + BATCHES)
    jax.block_until_ready(encode(params, next(batches)))
    start, waited = time.perf_counter(), 0.0
    features = None
    for _ in range(BATCHES):
        asked = time.perf_counter()
        images = next(batches)
        if features is not None and all(leaf.is_ready() for leaf in features):
            waited += time.perf_counter() - asked
        jax.block_until_ready(features)
        features = encode(params, images)
    jax.block_until_ready(features)
    return waited / (time.perf_counter() - start)


def main() -> None:
    logging.getLogger("tfds_builders").setLevel(logging.ERROR)
    absl_logging.set_verbosity(absl_logging.ERROR)
    print(f"{STORED_SIDE} -> {SIDE} px, {jax.devices()[0].device_kind}")
    print(
        "| format | workers | library, images/s | pipeline, images/s | share "
        "| of its processor time |\n"
        "|--------|--------:|------------------:|-------------------:|------:"
        "|----------------------:|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for image_format in ("png", "jpeg"):
            manual = draw(Path(folder), image_format)
            data = prepare("mvtec_ad", str(manual), f"{folder}/data-{image_format}")
            records = list(prepared_dataset(data).train)
            for workers in (1, 2):
                library, pipeline = compare(records, workers)
                print(
                    f"| {image_format:6} | {workers:7} | {1 / library.wall:17.1f} "
                    f"| {1 / pipeline.wall:18.1f} | {library.wall / pipeline.wall:5.0%} "
                    f"| {library.cores / pipeline.cores:21.0%} |",
                    flush=True,
                )
        for workers in (1, 2):
            share = waiting_share(records, workers)
            print(f"encoding with {workers} worker(s): the device waits {share:.1%}")


if __name__ == "__main__":
    main()
