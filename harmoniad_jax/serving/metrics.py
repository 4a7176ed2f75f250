"""What the server counts, for Prometheus."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from harmoniad_jax.errors import UserError
from harmoniad_jax.inference.result import ImageResult
from harmoniad_jax.serving.batcher import Batcher
from harmoniad_jax.serving.drift import Drift
from harmoniad_jax.serving.outbox import Outbox

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
WORDS = {None: "no_threshold", False: "good", True: "defective"}


class Metrics:
    """The counters of one server."""

    def __init__(self, batcher: Batcher, drift: Drift):
        self._drift = drift
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "harmoniad_requests", "Requests to judge images.", ["status"], registry=registry
        )
        self.seconds = Histogram(
            "harmoniad_request_seconds",
            "From the first byte of a request to its answer.",
            buckets=SECONDS,
            registry=registry,
        )
        self._images = Counter(
            "harmoniad_images", "Images judged.", ["verdict", "category"], registry=registry
        )
        waiting = Gauge(
            "harmoniad_images_waiting", "Accepted, not answered.", registry=registry
        )
        waiting.set_function(lambda: batcher.waiting)
        capacity = Gauge(
            "harmoniad_queue_capacity", "Images that may wait.", registry=registry
        )
        capacity.set(batcher.capacity)
        registry.register(_BatchSizes(batcher))
        registry.register(drift)

    def add_outboxes(self, outboxes: Iterable[Outbox]) -> None:
        """Shows how much waits to be sent on."""
        waiting = Gauge(
            "harmoniad_results_waiting_bytes",
            "Of results that a webhook or broker did not take yet.",
            ["to"],
            registry=self._registry,
        )
        for outbox in outboxes:
            waiting.labels(outbox.name).set_function(
                lambda outbox=outbox: outbox.waiting_bytes
            )

    def count(self, result: ImageResult | UserError) -> None:
        """Counts an image that was judged or could not be read."""
        self._drift.note(result)
        if isinstance(result, UserError):
            self._images.labels("unreadable", "").inc()
        else:
            self._images.labels(WORDS[result.is_defective], result.category or "").inc()

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)


class _BatchSizes(Collector):
    def __init__(self, batcher: Batcher):
        self._batcher = batcher

    def collect(self):
        family = CounterMetricFamily(
            "harmoniad_batches", "Batches by their number of images.", labels=["images"]
        )
        for size, count in sorted(dict(self._batcher.batch_sizes).items()):
            family.add_metric([str(size)], count)
        yield family
