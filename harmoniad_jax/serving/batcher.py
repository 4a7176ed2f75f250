"""Requests that arrive together share a batch, in a bounded queue."""

import collections
import dataclasses
import logging
import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from harmoniad_jax.errors import UserError
from harmoniad_jax.inference.image_model import ImageModel, Loaded, Query, Question
from harmoniad_jax.inference.result import ImageResult

logger = logging.getLogger(__name__)

# How much the latest batch counts in the mean time of an image.
LATEST_WEIGHT = 0.2


class BusyError(Exception):
    """The queue is full. `retry_after`: seconds after which there is room, about."""

    def __init__(self, retry_after: int):
        super().__init__(f"the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


@dataclasses.dataclass(eq=False)
class _Job:
    query: Query
    question: Question
    future: Future
    loaded: Loaded | None = None


class Batcher:
    """Judges images of many callers: threads decode, one thread runs the network.

    The network takes what is decoded, up to a batch, and never waits for more: a caller
    alone is served at once, and callers that come while it computes share the next batch.
    """

    def __init__(self, model: ImageModel, capacity: int):
        """Starts the threads.

        Args:
          model: of any thread, but called from one at a time.
          capacity: images that may be accepted and not answered yet.
        """
        self.model, self.capacity = model, capacity
        self.batch_sizes: collections.Counter = collections.Counter()
        self._seconds_an_image = 0.1  # a guess, until a batch was timed
        self._decoded: collections.deque[_Job] = collections.deque()
        self._changed = threading.Condition()
        self._accepted, self._closing = 0, False
        self._pool = ThreadPoolExecutor(model.threads, "decode")
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Images that were accepted and not answered yet."""
        return self._accepted

    def submit(
        self, queries: Sequence[Query], question: Question
    ) -> list["Future[ImageResult | UserError]"]:
        """Accepts all images of a request, or none.

        Returns:
          A future for each; an image that cannot be read gives a `UserError` as its result.
          One that is cancelled is not judged, if it is not too late.

        Raises:
          BusyError: there is no room for them, or the batcher is closing.
          UserError: the category is not known, or a rate or threshold is none.
        """
        self.model.check(queries, question)
        with self._changed:
            if self._closing or self._accepted + len(queries) > self.capacity:
                seconds = self._accepted * self._seconds_an_image
                raise BusyError(max(1, math.ceil(seconds)))
            self._accepted += len(queries)
            jobs = [_Job(query, question, Future()) for query in queries]
            for job in jobs:
                self._pool.submit(self._decode, job)
        return [job.future for job in jobs]

    def close(self) -> None:
        """Answers what was accepted, and ends the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self._pool.shutdown()

    def _decode(self, job: _Job) -> None:
        if job.future.cancelled():
            self._forget()
            return
        try:
            job.loaded = self.model.load_image(job.query, job.question)
        except Exception as error:
            self._fail([job], error)
            return
        if job.loaded.pixels is None:
            self._answer(job, UserError(job.loaded.error))
            return
        with self._changed:
            self._decoded.append(job)
            self._changed.notify_all()

    def _run(self) -> None:
        while jobs := self._take():
            started = time.monotonic()
            try:
                found = self.model.predict_pixels([job.loaded.pixels for job in jobs])
            except Exception as error:
                self._fail(jobs, error)
                continue
            self._note_time(len(jobs), time.monotonic() - started)
            for job, one in zip(jobs, found, strict=True):
                self._pool.submit(self._finish, job, one)

    def _take(self) -> list[_Job]:
        """The next batch; empty when it is closing and all is answered."""
        with self._changed:
            while True:
                jobs: list[_Job] = []
                while self._decoded and len(jobs) < self.model.batch_size:
                    job = self._decoded.popleft()
                    if job.future.cancelled():
                        self._accepted -= 1
                    else:
                        jobs.append(job)
                if jobs or (self._closing and not self._accepted):
                    return jobs
                self._changed.wait()

    def _note_time(self, count: int, seconds: float) -> None:
        self.batch_sizes[count] += 1
        share = LATEST_WEIGHT
        mean = (1 - share) * self._seconds_an_image + share * seconds / count
        self._seconds_an_image = mean

    def _finish(self, job: _Job, found: tuple[Any, float]) -> None:
        try:
            result = self.model.result(job.query, job.question, job.loaded, *found)
        except Exception as error:
            self._fail([job], error)
        else:
            self._answer(job, result)

    def _answer(self, job: _Job, result: ImageResult | UserError) -> None:
        if job.future.set_running_or_notify_cancel():
            job.future.set_result(result)
        self._forget()

    def _fail(self, jobs: Sequence[_Job], error: Exception) -> None:
        """A defect of the program: whoever asked is told that, the log has the rest."""
        logger.error("judging failed", exc_info=error)
        for job in jobs:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(error)
            self._forget()

    def _forget(self) -> None:
        with self._changed:
            self._accepted -= 1
            self._changed.notify_all()
