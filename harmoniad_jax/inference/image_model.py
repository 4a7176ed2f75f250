"""Judges images: all that a trained model does but computing its anomaly maps.

Whatever runs the network, images are decoded, scaled and compared with thresholds here. So
a run and its exported file cannot differ in that.
"""

import abc
import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from harmoniad_jax.data.ahead import prefetched
from harmoniad_jax.data.appearance import measure_appearance
from harmoniad_jax.data.preprocess import Preprocessor
from harmoniad_jax.data.records import ImageFile, check_categories
from harmoniad_jax.errors import UserError
from harmoniad_jax.inference.result import ImageResult, find_boxes
from harmoniad_jax.phases import phase
from harmoniad_jax.run.normality import GoodImages, Normality


class Query(NamedTuple):
    """An image to judge.

    image: [H0, W0, 3] RGB or [H0, W0], or a file, on disk or in memory.
    category: product class, if known.
    """

    image: np.ndarray | ImageFile
    category: str | None = None


class Question(NamedTuple):
    """How images are judged.

    false_positive_rate: share of good images that may be called defective, in (0, 1);
        None: that of the run's settings.
    threshold: of the score, instead of one that follows from the rate.
    thumbnail_side: longer side of the thumbnails in pixels; 0: none are made.
    appearance: whether light, contrast and more are measured, see `data/appearance.py`.
    """

    false_positive_rate: float | None = None
    threshold: float | None = None
    thumbnail_side: int = 0
    appearance: bool = False


THE_RUNS_OWN = Question()


class Loaded(NamedTuple):
    """A decoded image.

    pixels: [H, W, 3] uint8, what the network takes; None: it could not be read.
    size: (width, height) of the image in pixels.
    note, thumbnail, appearance: see `ImageResult`.
    error: why it could not be read, in words.
    """

    pixels: np.ndarray | None
    size: tuple[int, int] = (0, 0)
    note: str = ""
    thumbnail: np.ndarray | None = None
    error: str = ""
    appearance: Mapping[str, float] | None = None


class Rates(NamedTuple):
    """Shares of what is good that may be called defective, in (0, 1).

    false_positive_rate: of images.
    pixel_false_positive_rate: of the pixels of good images.
    """

    false_positive_rate: float
    pixel_false_positive_rate: float


