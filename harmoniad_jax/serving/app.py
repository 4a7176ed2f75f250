"""The HTTP API, see docs/guide-serve.md."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from harmoniad_jax import __version__
from harmoniad_jax.data.records import EncodedImage
from harmoniad_jax.errors import UserError
from harmoniad_jax.inference.image_model import Query as ImageQuery
from harmoniad_jax.inference.image_model import Question
from harmoniad_jax.inference.result import ImageResult
from harmoniad_jax.serving import answers
from harmoniad_jax.serving.answers import (
    THUMBNAIL_SIDE,
    Answer,
    Judged,
    ModelFacts,
    Picture,
    Problem,
    Times,
    judged,
    model_facts,
)
from harmoniad_jax.serving.batcher import Batcher, BusyError
from harmoniad_jax.serving.collecting import keep
from harmoniad_jax.serving.drift import Drift, Moved
from harmoniad_jax.serving.guards import LOCAL_NAMES, Guards, RefusedError
from harmoniad_jax.serving.interface import interface_page
from harmoniad_jax.serving.limits import Limits, too_large
from harmoniad_jax.serving.metrics import Metrics
from harmoniad_jax.serving.opening import Opened
from harmoniad_jax.serving.page import build_page
from harmoniad_jax.serving.watch import Watched, Watcher

logger = logging.getLogger(__name__)

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
REFUSALS = {
    status: {"model": Problem, "description": text}
    for status, text in {
        400: "The body is not what is described here.",
        401: "No token, or a wrong one.",
        413: "Too many bytes or images.",
        422: "An unknown category, or a rate or threshold that is none.",
        503: "Busy: try again after `Retry-After` seconds.",
        504: "It took too long.",
    }.items()
}


class Service:
    """What the routes share: model, queue, counters."""

    def __init__(self, opened: Opened, limits: Limits, collect: Path | None):
        self.opened, self.limits, self.collect = opened, limits, collect
        # Not every header that decodes can be read before.
        opened.model.limit_megapixels(limits.megapixels)
        self.batcher = Batcher(opened.model, limits.queue)
        self.drift = Drift(opened.model)
        self.metrics = Metrics(self.batcher, self.drift)
        self.ready = False
        self._requests = 0

    def warm_up(self) -> None:
        """Runs every program of the network once, so that no client waits for that."""
        model = self.opened.model
        for height, width in model.preprocessor.all_shapes:
            blank = np.zeros((height, width, 3), np.uint8)
            for size in model.batch_sizes:
                model.predict_pixels(size * [blank])
            for future in self.batcher.submit([ImageQuery(blank)], Question()):
                future.result()
        self.ready = True

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Raises RefusedError if it is not ready, or reads too many bodies already."""
        if not self.ready:
            raise RefusedError(503, "the model is being loaded", retry_after=2)
        if self._requests >= self.limits.requests:
            raise RefusedError(503, "too many requests at once", retry_after=1)
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    async def judge(
        self, images: list[EncodedImage], category: str | None, question: Question
    ) -> list[ImageResult | UserError]:
        """Judges the images of a request, in order.

        Raises:
          RefusedError: no room, or the category, rate or threshold is none.
        """
        refused = await asyncio.to_thread(
            lambda: [too_large(image, self.limits) for image in images]
        )
        queries = [
            ImageQuery(image, category)
            for image, reason in zip(images, refused, strict=True)
            if not reason
        ]
        try:
            futures = self.batcher.submit(queries, question)
        except BusyError as error:
            raise RefusedError(503, str(error), error.retry_after) from None
        except UserError as error:
            raise RefusedError(422, str(error)) from None
        judged_ones = iter(await asyncio.gather(*map(asyncio.wrap_future, futures)))
        results = [UserError(reason) if reason else next(judged_ones) for reason in refused]
        for result in results:
            self.metrics.count(result)
        return results


