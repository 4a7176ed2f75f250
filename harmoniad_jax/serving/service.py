"""What all routes share: the model, its queue, what is counted, the watched folder."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from harmoniad_jax.data.records import EncodedImage
from harmoniad_jax.errors import UserError
from harmoniad_jax.inference.image_model import Query, Question
from harmoniad_jax.inference.result import ImageResult
from harmoniad_jax.serving.batcher import Batcher, BusyError
from harmoniad_jax.serving.drift import Drift
from harmoniad_jax.serving.guards import RefusedError
from harmoniad_jax.serving.limits import Limits, too_large
from harmoniad_jax.serving.metrics import Metrics
from harmoniad_jax.serving.opening import Opened
from harmoniad_jax.serving.thresholds import LatestThresholds
from harmoniad_jax.serving.watch import Watched, Watcher


class Service:
    """What the routes share.

    Attributes:
      opened: what it judges with.
      limits: what it accepts.
      collect: folder for images that were good after all; None: they are not kept.
      batcher, drift, metrics: of the model.
      watcher: of a folder; None: no folder is watched.
      thresholds: that are used, the latest of `calibrate`.
      ready: whether the network has run once.
    """

    def __init__(
        self,
        opened: Opened,
        limits: Limits,
        collect: Path | None = None,
        watched: Watched | None = None,
    ):
        """Raises UserError if the watched folder or the thresholds cannot be used."""
        self.opened, self.limits, self.collect = opened, limits, collect
        # Not every header that decodes can be read before.
        opened.model.limit_megapixels(limits.megapixels)
        self.batcher = Batcher(opened.model, limits.queue)
        self.drift = Drift(opened.model)
        self.metrics = Metrics(self.batcher, self.drift)
        count = self.metrics.count
        self.watcher = Watcher(self.batcher, watched, limits, count) if watched else None
        self.metrics.add_outboxes(self.watcher.outboxes if self.watcher else ())
        self.thresholds = LatestThresholds(opened, self.drift.restart)
        self.ready = False
        self._requests = 0
        self._lock, self._closed = threading.Lock(), False

    def start(self) -> None:
        """Starts what runs beside the requests; the folder is watched once it is ready."""
        threading.Thread(target=self._warm_up, name="warm-up", daemon=True).start()
        self.thresholds.start()

    def close(self) -> None:
        """Returns when what was accepted is answered. Nothing is started after that."""
        with self._lock:
            self._closed = True
        if self.watcher:
            self.watcher.close()
        self.thresholds.close()
        self.batcher.close()

    def _warm_up(self) -> None:
        """Makes it ready. Nothing else runs the network before: it is for one thread."""
        try:
            self._run_every_program()
        except BusyError:
            if not self._closed:
                raise
        with self._lock:
            if self._closed:
                return
            if self.watcher:
                self.watcher.start()
            self.ready = True

    def _run_every_program(self) -> None:
        """Runs each program of the network once, so that no client waits for that."""
        model = self.opened.model
        for height, width in model.preprocessor.all_shapes:
            blank = np.zeros((height, width, 3), np.uint8)
            for size in model.batch_sizes:
                if self._closed:
                    return
                model.predict_pixels(size * [blank])
            for future in self.batcher.submit([Query(blank)], Question()):
                future.result()

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
            Query(image, category)
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
