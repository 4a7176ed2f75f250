"""Measures new good photos, and sets the thresholds of a model by them."""

import datetime
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from scipy import stats

from harmoniad_jax.errors import UserError
from harmoniad_jax.inference import new_thresholds
from harmoniad_jax.inference.drift import compare
from harmoniad_jax.inference.files import guess_category, photos_below
from harmoniad_jax.inference.image_model import ImageModel, Query, Question
from harmoniad_jax.run.normality import GoodImages, Normality
from harmoniad_jax.words import in_words

# Below it a threshold would be hardly more than a guess.
FEWEST_PHOTOS = 5
# Interquartile ranges above the upper quartile: "far out" of Tukey, "Exploratory Data
# Analysis", 1977.
FAR_OUT = 3.0
SHARE_OF_INTERVAL = 0.9
MOST_NAMES = 10


class Measured(NamedTuple):
    """Good photos of a product: files, scores [N] float32, maps [H', W'] float32, looks."""

    files: list[Path]
    scores: np.ndarray
    maps: list[np.ndarray]
    appearance: list[Mapping[str, float]]

    @property
    def normality(self) -> Normality:
        return Normality.of(self.maps, self.scores, self.appearance)


def calibrate(
    model: ImageModel,
    path: Path,
    good: Path,
    category: str | None = None,
    say: Callable[[str], None] = print,
) -> GoodImages:
    """Measures good photos and stores a new calibration beside the model.

    Photos that cannot be read, whose product is not known, or whose product has fewer than
    `FEWEST_PHOTOS`, are left out, and said.

    Args:
      model: opened, with the thresholds that it has now.
      path: of its run or file.
      good: folder of photos, none of which shows a defect.
      category: their product; None: what their folders are called.
      say: prints a line.

    Returns:
      What the model is used with from now on.

    Raises:
      UserError: nothing is left, an unknown product, or nowhere to write.
    """
    by_category = _sorted_photos(model, good, category, say)
    changed, images, problem = model.calibration, {}, ""
    for name, files in by_category.items():
        measured = _measure(model, name, files, say)
        count = len(measured.files)
        if count < FEWEST_PHOTOS:
            problem = (
                f"{good} holds {in_words(count, 'readable photo', 'readable photos')} of "
                f"{name}; {FEWEST_PHOTOS} are the least, and 30 or more are better."
            )
            say(f"left out: {problem}")
            continue
        images[name] = count
        normality = measured.normality
        _report(model, name, measured, normality, say)
        changed = (
            changed.with_category(name, normality)
            if changed
            else GoodImages({}, normality, {name: normality})
        )
    if not images:
        raise UserError(problem)
    entry = new_thresholds.Entry(
        time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        source=str(good.resolve()),
        images=images,
        good_images=changed,
    )
    new_thresholds.add(path, model.own_calibration, entry)
    return changed


def _sorted_photos(
    model: ImageModel, good: Path, category: str | None, say: Callable[[str], None]
) -> Mapping[str, Sequence[Path]]:
    """Photos by product, each content once.

    Raises:
      UserError: no photos, or the product of none is known.
    """
    if not good.is_dir():
        raise UserError(f"--good={good} is not a folder; give one with good photos.")
    if category and model.calibration:
        model.check([Query(np.zeros((1, 1), np.uint8), category)])
    found: dict[str, list[Path]] = {}
    seen, unknown = set(), []
    for file in sorted(photos_below(good)):
        name = PurePosixPath(file.relative_to(good).as_posix())
        product = category or guess_category(name, model.categories, good)
        if product is None:
            unknown.append(file)
            continue
        try:
            digest = hashlib.sha256(file.read_bytes()).digest()
        except OSError:
            digest = str(file).encode()  # its error is reported when it is measured
        if digest not in seen:
            seen.add(digest)
            found.setdefault(product, []).append(file)
    if unknown:
        choices = ", ".join(model.categories) or "any name, since the model has none"
        problem = (
            f"the product of {unknown[0]} is not known: give --category, or put the photos "
            f"into folders with the products' names ({choices})."
        )
        if not found:
            raise UserError(problem)
        say(f"left out: {in_words(len(unknown), 'photo', 'photos')}; {problem}")
    if not found:
        raise UserError(f"--good={good} holds no photos.")
    return found