def make_app(
    opened: Opened,
    limits: Limits | None = None,
    *,
    collect: Path | None = None,
    watched: Watched | None = None,
    token: str | None = None,
    hosts: tuple[str, ...] | None = LOCAL_NAMES,
) -> Guards:
    """The server as an ASGI application.

    Args:
      opened: what it judges with.
      limits: what it accepts.
      collect: folder for images that were good after all; None: they are not kept.
      watched: folder whose images are judged as they come; None: none.
      token: that clients must send; None: none.
      hosts: names that clients may call it by; None: any.

    Raises:
      UserError: the watched folder or its output cannot be used.
    """
    limits = limits or Limits()
    service = Service(opened, limits, collect)
    page = build_page()
    count = service.metrics.count
    watcher = Watcher(service.batcher, watched, limits, count) if watched else None

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        threading.Thread(target=service.warm_up, daemon=True).start()
        if watcher:
            watcher.start()
        yield
        if watcher:
            await asyncio.to_thread(watcher.close)
        # What was accepted is answered before this returns.
        await asyncio.to_thread(service.batcher.close)

    app = FastAPI(
        title="HarmoniAD",
        version=__version__,
        description="Judges images of products. A token goes into the header "
        "`Authorization: Bearer TOKEN`, if the server asks for one.",
        lifespan=lifespan,
        docs_url=None,  # those pages load scripts of other hosts
        redoc_url=None,
    )
    app.state.service = service
    _add_error_handlers(app)
    _add_judging(app, service)
    _add_collecting(app, service)

    @app.get("/v1/model", tags=["model"])
    async def model() -> ModelFacts:
        """What the server judges with: products, thresholds, limits."""
        return model_facts(
            opened, limits, collects=collect is not None, watches=watcher is not None
        )

    @app.get("/v1/watched", tags=["images"], responses={404: {"model": Problem}})
    async def latest_watched(after: int = 0) -> answers.Watched:
        """The latest images of the folder that `--watch` names, with their pictures."""
        if watcher is None:
            raise RefusedError(404, "this server watches no folder; give --watch=DIR")
        last, rows = watcher.after(after)
        return answers.Watched(last=last, results=rows)

    @app.get("/v1/drift", tags=["model"])
    async def drift() -> list[Moved]:
        """Whether recent images look like those that the thresholds were set on.

        Every 50 images of a product are compared; a product with fewer is not listed.
        """
        return service.drift.latest()

    @app.get("/healthz", tags=["operation"])
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "alive"}

    @app.get("/readyz", tags=["operation"], responses={503: {"model": Problem}})
    async def readyz() -> dict[str, str]:
        """Images can be judged."""
        if not service.ready:
            raise RefusedError(503, "the model is being loaded", retry_after=2)
        return {"status": "ready"}

    @app.get("/metrics", tags=["operation"])
    async def metrics() -> Response:
        """Counters in Prometheus' text format."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(interface_page(app.openapi()))

    @app.get("/", include_in_schema=False)
    async def root() -> HTMLResponse:
        return HTMLResponse(page.html)

    guarded = Guards(
        app, policy=page.policy, largest_body=limits.bytes, token=token, hosts=hosts
    )
    guarded.service = service
    return guarded


def _add_judging(app: FastAPI, service: Service) -> None:
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
                        false_positive_rate, threshold, THUMBNAIL_SIDE if include else 0
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


def _add_collecting(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/good",
        tags=["images"],
        openapi_extra={"requestBody": {"content": {"image/*": {}}, "required": True}},
        responses=REFUSALS,
    )
    async def good(
        request: Request,
        category: Annotated[str | None, Query(description="Product, if known.")] = None,
    ) -> dict[str, bool]:
        """Keeps an image that is good after all, for new thresholds.

        The server must have been started with `--collect=DIR`.
        """
        if service.collect is None:
            raise RefusedError(
                404, "this server keeps no images; start it with --collect=DIR"
            )
        with service.admitted():
            async with _timed(service.limits):
                data = await request.body()
                image = EncodedImage("the image", data)
                if reason := await asyncio.to_thread(too_large, image, service.limits):
                    raise RefusedError(422, reason)
                model = service.opened.model
                try:
                    await asyncio.to_thread(keep, service.collect, model, data, category)
                except UserError as error:
                    raise RefusedError(422, str(error)) from None
        return {"kept": True}


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


def _add_error_handlers(app: FastAPI) -> None:
    """Whatever goes wrong is one line of JSON without a traceback."""

    def problem(status: int, message: str, headers=None) -> JSONResponse:
        return JSONResponse({"error": " ".join(message.split())}, status, headers)

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> JSONResponse:
        return problem(error.status, error.message, error.headers)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        if "Too many files" in str(error.detail) or "Too many fields" in str(error.detail):
            return problem(413, f"{error.detail}")
        return problem(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        parts = [f"{one['loc'][-1]}: {one['msg']}" for one in error.errors()]
        return problem(422, "; ".join(parts))

    @app.exception_handler(Exception)
    async def defect(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s failed", request.url.path, exc_info=error)
        return problem(500, "the server failed; its log says why")
