"""A trained model for new images: `harmoniad_jax.load("runs/a").predict(images)`."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
import scipy.ndimage

from harmoniad_jax.checkpoints.store import Checkpoints
from harmoniad_jax.data.pipeline import PREFETCHED_IMAGES
from harmoniad_jax.data.preprocess import EIGHT_CONNECTED, preprocess, read_image
from harmoniad_jax.data.records import Dataset, check_categories
from harmoniad_jax.devices.processes import available_cores
from harmoniad_jax.errors import UserError
from harmoniad_jax.inference.predictor import Predictor
from harmoniad_jax.run.calibration import Normality
from harmoniad_jax.run.identity import Identity, encoder_differences
from harmoniad_jax.run.run import prepare_run
from harmoniad_jax.run.stored import with_last_settings


class Box(NamedTuple):
    """A rectangle in pixels of the image; right and bottom are just outside."""

    left: int
    top: int
    right: int
    bottom: int


@dataclasses.dataclass(frozen=True, eq=False)
class ImageResult:
    """What the model says of one image.

    Attributes:
      anomaly_map: [S', S'] float32, larger is more anomalous.
      score: of the image, larger is more anomalous.
      category: that it was judged by; None where it was not known.
      threshold: scores above it are defective; None if none was ever set.
      pixel_threshold: the same for `anomaly_map`.
      normalised_score: in [0, 1], 0.5 at the threshold and 0 at the median of good
        images; None without threshold.
      normalised_map: [S', S'] float32, the same for pixels; None without threshold.
      boxes: around the regions above `pixel_threshold`, largest first.
      size: (width, height) of the image in pixels.
    """

    anomaly_map: np.ndarray = dataclasses.field(repr=False)
    score: float
    category: str | None
    threshold: float | None
    pixel_threshold: float | None
    normalised_score: float | None
    normalised_map: np.ndarray | None = dataclasses.field(repr=False)
    boxes: tuple[Box, ...]
    size: tuple[int, int]

    @property
    def is_defective(self) -> bool | None:
        """The verdict; None without threshold."""
        return None if self.threshold is None else self.score > self.threshold


class Query(NamedTuple):
    """An image to judge.

    image: [H0, W0, 3] or [H0, W0] uint8, or a file.
    category: product class, if known.
    """

    image: np.ndarray | Path
    category: str | None = None


class _Loaded(NamedTuple):
    pixels: np.ndarray | None  # [S, S, 3] uint8; None: it could not be read
    size: tuple[int, int]
    error: str


class TrainedModel:
    """The latest checkpoint of a run, ready for new images, on every device."""

    def __init__(self, workdir: str | Path, *, encoder: str | None = None):
        """Restores a run.

        Args:
          workdir: folder of a training run that was finished.
          encoder: where the encoder is, if not where it was in training.

        Raises:
          UserError: no checkpoint, training is not finished, or another encoder.
        """
        workdir = Path(workdir).expanduser()
        with Checkpoints(workdir, read_only=True) as checkpoints:
            stored = checkpoints.read_identity()
            self._check_finished(checkpoints, workdir)
            self._calibration = checkpoints.read_calibration()
            config = self._adapted(with_last_settings(stored.config, workdir), encoder)
            run = prepare_run(config, Dataset(train=[], test=[]))
            given = Identity.of(run.config, run.encoder, stored.train_fingerprint)
            problems = encoder_differences(stored, given)
            if problems:
                raise UserError(
                    f"{'; '.join(problems)}. Name the encoder that {workdir} was trained "
                    "with."
                )
            state = checkpoints.restore(run.abstract_state()).state
            # It may have turned out that the last checkpoint is damaged.
            self._check_finished(checkpoints, workdir)
        self.config = run.config
        self._batch_size = run.evaluation_batch_size
        self._predictor = Predictor(run, state, run.place_encoder())

    def _check_finished(self, checkpoints: Checkpoints, workdir: Path) -> None:
        if not checkpoints.finished:
            num_steps = checkpoints.read_identity().config.train.num_steps
            raise UserError(
                f"{workdir} is at step {checkpoints.latest_step} of {num_steps}: finish "
                "its training first, with the command that began it."
            )

    def _adapted(self, config: Any, encoder: str | None) -> Any:
        """The run's settings on this machine: its cores, and where its encoder is."""
        settings = config.evaluation
        if self._calibration is not None:
            # Scores are compared with those of the calibration: same settings.
            settings = dataclasses.replace(settings, **self._calibration.settings)
        return dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, threads=available_cores()),
            encoder=dataclasses.replace(
                config.encoder, name=encoder or config.encoder.name
            ),
            evaluation=settings,
        )

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
        category: str | None = None,
        false_positive_rate: float | None = None,
        threshold: float | None = None,
    ) -> list[ImageResult]:
        """Judges images.

        Args:
          images: arrays [H0, W0, 3] or [H0, W0] uint8, or paths of image files.
          category: product class of all of them, if known: its own threshold is taken,
            if it has one.
          false_positive_rate: share of good images that may be called defective, in
            (0, 1); that of the run's settings if None.
          threshold: of the score, instead of one that follows from the rate.

        Raises:
          UserError: a file cannot be read, or the category is not known.
          ValueError: an array of another shape or dtype.
          TypeError: a single image.
        """
        single = isinstance(images, np.ndarray) and images.ndim < 4
        if single or isinstance(images, str | Path):
            raise TypeError("predict takes a list of images, such as predict([image])")
        queries = [
            Query(image if isinstance(image, np.ndarray) else Path(image), category)
            for image in images
        ]
        results = list(
            self.stream(
                queries, false_positive_rate=false_positive_rate, threshold=threshold
            )
        )
        for result in results:
            if isinstance(result, UserError):
                raise result
        return results

    def stream(
        self,
        queries: Sequence[Query],
        *,
        false_positive_rate: float | None = None,
        threshold: float | None = None,
    ) -> Iterator[ImageResult | UserError]:
        """Judges images one after the other, in order; an error takes its image's place.

        Args and Raises: see `predict`; mistakes are found before the first image is asked
        for. Memory is that of a batch.
        """
        self._check(queries, false_positive_rate, threshold)
        return self._stream(queries, false_positive_rate, threshold)

    def _stream(
        self, queries: Sequence[Query], rate: float | None, threshold: float | None
    ) -> Iterator[ImageResult | UserError]:
        loaded = iter(
            grain.MapDataset.source([query.image for query in queries])
            .map(self._load)
            .to_iter_dataset(grain.ReadOptions(self.config.data.threads, PREFETCHED_IMAGES))
        )
        pairs = zip(queries, loaded, strict=True)
        while chunk := list(itertools.islice(pairs, self._batch_size)):
            yield from self._judge(chunk, rate, threshold)

    def _check(
        self, queries: Sequence[Query], rate: float | None, threshold: float | None
    ) -> None:
        if rate is not None and not 0 < rate < 1:
            raise UserError(
                f"the false positive rate is {rate}; it must be between 0 and 1."
            )
        if threshold is not None and math.isnan(threshold):
            raise UserError("the threshold is no number; give a score.")
        if self._calibration is not None:
            wanted = {query.category for query in queries} - {None}
            check_categories(
                sorted(wanted), self.categories, "the trained model", setting="category"
            )
        for query in queries:
            if isinstance(query.image, np.ndarray):
                _check_array(query.image)

    def _load(self, image: np.ndarray | Path) -> _Loaded:
        try:
            if not isinstance(image, np.ndarray):
                image = read_image(image)
        except UserError as error:
            return _Loaded(None, (0, 0), str(error))
        if image.ndim == 2:
            image = np.repeat(image[..., None], 3, axis=-1)
        side = self.config.data.image_side
        return _Loaded(preprocess(image, side), (image.shape[1], image.shape[0]), "")

    def _judge(
        self,
        chunk: Sequence[tuple[Query, _Loaded]],
        rate: float | None,
        threshold: float | None,
    ) -> Iterator[ImageResult | UserError]:
        """Predicts a batch, which is filled up with zeros."""
        side = self.config.data.image_side
        batch = np.zeros((self._batch_size, side, side, 3), np.uint8)
        for row, (_, loaded) in enumerate(chunk):
            if loaded.pixels is not None:
                batch[row] = loaded.pixels
        maps, scores, _ = self._predictor.predict_batch(batch)
        for row, (query, loaded) in enumerate(chunk):
            if loaded.pixels is None:
                yield UserError(loaded.error)
            else:
                yield self._result(
                    maps[row],
                    float(scores[row]),
                    query.category,
                    loaded.size,
                    rate,
                    threshold,
                )

    def _result(
        self,
        anomaly_map: np.ndarray,
        score: float,
        category: str | None,
        size: tuple[int, int],
        rate: float | None,
        threshold: float | None,
    ) -> ImageResult:
        normality = self._normality(category)
        pixel_threshold = normalised_score = normalised_map = None
        if normality is not None:
            settings = self.config.calibration
            if threshold is None:
                threshold = normality.threshold(rate or settings.false_positive_rate)
            pixel_threshold = normality.pixel_threshold(settings.pixel_false_positive_rate)
            normalised_score = float(normality.normalise_score(score, threshold))
            normalised_map = normality.normalise_map(anomaly_map, pixel_threshold)
        return ImageResult(
            anomaly_map=anomaly_map,
            score=score,
            category=category,
            threshold=threshold,
            pixel_threshold=pixel_threshold,
            normalised_score=normalised_score,
            normalised_map=normalised_map,
            boxes=find_boxes(anomaly_map, pixel_threshold, size),
            size=size,
        )

    def _normality(self, category: str | None) -> Normality | None:
        return self._calibration.of(category) if self._calibration else None


