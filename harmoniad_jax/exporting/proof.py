"""Whether an exported file says what the run says, measured before it is given out."""

import importlib.util
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harmoniad_jax.config import with_settings
from harmoniad_jax.data.records import Dataset, Record
from harmoniad_jax.data.synthetic import DemoSpec, write_demo_dataset
from harmoniad_jax.errors import UserError, raise_problems
from harmoniad_jax.inference.predictor import Predictor
from harmoniad_jax.inference.trained import Trained
from harmoniad_jax.run.checks import data_problems
from harmoniad_jax.run.datasets import open_dataset
from harmoniad_jax.run.normality import GoodImages
from harmoniad_jax.words import in_words

logger = logging.getLogger(__name__)

BATCHES = (1, 3)
# [B, H, W, 3] uint8 -> anomaly maps [B, H', W'] and scores [B].
Runtime = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Bound(NamedTuple):
    """The largest differences that a file may show, as a share of the largest value.

    Values smaller than 1 count as 1: they are in deviations of good images' distances.

    may_flip: whether verdicts may be others.
    """

    maps: float
    scores: float
    may_flip: bool = False


# By the precision of the file. Rounding of another order makes about 1e-6; half precision
# of the weights about 1e-3, 8 bits of weights and activations about 3e-2.
BOUNDS = {
    "float32": Bound(1e-4, 1e-4),
    "float16": Bound(5e-3, 5e-3),
    "int8": Bound(0.2, 0.2),
}
# An encoder that computed in bfloat16 computes in float32 in the file. No other precision
# would keep every verdict.
BFLOAT16_BOUND = Bound(0.2, 0.2, may_flip=True)

# Of a score: runtimes, batches and processors differ by no less, whatever the proof saw.
SMALLEST_TOLERANCE = 1e-5


class Samples(NamedTuple):
    """Images to compare on, as the network sees them, and what the run says of them.

    source: what they are, in words.
    images: [N, H, W, 3] uint8.
    categories: of each; None where it is not one of the run's.
    maps, scores: [N, H', W'] and [N] float32, of the run.
    """

    source: str
    images: np.ndarray
    categories: Sequence[str | None]
    maps: np.ndarray
    scores: np.ndarray


class Differences(NamedTuple):
    """How far a runtime is from the run.

    maps, scores: largest absolute differences.
    relative_maps, relative_scores: the same, as of `Bound`.
    flipped: verdicts that are others, at the run's default rate; None without thresholds.
    """

    maps: float
    scores: float
    relative_maps: float
    relative_scores: float
    flipped: int | None

    def within(self, bound: Bound) -> bool:
        return (
            self.relative_maps <= bound.maps
            and self.relative_scores <= bound.scores
            and (bound.may_flip or not self.flipped)
        )


def draw_samples(trained: Trained, count: int, places: Mapping[str, Any]) -> Samples:
    """Images of the run, or drawn ones where its images are not at hand.

    Test images if there are any, else training images; evenly taken.

    Args:
      trained: the opened run.
      count: of images, at most.
      places: where the images are now, as settings by dotted name.

    Raises:
      UserError: an image cannot be read.
    """
    config = with_settings(trained.run.config, places)
    try:
        raise_problems(data_problems(config, for_training=False))
        dataset = open_dataset(config)
    except UserError as error:
        if places:
            raise
        logger.info("the run's own images are not at hand: %s", error)
        with tempfile.TemporaryDirectory() as folder:
            images = _drawn(trained, Path(folder) / "demo", count)
        return _measured(trained, "drawn images", images, [None] * len(images))
    source, records = _chosen(dataset, count)
    images = np.stack([trained.run.load_image(record) for record in records])
    return _measured(trained, source, images, [record.category for record in records])


def _chosen(dataset: Dataset, count: int) -> tuple[str, list[Record]]:
    """Records, evenly taken, and what they are."""
    source, records = "test images", dataset.test
    if not records:
        source, records = "training images", dataset.train
    rows = np.linspace(0, len(records) - 1, min(count, len(records))).astype(int)
    return source, [records[row] for row in rows]


def _drawn(trained: Trained, folder: Path, count: int) -> np.ndarray:
    """Images of the demo, which need no download."""
    write_demo_dataset(
        folder, DemoSpec(train_per_category=1, test_good_per_category=4, test_per_defect=2)
    )
    files = sorted(folder.rglob("test/*/*.png"))
    rows = np.linspace(0, len(files) - 1, min(count, len(files))).astype(int)
    return np.stack([trained.run.preprocessor.load(files[row]) for row in rows])


def _measured(
    trained: Trained, source: str, images: np.ndarray, categories: Sequence[str | None]
) -> Samples:
    predictor, size = Predictor(trained), trained.run.evaluation_batch_size
    empty = np.zeros((-len(images) % size, *images.shape[1:]), np.uint8)
    filled = np.concatenate([images, empty])
    found = [
        predictor.predict_batch(filled[start : start + size])
        for start in range(0, len(filled), size)
    ]
    maps = np.concatenate([one.anomaly_maps for one in found])[: len(images)]
    scores = np.concatenate([one.image_scores for one in found])[: len(images)]
    return Samples(source, images, categories, maps, scores)


