"""Judges every new image of a folder once; results are lines of JSON."""

import collections
import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from harmoniad_jax.data.records import EncodedImage
from harmoniad_jax.errors import UserError, system_problem
from harmoniad_jax.inference.files import guess_category, photos_below
from harmoniad_jax.inference.image_model import Query, Question
from harmoniad_jax.inference.result import ImageResult
from harmoniad_jax.locks import lock
from harmoniad_jax.serving.answers import THUMBNAIL_SIDE, WatchedImage, judged
from harmoniad_jax.serving.batcher import Batcher, BusyError
from harmoniad_jax.serving.limits import Limits, too_large
from harmoniad_jax.serving.mqtt import Broker, Publisher
from harmoniad_jax.serving.outbox import Outbox
from harmoniad_jax.serving.webhook import Webhook

logger = logging.getLogger(__name__)

RESULTS = "results.jsonl"
LOCK = ".lock"
# Between two looks at the folder. A file that did not change in between is complete.
POLL_SECONDS = 0.5
# A file that cannot be read is tried again until it has not changed for so long: a camera
# may pause while it writes.
PATIENCE_SECONDS = 10.0
RETRIES = 5
# Latest images that are kept in memory for the page, with their pictures.
KEPT = 50
PICTURES = ("thumbnail", "heat")


class Watched(NamedTuple):
    """What is watched.

    folder: of the images, with all folders in it.
    output: folder for `results.jsonl`, which is continued.
    category: product of all images; None: what their folders are called.
    patience: seconds that an unreadable file must not have changed for.
    webhook: address that gets every result, see `Webhook`; None: none.
    mqtt: broker that gets every result, see `Publisher`; None: none.
    """

    folder: Path
    output: Path
    category: str | None = None
    patience: float = PATIENCE_SECONDS
    webhook: str | None = None
    mqtt: Broker | None = None


class Version(NamedTuple):
    """A file as it was judged: another content is another version."""

    path: str
    size: int
    modified: int  # ns


