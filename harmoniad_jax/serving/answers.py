"""What the server says of a model and of images, as JSON."""

import base64
import io
from collections.abc import Collection
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field

from harmoniad_jax import __version__
from harmoniad_jax.errors import UserError
from harmoniad_jax.inference.image_model import ImageModel
from harmoniad_jax.inference.result import ImageResult
from harmoniad_jax.inference.writer import SCALE, draw_overlay
from harmoniad_jax.report.pictures import STRONGEST_HEAT, WEAKEST_HEAT, heat_map, resize
from harmoniad_jax.serving.limits import Limits
from harmoniad_jax.serving.opening import Opened

Verdict = Literal["good", "defective"]
Picture = Literal["map", "overlay", "heat", "thumbnail"]
PICTURES: tuple[Picture, ...] = ("map", "overlay", "heat", "thumbnail")
# Longer side of the pictures in pixels.
THUMBNAIL_SIDE = 1024
# Good parts of 1000 that a person may choose to stop.
STOPPED_OF_1000 = (1, 2, 5, 10, 20, 30, 50, 70, 100, 150, 200, 300)


class Judged(BaseModel):
    """An image. Numbers are those of `predict`; larger scores are more anomalous."""

    name: str
    score: float | None = None
    normalised_score: float | None = Field(None, description="0.5 at the threshold")
    threshold: float | None = Field(None, description="scores above it are defective")
    verdict: Verdict | None = None
    category: str | None = None
    boxes: list[tuple[int, int, int, int]] = Field(
        [], description="left, top, right, bottom in pixels, largest region first"
    )
    width: int | None = None
    height: int | None = None
    note: str = ""
    error: str = Field("", description="why it could not be read; empty if it could")
    pictures: dict[Picture, str] = Field({}, description="base64, if `include` named them")


class Times(BaseModel):
    """Seconds that a request took in the server."""

    receiving: float
    judging: float


class Answer(BaseModel):
    """The images of a request, in order."""

    results: list[Judged]
    seconds: Times


class StoppedParts(BaseModel):
    """A threshold in a person's words.

    The rate is promised only where enough good images were measured.
    """

    of_1000: float
    threshold: float
    promised: bool


class CategoryFacts(BaseModel):
    """A product. `name` is null for images whose product is not known."""

    name: str | None
    good_images: int = Field(description="that its thresholds follow from")
    default: StoppedParts
    choices: list[StoppedParts]


class ModelFacts(BaseModel):
    """What the server judges with."""

    name: str
    kind: str
    version: str
    categories: list[CategoryFacts] = Field(description="empty: it has no thresholds")
    calibrated: str | None = Field(
        description="when its thresholds were set, ISO 8601; null: they are of training"
    )
    score_tolerance: float
    limits: dict[str, float]
    collects: bool = Field(description="whether `/v1/good` keeps images")
    watches: bool = Field(description="whether a folder is watched")


class WatchedImage(Judged):
    """An image of the watched folder."""

    number: int = Field(description="since the server started, from 1")


class Watched(BaseModel):
    """Images of the watched folder, oldest first. `last`: for the next call's `after`."""

    last: int
    results: list[WatchedImage]


class Problem(BaseModel):
    """Why a request was refused, in one line."""

    error: str


def judged(name: str, result: ImageResult | UserError, include: Collection[str]) -> Judged:
    """What a client is told of an image. Bytes of names that are not text are spelt out.

    Args:
      name: that the client gave it.
      result: of the model.
      include: of `PICTURES`.
    """
    name = _spelt_out(name)
    if isinstance(result, UserError):
        return Judged(name=name, error=_spelt_out(" ".join(str(result).split())))
    verdicts = {None: None, False: "good", True: "defective"}
    return Judged(
        name=name,
        score=result.score,
        normalised_score=result.normalised_score,
        threshold=result.threshold,
        verdict=verdicts[result.is_defective],
        category=_spelt_out(result.category) if result.category else None,
        boxes=[tuple(box) for box in result.boxes],
        width=result.size[0],
        height=result.size[1],
        note=result.note,
        pictures=_pictures(result, include),
    )


def _spelt_out(text: str) -> str:
    """Text that JSON can carry: a file name that is not UTF-8 has lone surrogates."""
    return text.encode(errors="backslashreplace").decode()


def _pictures(result: ImageResult, include: Collection[str]) -> dict[str, str]:
    found, normalised = {}, result.normalised_map
    if "thumbnail" in include:
        found["thumbnail"] = _encoded(result.thumbnail, "JPEG", quality=88)
    if normalised is None:
        return found
    if "map" in include:
        levels = np.round(normalised * 65535).astype(np.uint16)
        found["map"] = _encoded(levels, "PNG")
    if "heat" in include:
        found["heat"] = _encoded(_heat(normalised, result.thumbnail.shape[:2]), "PNG")
    if "overlay" in include:
        found["overlay"] = _encoded(draw_overlay(result.thumbnail, normalised), "PNG")
    return found


def _heat(normalised_map: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The map as a transparent layer, [h, w, 4] uint8, as strong as an overlay's."""
    # Half the thumbnail is fine enough for a smooth map, and a quarter of the bytes.
    values = resize(normalised_map, (max(shape[0] // 2, 1), max(shape[1] // 2, 1)))
    strength = np.clip((values - WEAKEST_HEAT) / (1 - WEAKEST_HEAT), 0, 1)
    # The page's slider weakens it: at its end the layer hides all below it.
    alpha = (255 * np.minimum(strength / STRONGEST_HEAT, 1.0)).round().astype(np.uint8)
    return np.dstack([heat_map(values, SCALE), alpha])


def _encoded(values: np.ndarray, kind: str, **options) -> str:
    content = io.BytesIO()
    Image.fromarray(values).save(content, kind, **options)
    return base64.b64encode(content.getbuffer()).decode()


def model_facts(
    opened: Opened,
    limits: Limits,
    *,
    calibrated: str | None,
    collects: bool,
    watches: bool,
) -> ModelFacts:
    """What a client is told of the model."""
    model = opened.model
    names: list[str | None] = [*model.categories]
    # A model of one product takes every image for it.
    names += [None] if model.calibration and len(names) > 1 else []
    return ModelFacts(
        name=opened.path.resolve().name,
        kind=opened.kind,
        version=__version__,
        categories=[_category_facts(model, name) for name in names],
        calibrated=calibrated,
        score_tolerance=model.score_tolerance,
        collects=collects,
        watches=watches,
        limits={
            name: getattr(limits, name)
            for name in ("megabytes", "megapixels", "images", "seconds")
        },
    )


def _category_facts(model: ImageModel, name: str | None) -> CategoryFacts:
    normality = model.calibration.of(name)

    def stopped(of_1000: float) -> StoppedParts:
        rate = of_1000 / 1000
        return StoppedParts(
            of_1000=of_1000,
            threshold=normality.threshold(rate),
            promised=normality.supports(rate),
        )

    return CategoryFacts(
        name=name,
        good_images=len(normality.scores),
        default=stopped(1000 * model.rates.false_positive_rate),
        choices=[stopped(count) for count in STOPPED_OF_1000],
    )
