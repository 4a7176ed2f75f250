"""Whether what comes to the server still looks like what its thresholds were set on."""

import threading
from collections.abc import Iterable, Mapping

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from pydantic import BaseModel, Field

from harmoniad_jax.errors import UserError
from harmoniad_jax.inference.drift import LEVEL, compare
from harmoniad_jax.inference.image_model import ImageModel
from harmoniad_jax.inference.result import ImageResult

# Images of a product that are compared at once.
WINDOW = 50


class Difference(BaseModel):
    """A number that was compared: the score, or one of the images' appearance."""

    name: str
    p_value: float = Field(
        description="of the two-sample Kolmogorov-Smirnov test, times the numbers compared"
    )
    moved: bool = Field(description=f"the p-value is below {LEVEL:g}")
    in_words: str = Field(description='how it differs, such as "darker"')


class Moved(BaseModel):
    """The latest window of a product's images, against its good images of calibration."""

    category: str | None
    images: int = Field(description="in the window")
    moved: bool = Field(description="whether any number has")
    compared: list[Difference] = Field(
        description="the score alone, where the appearance of good images is not known"
    )


class Drift(Collector):
    """Compares every `WINDOW` images of a product with its calibration.

    Windows do not overlap, so each is a test of its own: where nothing has moved, at most
    one in 1 / `LEVEL` is reported, see `compare`. Defects raise scores as well, but a part
    of the images alone does not move the whole distribution: with 30 good images of
    calibration more than about 40 % must be defective.
    """

    def __init__(self, model: ImageModel):
        self._model = model
        self._windows: dict[str | None, list[tuple[float, Mapping | None]]] = {}
        self._latest: dict[str | None, Moved] = {}
        self._lock = threading.Lock()

    def note(self, result: ImageResult | UserError) -> None:
        """Takes an image into account, of whatever thread."""
        good = self._model.calibration
        if good is None or isinstance(result, UserError):
            return
        category = result.category
        with self._lock:
            # Neither maps nor pictures are kept.
            window = self._windows.setdefault(category, [])
            window.append((result.score, result.appearance))
            if len(window) < WINDOW:
                return
            del self._windows[category]
        scores, appearance = zip(*window, strict=True)
        known = appearance if None not in appearance else ()
        compared = [
            Difference(
                name=one.name,
                p_value=one.p_value,
                moved=one.has_changed,
                in_words=one.in_words,
            )
            for one in compare(good.of(category), scores, known)
        ]
        moved = Moved(
            category=category,
            images=len(window),
            moved=any(one.moved for one in compared),
            compared=compared,
        )
        with self._lock:
            self._latest[category] = moved

    def restart(self) -> None:
        """Forgets what was compared with another calibration."""
        with self._lock:
            self._windows.clear()
            self._latest.clear()

    def latest(self) -> list[Moved]:
        """The latest window of each product that has one."""
        with self._lock:
            return list(self._latest.values())

    def collect(self) -> Iterable[Metric]:
        p_values = GaugeMetricFamily(
            "harmoniad_drift_p_value",
            f"Of the last {WINDOW} images against calibration; low: they differ.",
            labels=["category", "of"],
        )
        for moved in self.latest():
            for one in moved.compared:
                p_values.add_metric([moved.category or "", one.name], one.p_value)
        yield p_values
