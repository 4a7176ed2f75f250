"""Takes over what `python -m harmoniad_jax.calibrate` stores while the model is served."""

import logging
import threading
from collections.abc import Callable

from harmoniad_jax.errors import UserError
from harmoniad_jax.inference import new_thresholds
from harmoniad_jax.inference.new_thresholds import Entry
from harmoniad_jax.serving.opening import Opened

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
# Of no file: what is there is read again.
UNREAD = ()


class LatestThresholds:
    """A thread that looks for a new calibration beside the model, until it is closed.

    Attributes:
      entry: the calibration that the model is used with; None: that of training.
    """

    def __init__(self, opened: Opened, changed: Callable[[], None]):
        """Reads what is there.

        Args:
          opened: that judges; it was opened with its latest calibration.
          changed: is called after the model uses another one.

        Raises:
          UserError: the file of calibrations is damaged, or of another training or export.
        """
        self._opened, self._changed = opened, changed
        self._path = new_thresholds.path_beside(opened.path)
        self._stamp = self._read_stamp()
        self.entry = self._read()
        if self.entry:  # it may be younger than the model here
            opened.model.use(self.entry.good_images)
        self._problem = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="thresholds", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            stamp = self._read_stamp()
            if stamp == self._stamp:
                continue
            self._stamp = stamp
            try:
                self.entry = self._read()
            except (UserError, OSError) as error:
                if isinstance(error, OSError):
                    self._stamp = UNREAD  # it may be gone while the file stays as it is
                self._say(str(error))
                continue
            self._problem = ""
            model = self._opened.model
            model.use(self.entry.good_images if self.entry else model.own_calibration)
            self._changed()
            entry = self.entry
            origin = f"{entry.time}, by {entry.source}" if entry else "training"
            logger.warning("thresholds from now on: those of %s", origin)

    def _say(self, problem: str) -> None:
        """Logs why the file cannot be used, once."""
        if problem != self._problem:
            logger.warning("%s The thresholds from before stay in use.", problem)
        self._problem = problem

    def _read_stamp(self) -> tuple[int, ...] | None:
        """Tells another content of the file; None: it is not there."""
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size

    def _read(self) -> Entry | None:
        own = self._opened.model.own_calibration
        return new_thresholds.latest_entry(self._opened.path, own)