def find_boxes(
    anomaly_map: np.ndarray, threshold: float | None, size: tuple[int, int]
) -> tuple[Box, ...]:
    """Boxes around the 8-connected regions above a threshold, largest region first.

    Args:
      anomaly_map: [S', S'] float32.
      threshold: of its pixels; None: no boxes.
      size: (width, height) of the image that the boxes are for.
    """
    if threshold is None:
        return ()
    regions, count = scipy.ndimage.label(anomaly_map > threshold, EIGHT_CONNECTED)
    pixels = np.bincount(regions.ravel(), minlength=count + 1)[1:]
    places = scipy.ndimage.find_objects(regions)
    (map_height, map_width), (width, height) = anomaly_map.shape, size
    boxes = []
    for region in np.argsort(-pixels, kind="stable"):
        rows, columns = places[region]
        boxes.append(
            # Whole numbers throughout: rounding would lead out of the image.
            Box(
                left=columns.start * width // map_width,
                top=rows.start * height // map_height,
                right=-(-columns.stop * width // map_width),
                bottom=-(-rows.stop * height // map_height),
            )
        )
    return tuple(boxes)


def _check_array(image: np.ndarray) -> None:
    shape_fits = image.ndim == 2 or (image.ndim == 3 and image.shape[-1] == 3)
    if image.dtype != np.uint8 or not shape_fits or 0 in image.shape:
        raise ValueError(
            f"an image is {image.dtype} {image.shape}; expected uint8 [H, W, 3] or [H, W]"
        )
