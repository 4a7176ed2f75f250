"""Whether what comes to the server still looks like what its thresholds were set on."""

import threading
from collections.abc import Iterable

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from pydantic import BaseModel, Field
from scipy import stats

from harmoniad_jax.errors import UserError
from harmoniad_jax.inference.image_model import ImageModel
from harmoniad_jax.inference.result import ImageResult

# Images of a product that are compared at once.
WINDOW = 50
# Share of windows that are said to have moved where nothing has.
LEVEL = 0.01


class Moved(BaseModel):
    """The latest window of a product's images, against its good images of calibration."""

    category: str | None
    images: int = Field(description="in the window")
    p_value: float = Field(description="of the two-sample Kolmogorov-Smirnov test")
    moved: bool = Field(description=f"the p-value is below {LEVEL:g}")
    higher: bool = Field(description="whether scores rose rather than fell")


class Drift(Collector):
    """Compares every `WINDOW` images of a product with its calibration.

    Windows do not overlap, so each is a test of its own: where nothing has moved, at most
    one in 1 / `LEVEL` is reported (Smirnov, 1939; the test is exact for small samples).
    Defects raise scores as well, but a part of the images alone does not move the whole
    distribution: with 30 good images of calibration more than a third must be defective.
    """

    def __init__(self, model: ImageModel):
        self._model = model
        self._scores: dict[str | None, list[float]] = {}
        self._latest: dict[str | None, Moved] = {}
        self._lock = threading.Lock()

    def note(self, result: ImageResult | UserError) -> None:
        """Takes an image into account, of whatever thread."""
        good = self._model.calibration
        if good is None or isinstance(result, UserError):
            return
        category = result.category
        with self._lock:
            scores = self._scores.setdefault(category, [])
            scores.append(result.score)
            if len(scores) < WINDOW:
                return
            del self._scores[category]
        before = good.of(category).scores
        test = stats.ks_2samp(before, scores)
        moved = Moved(
            category=category,
            images=len(scores),
            p_value=float(test.pvalue),
            moved=bool(test.pvalue < LEVEL),
            # The side on which the two distributions differ most.
            higher=bool(test.statistic_sign > 0),
        )
        with self._lock:
            self._latest[category] = moved

    def restart(self) -> None:
        """Forgets what was compared with another calibration."""
        with self._lock:
            self._scores.clear()
            self._latest.clear()

    def latest(self) -> list[Moved]:
        """The latest window of each product that has one."""
        with self._lock:
            return list(self._latest.values())

    def collect(self) -> Iterable[Metric]:
        p_values = GaugeMetricFamily(
            "harmoniad_drift_p_value",
            f"Of the last {WINDOW} images against calibration; low: they differ.",
            labels=["category"],
        )
        for one in self.latest():
            p_values.add_metric([one.category or ""], one.p_value)
        yield p_values