def _measure(
    model: ImageModel, category: str, files: Sequence[Path], say: Callable[[str], None]
) -> Measured:
    products = {*model.categories, *model.preprocessor.shapes}
    known = category if category in products else None
    queries, question = [Query(file, known) for file in files], Question(appearance=True)
    measured = Measured([], np.zeros(0, np.float32), [], [])
    scores = []
    for file, result in zip(files, model.stream(queries, question), strict=True):
        if isinstance(result, UserError):
            say(f"left out: {result}")
            continue
        measured.files.append(file)
        measured.maps.append(result.anomaly_map)
        measured.appearance.append(result.appearance)
        scores.append(result.score)
    return measured._replace(scores=np.array(scores, np.float32))


def _report(
    model: ImageModel,
    category: str,
    measured: Measured,
    normality: Normality,
    say: Callable[[str], None],
) -> None:
    """Prints thresholds, what to expect of them, and what looks wrong."""
    rate = model.rates.false_positive_rate
    count, new = len(measured.files), normality.threshold(rate)
    say(f"{category}: {in_words(count, 'good photo', 'good photos')} measured")
    if model.calibration:
        old = model.calibration.of(category)
        threshold = old.threshold(rate)
        alarms = int((measured.scores > threshold + model.score_tolerance).sum())
        say(
            f"  threshold {threshold:.4g} -> {new:.4g}; the old one calls {alarms} of "
            "these photos defective"
        )
    else:
        old = None
        say(f"  threshold {new:.4g}; there was none")
    expected, low, high = expected_false_alarms(normality, rate)
    say(
        f"  expect {1000 * expected:.3g} of 1000 good parts to be stopped "
        f"({SHARE_OF_INTERVAL:.0%} interval: {1000 * low:.3g} to {1000 * high:.3g})"
    )
    if not normality.supports(rate):
        say(
            f"  warning: {1000 * rate:.3g} of 1000 were asked for; that takes "
            f"{int(np.ceil(1 / rate)) - 1} photos or more"
        )
    compared = compare(old, measured.scores, measured.appearance) if old else []
    if changes := [one.in_words for one in compared if one.has_changed]:
        say(
            f"  warning: these photos are unlike those before: {', '.join(changes)}. Has "
            "the light, the camera or the product changed?"
        )
    suspects = suspicious(measured.scores)
    if len(suspects):
        names = [str(measured.files[row]) for row in suspects[:MOST_NAMES]]
        more = len(suspects) - len(names)
        names += [f"and {more} more"] if more else []
        say(
            f"  warning: {in_words(len(suspects), 'photo', 'photos')} may show a defect: "
            f"{', '.join(names)}. Look at them, remove what is not good, and calibrate "
            "again."
        )


def expected_false_alarms(
    normality: Normality, false_positive_rate: float
) -> tuple[float, float, float]:
    """The share of good images above the threshold: its mean and an interval.

    With the k-th smallest of N scores as the threshold the share has the distribution
    Beta(N + 1 - k, k) over possible photos (Vovk, "Conditional validity of inductive
    conformal predictors", 2012), if new photos are like these and no scores are equal.

    Returns:
      Mean, and the ends of the central interval of `SHARE_OF_INTERVAL`.
    """
    threshold = normality.threshold(false_positive_rate)
    count = len(normality.scores)
    rank = int(np.searchsorted(normality.scores, threshold, side="right"))
    share = stats.beta(count + 1 - rank, rank)
    low, high = share.interval(SHARE_OF_INTERVAL)
    return float(share.mean()), float(low), float(high)


def suspicious(scores: np.ndarray) -> np.ndarray:
    """Rows of scores [N] far above the others, highest first."""
    low, high = np.quantile(scores, [0.25, 0.75])
    fence = high + FAR_OUT * (high - low)
    rows = np.flatnonzero(scores > fence)
    return rows[np.argsort(-scores[rows], kind="stable")]