class Watcher:
    """A thread that judges what appears in a folder, until it is closed.

    A result is in the file before its image counts as judged. So after a crash an image may
    be judged again, but it has one line in the end, and none is lost.

    Attributes:
      outboxes: that send the results on.
    """

    def __init__(
        self,
        batcher: Batcher,
        watched: Watched,
        limits: Limits,
        count: Callable[[ImageResult | UserError], None],
    ):
        """Reads what was judged before.

        Args:
          batcher: judges.
          watched: folders and product.
          limits: of an image.
          count: is told every result.

        Raises:
          UserError: no such folder, or nowhere to write, or another process writes there.
        """
        folder, output, category, patience, address, broker = watched
        if not folder.is_dir():
            raise UserError(f"--watch={folder} is not a folder.")
        if category:
            known = batcher.model.categories
            if known and category not in known:
                raise UserError(
                    f"--category={category} is unknown; there are {', '.join(known)}."
                )
        self._batcher, self._folder, self._limits = batcher, folder, limits
        self._count = count
        self._category, self._patience = category, patience
        self._results = output / RESULTS
        self.outboxes: list[Outbox] = []
        self.outboxes += [Webhook(address, self._results)] if address else []
        self.outboxes += [Publisher(broker, self._results)] if broker else []
        try:
            output.mkdir(parents=True, exist_ok=True)
            self._lock = lock(output / LOCK)
            if self._lock is None:
                raise UserError(
                    f"--output={output} is written by another server; name another folder."
                )
            self._done = self._read_back()
            self._file = self._results.open("ab")
        except OSError as error:
            raise UserError(
                f"--output={output} cannot be written. {system_problem(error)}"
            ) from None
        self._seen: dict[str, tuple[Version, float]] = {}  # and since when it is so
        self._retry: dict[Version, float] = {}  # when an unreadable file is read again
        self._latest: collections.deque[tuple[Version, WatchedImage]]
        self._latest = collections.deque(maxlen=KEPT)
        self._count_written = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()
        for outbox in self.outboxes:
            outbox.start()

    def after(self, number: int) -> tuple[int, list[WatchedImage]]:
        """The latest images since a number, oldest first, and the number for the next call.

        Images are numbered from 1 when the server starts; it keeps `KEPT` of them.
        """
        # A copy first: the thread appends meanwhile, and an iteration would break.
        latest = [row for _, row in list(self._latest)]
        last = latest[-1].number if latest else 0
        # A larger number is of an earlier start.
        since = number if number <= last else 0
        return last, [row for row in latest if row.number > since]

    def image_data(self, number: int, name: str) -> bytes | None:
        """The file of one of the latest images; None: it is gone, or another by now.

        Args:
          number, name: of a `WatchedImage`. The name is compared and not opened; a number
            of an earlier start is told by it.
        """
        for version, row in list(self._latest):
            if (row.number, row.name) == (number, name):
                path = self._folder / version.path
                try:
                    status, data = path.stat(), path.read_bytes()
                except OSError:
                    return None
                same = (status.st_size, status.st_mtime_ns) == version[1:]
                return data if same else None
        return None

    def close(self) -> None:
        """Finishes the images that are being judged, and ends."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._file.close()
        for outbox in self.outboxes:
            outbox.stop_soon()  # all of them have the same few seconds
        for outbox in self.outboxes:
            outbox.close()
        self._lock.close()

    def _read_back(self) -> set[Version]:
        """What was judged before; half a line, which a crash left, is cut off."""
        if not self._results.exists():
            return set()
        data = self._results.read_bytes()
        whole = data.rpartition(b"\n")[0] + b"\n" if b"\n" in data else b""
        if len(whole) < len(data):
            with self._results.open("r+b") as file:
                file.truncate(len(whole))
        try:
            rows = [json.loads(line) for line in whole.splitlines()]
            return {Version(row["path"], row["size"], row["modified"]) for row in rows}
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{self._results} is damaged; move it away, and *.offset beside it, to "
                "judge all images anew."
            ) from None

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                while not self._stop.is_set() and self._judge_some():
                    pass
            except Exception as error:  # the folder may be away for a while
                logger.warning("%s: %s; it is tried again", self._folder, error)
            self._stop.wait(POLL_SECONDS)

    def _judge_some(self) -> bool:
        """Judges up to a batch; whether there was any."""
        most = min(self._batcher.model.batch_size, self._limits.queue)
        ready = self._complete_files()[:most]
        found, images = [], []
        for version, since in ready:
            try:
                data = (self._folder / version.path).read_bytes()
            except OSError as error:
                self._refuse(version, since, system_problem(error))
                continue
            image = EncodedImage(version.path, data)
            if reason := too_large(image, self._limits):
                self._write(version, UserError(reason))
                continue
            found.append((version, since))
            name = PurePosixPath(version.path)
            known = self._batcher.model.categories
            product = self._category or guess_category(name, known, self._folder)
            images.append(Query(image, product))
        futures = self._submit(images)
        if futures is None:  # the server ends: they are judged after it starts again
            return False
        for (version, since), future in zip(found, futures, strict=True):
            result = future.result()
            if isinstance(result, UserError):
                self._refuse(version, since, str(result))
            else:
                self._write(version, result)
        return bool(ready)

    def _submit(self, queries: list[Query]) -> list | None:
        while queries and not self._stop.is_set():
            try:
                question = Question(thumbnail_side=THUMBNAIL_SIDE, appearance=True)
                return self._batcher.submit(queries, question)
            except BusyError:
                self._stop.wait(POLL_SECONDS)  # clients come first
        return None if queries else []

    def _complete_files(self) -> list[tuple[Version, float]]:
        """Files that wait and did not change since the last look, oldest first."""
        now, seen, ready = time.monotonic(), {}, []
        for path in photos_below(self._folder):
            name = path.relative_to(self._folder).as_posix()
            try:
                status = path.stat()
            except OSError:
                continue  # removed, or a link that leads nowhere yet
            version = Version(name, status.st_size, status.st_mtime_ns)
            if version in self._done:
                continue
            before, since = self._seen.get(name, (None, now))
            seen[name] = (version, since if before == version else now)
            stable = before == version and now - since >= POLL_SECONDS
            if stable and now >= self._retry.get(version, 0.0):
                ready.append(seen[name])
        self._seen = seen
        return sorted(ready, key=lambda one: one[0].modified)

    def _refuse(self, version: Version, since: float, reason: str) -> None:
        """Reports a file that cannot be read, once nobody seems to write it any more."""
        if time.monotonic() - since >= self._patience:
            self._write(version, UserError(reason))
        else:
            self._retry[version] = time.monotonic() + self._patience / RETRIES

    def _write(self, version: Version, result: ImageResult | UserError) -> None:
        self._count(result)
        shown = judged(version.path, result, PICTURES)
        row = shown.model_dump(exclude={"pictures", "name"})
        line = json.dumps({**version._asdict(), "time": time.time(), **row})
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        self._done.add(version)
        self._retry.pop(version, None)
        self._count_written += 1
        numbered = WatchedImage(**dict(shown), number=self._count_written)
        self._latest.append((version, numbered))
