"""How often the server reports a change where there is none, and where there is one.

    python benchmarks/measure_drift.py model.onnx photos

`photos` holds the products of the model in MVTec AD's layout. Good test images of a
product, 50 at most as in a window of the server, are compared with its good images of
calibration: as they are, and under each corruption of `harmoniad_jax.robustness`. For false
alarms, half of them are compared with the other half too, drawn anew each time: there
nothing has changed.
"""

import argparse
import collections
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harmoniad_jax import terminal
from harmoniad_jax.data.records import ImageFile
from harmoniad_jax.errors import UserError
from harmoniad_jax.inference.drift import SCORE, Compared, compare
from harmoniad_jax.inference.files import photos_below
from harmoniad_jax.inference.image_model import ImageModel, Query, Question
from harmoniad_jax.run.normality import Normality
from harmoniad_jax.serving.drift import WINDOW
from harmoniad_jax.serving.opening import open_model
from harmoniad_jax.studies.corruptions import CORRUPTIONS, Corrupted

FEWEST = 10  # images of a half


class Look(NamedTuple):
    """Images of a product: scores [N] and appearance [N]."""

    scores: list[float]
    appearance: list[dict[str, float]]

    def some(self, rows: Sequence[int]) -> "Look":
        return Look(*([values[row] for row in rows] for values in self))

    @property
    def normality(self) -> Normality:
        maps = len(self.scores) * [np.zeros((1, 1))]
        return Normality.of(maps, np.array(self.scores), self.appearance)


class Seen(NamedTuple):
    """Whether a change is reported: by scores alone, and by all that is compared."""

    by_scores: bool
    by_all: bool
    words: list[str]


def seen(good: Normality, look: Look) -> Seen:
    """Compares images with good ones, in both ways."""
    found: list[Compared] = compare(good, *look)
    (alone,) = compare(good, look.scores)
    words = [one.in_words for one in found if one.has_changed and one.name != SCORE]
    return Seen(alone.has_changed, any(one.has_changed for one in found), words)


def judge(model: ImageModel, images: Sequence[ImageFile], category: str) -> Look:
    """Scores and appearance of a product's images."""
    queries = [Query(image, category) for image in images]
    look = Look([], [])
    for result in model.stream(queries, Question(appearance=True)):
        if isinstance(result, UserError):
            raise result
        look.scores.append(result.score)
        look.appearance.append(dict(result.appearance))
    return look


def corrupted(
    files: Sequence[Path], category: str, name: str, severity: int, model: ImageModel
) -> list[ImageFile]:
    """The images as the corruption benchmark has them."""
    levels = model.preprocessor.levels
    return [
        Corrupted(
            file,
            corruption=name,
            severity=severity,
            key=f"{category}/{file.name}",
            levels=levels,
        )
        for file in files
    ]


def false_alarms(looks: Sequence[Look], draws: int) -> tuple[np.ndarray, int]:
    """Shares of comparisons of halves that report a change, in both ways; their count."""
    rng, found = np.random.default_rng(0), []
    for look in looks:
        count = len(look.scores)
        if count < 2 * FEWEST:
            continue
        for _ in range(draws):
            rows = rng.permutation(count)
            halves = look.some(rows[: count // 2]), look.some(rows[count // 2 :])
            found.append(seen(halves[0].normality, halves[1])[:2])
    return np.mean(found, axis=0) if found else np.zeros(2), len(found)


def run(flags: argparse.Namespace) -> int:
    model = open_model(flags.model).model
    files = {
        name: photos_below(flags.photos / name / "test" / "good")[:WINDOW]
        for name in model.categories
        if (flags.photos / name / "test" / "good").is_dir()
    }
    if not files:
        raise UserError(f"{flags.photos} holds no test/good of {model.categories}.")
    for name in files:
        if not model.calibration.of(name).appearance:
            raise UserError(
                f"{flags.model} does not know what good images of {name} look like: train "
                "or calibrate with this version."
            )
    print("| images | by scores | by scores and appearance | it says |")
    print("|---|--:|--:|---|")

    def row(title: str, looks: dict[str, Look]) -> None:
        found = [seen(model.calibration.of(name), one) for name, one in looks.items()]
        words = collections.Counter(word for one in found for word in one.words)
        counts = [sum(one[way] for one in found) for way in (0, 1)]
        said = ", ".join(f"{word} ({times})" for word, times in words.most_common(3))
        cells = [title, *(f"{count} of {len(found)}" for count in counts), said]
        print(f"| {' | '.join(cells)} |", flush=True)

    clean = {name: judge(model, some, name) for name, some in files.items()}
    row("as they are", clean)
    for name in flags.corruptions:
        for severity in flags.severities:
            looks = {
                product: judge(
                    model, corrupted(some, product, name, severity, model), product
                )
                for product, some in files.items()
            }
            row(f"{name}, severity {severity}", looks)
    shares, count = false_alarms(list(clean.values()), flags.draws)
    print(
        f"\nHalf of the good test images against the other half, {count} times: a change "
        f"is reported in {shares[0]:.2%} by scores, in {shares[1]:.2%} by scores and "
        "appearance."
    )
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = terminal.Parser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("model", help="A finished run's folder, or an exported .onnx.")
    add("photos", type=Path)
    add("--corruptions", nargs="*", default=list(CORRUPTIONS), choices=list(CORRUPTIONS))
    add("--severities", nargs="*", type=int, default=[1, 3, 5], choices=range(1, 6))
    add("--draws", type=int, default=500, help="Halves, of each product.")
    flags = parser.parse_args(arguments)
    return terminal.run(lambda: run(flags))


if __name__ == "__main__":
    sys.exit(main())
