"""Images come in: `/v1/predict` judges them, `/v1/good` keeps them for new thresholds."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import FastAPI, Query, Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from harmoniad_jax.data.records import EncodedImage
from harmoniad_jax.errors import UserError
from harmoniad_jax.inference.image_model import Question
from harmoniad_jax.inference.result import ImageResult
from harmoniad_jax.serving.answers import (
    THUMBNAIL_SIDE,
    Answer,
    Judged,
    Picture,
    Times,
    judged,
)
from harmoniad_jax.serving.collecting import keep
from harmoniad_jax.serving.guards import RefusedError
from harmoniad_jax.serving.limits import Limits, too_large
from harmoniad_jax.serving.routes.problems import REFUSALS
from harmoniad_jax.serving.service import Service

LONGEST_NAME = 200
EXAMPLE = {
    "results": [
        {
            "name": "001.png",
            "score": 7.31,
            "normalised_score": 0.62,
            "threshold": 5.9,
            "verdict": "defective",
            "category": "bottle",
            "boxes": [[120, 64, 168, 131]],
            "width": 900,
            "height": 900,
            "note": "",
            "error": "",
            "pictures": {},
        }
    ],
    "seconds": {"receiving": 0.002, "judging": 0.094},
}
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "images": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                        }
                    },
                    "required": ["images"],
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
ANSWERED = {"content": {"application/json": {"example": EXAMPLE}}}


def add_judging(app: FastAPI, service: Service) -> None:
    """Adds `/v1/predict`."""
    limits = service.limits

    @app.post(
        "/v1/predict",
        tags=["images"],
        openapi_extra=BODY,
        responses={200: ANSWERED, **REFUSALS},
    )
    async def predict(
        request: Request,
        category: Annotated[
            str | None, Query(description="Product, if known.", examples=["bottle"])
        ] = None,
        false_positive_rate: Annotated[
            float | None, Query(description="Of good images.", examples=[0.01])
        ] = None,
        threshold: Annotated[
            float | None, Query(description="Of the score, instead of the rate.")
        ] = None,
        name: Annotated[str, Query(description="Of an image that is sent raw.")] = "image",
        include: Annotated[
            list[Picture],
            Query(
                description="Pictures to send too: `map` (16-bit PNG, 32768 at the "
                "threshold of pixels), `overlay` (PNG), `heat` (transparent PNG) and "
                "`thumbnail` (JPEG)."
            ),
        ] = [],  # noqa: B006  (FastAPI copies it)
    ) -> Answer:
        """Judges one image or several.

        Send them as the field `images` of a form, or one as the body itself. An image that
        cannot be read has an `error` in its place; the others are judged.

            curl -F images=@001.png -F images=@002.png localhost:8080/v1/predict
            curl --data-binary @001.png "localhost:8080/v1/predict?category=bottle"
        """
        started, status = time.monotonic(), 500
        try:
            with service.admitted():
                async with _timed(limits):
                    images = await _images_of(request, limits, name)
                    received = time.monotonic()
                    question = Question(
                        false_positive_rate,
                        threshold,
                        thumbnail_side=THUMBNAIL_SIDE if include else 0,
                        appearance=True,  # whether it has changed is watched
                    )
                    found = await service.judge(images, category, question)
                    rows = await asyncio.to_thread(_rows, images, found, include)
            status = 200
            ended = time.monotonic()
            times = Times(receiving=received - started, judging=ended - received)
            return Answer(results=rows, seconds=times)
        except RefusedError as refusal:
            status = refusal.status
            raise
        except HTTPException as refusal:
            status = refusal.status_code
            raise
        finally:
            service.metrics.requests.labels(str(status)).inc()
            service.metrics.seconds.observe(time.monotonic() - started)


def add_collecting(app: FastAPI, service: Service) -> None:
    """Adds `/v1/good`."""

    @app.post(
        "/v1/good",
        tags=["images"],
        openapi_extra={"requestBody": {"content": {"image/*": {}}}},
        responses=REFUSALS,
    )
    async def good(
        request: Request,
        category: Annotated[str | None, Query(description="Product, if known.")] = None,
        watched: Annotated[
            int | None, Query(description="Number of an image of the watched folder.")
        ] = None,
        name: Annotated[str, Query(description="Of that image.")] = "",
    ) -> dict[str, bool]:
        """Keeps an image that is good after all, for new thresholds.

        Send it as the body. One of the latest of the watched folder needs no body, but its
        `number` and `name`, as `/v1/watched` has them. The server must have been started
        with `--collect=DIR`.
        """
        if service.collect is None:
            raise RefusedError(
                404, "this server keeps no images; start it with --collect=DIR"
            )
        with service.admitted():
            async with _timed(service.limits):
                if watched is None:
                    data = await request.body()
                else:
                    data = await asyncio.to_thread(_watched_data, service, watched, name)
                image = EncodedImage("the image", data)
                if reason := await asyncio.to_thread(too_large, image, service.limits):
                    raise RefusedError(422, reason)
                model = service.opened.model
                try:
                    await asyncio.to_thread(keep, service.collect, model, data, category)
                except UserError as error:
                    raise RefusedError(422, str(error)) from None
        return {"kept": True}


def _watched_data(service: Service, number: int, name: str) -> bytes:
    """The file of an image of the watched folder.

    Raises:
      RefusedError: it is not one of the latest, or not there any more.
    """
    data = service.watcher.image_data(number, name) if service.watcher else None
    if data is None:
        raise RefusedError(
            404, "that image is not in the watched folder any more; send it as the body"
        )
    return data


@contextlib.asynccontextmanager
async def _timed(limits: Limits) -> AsyncIterator[None]:
    """Raises RefusedError if a request takes too long."""
    try:
        async with asyncio.timeout(limits.seconds):
            yield
    except TimeoutError:
        raise RefusedError(504, f"it took longer than {limits.seconds:g} s") from None


def _rows(
    images: list[EncodedImage],
    found: list[ImageResult | UserError],
    include: list[Picture],
) -> list[Judged]:
    return [
        judged(image.name, result, include)
        for image, result in zip(images, found, strict=True)
    ]


async def _images_of(request: Request, limits: Limits, name: str) -> list[EncodedImage]:
    """The images of a request's body.

    Raises:
      RefusedError: there are none, or too many.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        data = await request.body()
        if not data:
            raise RefusedError(
                400, "the body is empty; send an image, or a form with the field 'images'"
            )
        return [EncodedImage(_clean(name), data)]
    async with request.form(max_files=limits.images, max_fields=limits.images) as form:
        parts = form.getlist("images")
        unknown = sorted(set(form) - {"images"})
        if unknown or any(not isinstance(part, UploadFile) for part in parts):
            raise RefusedError(
                400,
                "a form holds files in the field 'images' and nothing else; category, "
                "false_positive_rate and threshold go into the address",
            )
        if not parts:
            raise RefusedError(400, "the form has no file in the field 'images'")
        return [
            EncodedImage(_clean(part.filename or "image"), await part.read())
            for part in parts
        ]


def _clean(name: str) -> str:
    """A client's name for an image, to be shown; it is never opened."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in name)
    return shown[-LONGEST_NAME:]