class ImageModel(abc.ABC):
    """A model of good products, ready for new images."""

    def __init__(
        self,
        preprocessor: Preprocessor,
        calibration: GoodImages | None,
        rates: Rates,
        *,
        batch_sizes: Sequence[int],
        threads: int,
        score_tolerance: float = 0.0,
    ):
        """Puts it together.

        Args:
          preprocessor: makes the network's input of an image.
          calibration: what good images score; None where no image was held out.
          rates: what is accepted where a call does not say.
          batch_sizes: of images that are judged at once, ascending. A program is
            prepared for each when it is first needed.
          threads: that decode images.
          score_tolerance: by how much scores may differ from those of the calibration for
            no other reason than that another runtime computes them. A score that is so
            close to the threshold counts as equal to it.
        """
        self._preprocessor, self._calibration, self._rates = (
            preprocessor,
            calibration,
            rates,
        )
        self._batch_sizes, self._threads = tuple(batch_sizes), threads
        self._score_tolerance = score_tolerance
        self._own_calibration = calibration

    @abc.abstractmethod
    def _predict_batch(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[B, H, W, 3] uint8 -> anomaly maps [B, H', W'] and scores [B], float32.

        B is at most the batch size.
        """

    @property
    def preprocessor(self) -> Preprocessor:
        """What makes the network's input of an image."""
        return self._preprocessor

    def limit_megapixels(self, most: float) -> None:
        """Refuses larger images from now on, before they are decoded."""
        limit = min(most, self._preprocessor.max_megapixels)
        self._preprocessor = dataclasses.replace(self._preprocessor, max_megapixels=limit)

    @property
    def calibration(self) -> GoodImages | None:
        """What good images score; None where no image was held out."""
        return self._calibration

    @property
    def own_calibration(self) -> GoodImages | None:
        """What the model was made with, whatever thresholds were set after that."""
        return self._own_calibration

    def use(self, calibration: GoodImages | None) -> None:
        """Judges by other good images from now on."""
        self._calibration = calibration

    @property
    def rates(self) -> Rates:
        """What is accepted where a call does not say."""
        return self._rates

    @property
    def batch_size(self) -> int:
        """Images that are judged at once, at most."""
        return self._batch_sizes[-1]

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Sizes of batches that a program is prepared for, ascending."""
        return self._batch_sizes

    @property
    def threads(self) -> int:
        """That decode images."""
        return self._threads

    @property
    def score_tolerance(self) -> float:
        """A score that is so close to the threshold counts as equal to it."""
        return self._score_tolerance

    @property
    def categories(self) -> tuple[str, ...]:
        """The product classes of training; empty where no image was held out."""
        known = self._calibration
        return tuple(sorted([*known.per_category, *known.others])) if known else ()

    @property
    def categories_without_threshold(self) -> tuple[str, ...]:
        """Those of them that the threshold of all together is taken for.

        A single image of each was there to train on, so that none could be held out.
        """
        return self._calibration.others if self._calibration else ()

    def predict(
        self,
        images: Iterable[np.ndarray | str | Path],
        *,
        channels: Literal["RGB", "BGR"] = "RGB",
        category: str | None = None,
        false_positive_rate: float | None = None,
        threshold: float | None = None,
    ) -> list[ImageResult]:
        """Judges images.

        Args:
          images: arrays [H0, W0, 3] or [H0, W0], or paths of image files. Arrays are uint8,
            or deeper and on the scale of the run's images.
          channels: the order of colours in arrays: "RGB", or "BGR" as OpenCV has it. The
            wrong one gives other scores and other verdicts.
          category: product class of all of them, if known: its own threshold is taken,
            if it has one.
          false_positive_rate: share of good images that may be called defective, in
            (0, 1); that of the run's settings if None.
          threshold: of the score, instead of one that follows from the rate.

        Raises:
          UserError: a file cannot be read, or the category is not known.
          ValueError: an array of another shape or dtype, or another order of channels.
          TypeError: a single image.
        """
        if channels not in ("RGB", "BGR"):
            raise ValueError(f"channels is {channels!r}; expected 'RGB' or 'BGR'")
        single = isinstance(images, np.ndarray) and images.ndim < 4
        if single or isinstance(images, str | Path):
            raise TypeError("predict takes a list of images, such as predict([image])")
        queries = [
            Query(
                _in_rgb(image, channels) if isinstance(image, np.ndarray) else Path(image),
                category,
            )
            for image in images
        ]
        results = list(self.stream(queries, Question(false_positive_rate, threshold)))
        for result in results:
            if isinstance(result, UserError):
                raise result
        return results

    def stream(
        self, queries: Sequence[Query], question: Question = THE_RUNS_OWN
    ) -> Iterator[ImageResult | UserError]:
        """Judges images one after the other, in order; an error takes its image's place.

        Args and Raises: see `predict`; mistakes are found before the first image is asked
        for. Memory is that of a batch.
        """
        self.check(queries, question)
        return self._stream(queries, question)

    def check(self, queries: Sequence[Query], question: Question = THE_RUNS_OWN) -> None:
        """Refuses what cannot be judged; no file is opened.

        Raises:
          UserError: the category is not known, or a rate or threshold is none.
          ValueError: an array of another shape or dtype.
        """
        rate, threshold = question.false_positive_rate, question.threshold
        if rate is not None and not 0 < rate < 1:
            raise UserError(
                f"the false positive rate is {rate}; it must be between 0 and 1."
            )
        if threshold is not None and math.isnan(threshold):
            raise UserError("the threshold is not a number; give a score.")
        if self._calibration is not None:
            wanted = {query.category for query in queries} - {None}
            check_categories(
                sorted(wanted), self.categories, "the trained model", setting="category"
            )
        for query in queries:
            if isinstance(query.image, np.ndarray):
                _check_array(query.image)

    def _stream(
        self, queries: Sequence[Query], question: Question
    ) -> Iterator[ImageResult | UserError]:
        """Predicts some images at a time, in as many batches as they have shapes.

        With several shapes more are taken at a time: else most batches would be of one
        image.
        """
        loaded = prefetched(
            queries,
            lambda query: self.load_image(query, question),
            self._threads,
        )
        size = len(self._preprocessor.all_shapes) * self.batch_size
        pairs = zip(queries, loaded, strict=True)
        while chunk := _next_of(pairs, size):
            with phase("judging"):
                predicted = self.predict_pixels([one.pixels for _, one in chunk])
            for (query, one), found in zip(chunk, predicted, strict=True):
                if found is None:
                    yield UserError(one.error)
                else:
                    yield self.result(query, question, one, *found)

    def predict_pixels(
        self, images: Sequence[np.ndarray | None]
    ) -> list[tuple[np.ndarray, float] | None]:
        """Anomaly map and score of each image, in order; None of None.

        With `load_image` and `result` a caller can do what `stream` does, and batch
        images that are judged in different ways.

        Args:
          images: `Loaded.pixels`, of any shapes.
        """
        rows_of: dict[tuple[int, ...], list[int]] = {}
        for row, pixels in enumerate(images):
            if pixels is not None:
                rows_of.setdefault(pixels.shape, []).append(row)
        found: list[tuple[np.ndarray, float] | None] = len(images) * [None]
        for rows in rows_of.values():
            for start in range(0, len(rows), self.batch_size):
                some = rows[start : start + self.batch_size]
                maps, scores = self._predict_batch(np.stack([images[row] for row in some]))
                for place, row in enumerate(some):
                    found[row] = (maps[place], float(scores[place]))
        return found

    def load_image(self, query: Query, question: Question = THE_RUNS_OWN) -> Loaded:
        """Decodes an image once, for encoder and eye; errors are in the result."""
        preprocessor, image = self._preprocessor, query.image
        try:
            if isinstance(image, np.ndarray):
                decoded = preprocessor.from_array(image)
            else:
                decoded = preprocessor.decode(image)
        except UserError as error:
            return Loaded(None, error=str(error))
        image, note = decoded.image, decoded.note
        pixels = preprocessor.scale(image, query.category)
        loaded = Loaded(pixels, decoded.size, note)
        if question.appearance:
            loaded = loaded._replace(appearance=measure_appearance(pixels))
        if side := question.thumbnail_side:
            image.thumbnail((side, side))
            loaded = loaded._replace(thumbnail=np.asarray(image.convert("RGB")))
        return loaded

    def result(
        self,
        query: Query,
        question: Question,
        loaded: Loaded,
        anomaly_map: np.ndarray,
        score: float,
    ) -> ImageResult:
        """What follows from an image's map [H', W'] and score: verdict and boxes."""
        normality, threshold = self._normality(query.category), question.threshold
        pixel_threshold = normalised_score = normalised_map = None
        if normality is not None:
            rate = question.false_positive_rate or self._rates.false_positive_rate
            if threshold is None:
                threshold = normality.threshold(rate)
                if abs(score - threshold) <= self._score_tolerance:
                    # Most likely it is the image that set the threshold.
                    score = threshold
            pixel_threshold = normality.pixel_threshold(
                self._rates.pixel_false_positive_rate
            )
            normalised_score = float(normality.normalise_score(score, threshold))
            normalised_map = normality.normalise_map(anomaly_map, pixel_threshold)
        return ImageResult(
            anomaly_map=anomaly_map,
            score=score,
            category=query.category,
            threshold=threshold,
            pixel_threshold=pixel_threshold,
            normalised_score=normalised_score,
            normalised_map=normalised_map,
            boxes=find_boxes(anomaly_map, pixel_threshold, loaded.size),
            size=loaded.size,
            note=loaded.note,
            thumbnail=loaded.thumbnail,
            appearance=loaded.appearance,
        )

    def _normality(self, category: str | None) -> Normality | None:
        return self._calibration.of(category) if self._calibration else None


def _next_of(pairs: Iterator[Any], count: int) -> list[Any]:
    """The next so many at most, which are decoded then."""
    with phase("decoding"):
        return list(itertools.islice(pairs, count))


def _check_array(image: np.ndarray) -> None:
    shape_fits = image.ndim == 2 or (image.ndim == 3 and image.shape[-1] == 3)
    if image.dtype.kind not in "uif" or not shape_fits or 0 in image.shape:
        raise ValueError(
            f"an image is {image.dtype} {image.shape}; expected numbers [H, W, 3], RGB, or "
            "[H, W], mostly uint8"
        )


def _in_rgb(image: np.ndarray, channels: str) -> np.ndarray:
    return image if channels == "RGB" or image.ndim == 2 else image[..., ::-1]