def run_in_batches(runtime: Runtime, images: np.ndarray, batch: int):
    """What a runtime says of images that are given to it some at a time."""
    found = [
        runtime(images[start : start + batch]) for start in range(0, len(images), batch)
    ]
    maps, scores = zip(*found, strict=True)
    return np.concatenate(maps), np.concatenate(scores)


def compare(
    trained: Trained,
    samples: Samples,
    maps: np.ndarray,
    scores: np.ndarray,
    own: GoodImages | None = None,
) -> Differences:
    """What a runtime says against what the run says.

    Args:
      trained: for its thresholds.
      samples: with what the run says.
      maps, scores: what the runtime says.
      own: what its thresholds follow from; None: those of the run hold, and a score that is
        as close to one as twice the largest difference counts as equal to it.
    """
    if maps.shape != samples.maps.shape or not np.isfinite(maps).all():
        infinite = float("inf")
        return Differences(infinite, infinite, infinite, infinite, None)
    of_maps = np.abs(maps - samples.maps)
    of_scores = np.abs(scores - samples.scores)
    flipped = None
    if trained.calibration is not None:
        of_run = _thresholds(trained, trained.calibration, samples)
        if own is None:
            close = np.abs(scores - of_run) <= 2 * of_scores.max()
            verdicts = (scores > of_run) & ~close
        else:
            verdicts = scores > _thresholds(trained, own, samples)
        flipped = int((verdicts != (samples.scores > of_run)).sum())
    return Differences(
        maps=float(of_maps.max()),
        scores=float(of_scores.max()),
        relative_maps=float(of_maps.max() / max(1.0, np.abs(samples.maps).max())),
        relative_scores=float((of_scores / np.maximum(1.0, np.abs(samples.scores))).max()),
        flipped=flipped,
    )


def _thresholds(trained: Trained, good: GoodImages, samples: Samples) -> np.ndarray:
    """The threshold of each sample, [N], at the run's default rate."""
    rate = trained.run.config.calibration.false_positive_rate
    return np.array([good.of(name).threshold(rate) for name in samples.categories])


def say_what_is_compared(samples: Samples) -> None:
    """Prints the heading of what `prove` prints."""
    count = in_words(len(samples.images), "image", "images")
    print(f"Compared with the run on {count} ({samples.source}); largest differences:")


def prove(
    trained: Trained,
    samples: Samples,
    runtimes: Mapping[str, Runtime],
    *,
    precision: str,
    batches: Sequence[int] = BATCHES,
    own: GoodImages | None = None,
) -> dict[str, Differences]:
    """Compares runtimes of a file with the run, and prints the differences.

    Args:
      trained: the run.
      samples: to compare on.
      runtimes: of the file, by name.
      precision: of the file.
      batches: sizes of batches to give them.
      own: what the file's thresholds follow from, if not from what the run measured.

    Returns:
      The differences by the name of the runtime and the batch.

    Raises:
      UserError: they are beyond the bound, or a verdict flips.
    """
    bound = BOUNDS[precision]
    if trained.run.config.encoder.dtype == "bfloat16":
        bound = BFLOAT16_BOUND
    found = {}
    for name, runtime in runtimes.items():
        for batch in batches:
            runtime(samples.images[:batch])  # it may compile
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
            f"({bound.maps:g} of the largest value"
            f"{'' if bound.may_flip else ', and no other verdict'}) in {'; '.join(wrong)}. "
            "Export with another --precision, or report it with the lines above."
        )
    return found


def proof_of(samples: Samples, found: Mapping[str, Differences]) -> dict[str, Any]:
    """What `prove` found, for the description of the file."""
    return {
        "images": len(samples.images),
        "source": samples.source,
        "runtimes": {name: one._asdict() for name, one in found.items()},
    }


def tolerance_of(samples: Samples, found: Mapping[str, Differences]) -> float:
    """The `score_tolerance` of a file.

    Args:
      samples: for the size of scores.
      found: differences from what its thresholds were measured with; empty: none.
    """
    smallest = SMALLEST_TOLERANCE * max(1.0, float(abs(samples.scores).max()))
    return max([smallest, *(2 * one.scores for one in found.values())])


def openvino_runtime(path: Path) -> tuple[str, Runtime] | None:
    """OpenVINO as a second runtime and its name; None where it is not installed."""
    if importlib.util.find_spec("openvino") is None:
        return None
    # Imported late: it is optional, and takes a second. Without its telemetry, which would
    # fork this process.
    sys.modules.setdefault("openvino_telemetry", None)
    import openvino

    compiled = openvino.Core().compile_model(
        str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )

    def predict(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = compiled(images)
        return found[0], found[1]

    return f"OpenVINO {openvino.__version__.partition('-')[0]}", predict
