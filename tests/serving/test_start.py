"""The start of a server: the network is tried before anything else uses it."""

import shutil
import threading

import pytest
from serving_helpers import served, wait_until

import harmoniad_runtime
from harmoniad_jax.run.run import prepare_run
from harmoniad_jax.serving import watch
from harmoniad_jax.serving.limits import Limits
from harmoniad_jax.serving.opening import Opened
from harmoniad_jax.serving.service import Service
from harmoniad_jax.serving.watch import RESULTS, Watched


@pytest.fixture
def model(exported):
    return harmoniad_runtime.load(exported.path, threads=1)


@pytest.fixture
def watched(trained_run, tmp_path, monkeypatch):
    """A folder with four images."""
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.05)
    (tmp_path / "in").mkdir()
    for place, record in enumerate(prepare_run(trained_run.config).dataset.test[:4]):
        shutil.copy(record.image, tmp_path / "in" / f"{place}.png")
    return Watched(tmp_path / "in", tmp_path / "out")


def lines(watched):
    return (watched.output / RESULTS).read_bytes().count(b"\n")


def test_a_folder_full_of_images_waits_until_the_server_is_ready(
    exported, model, watched, monkeypatch
):
    """More images than the queue has room for, and a network that is slow at first."""
    at_once, running, first = [], threading.Lock(), threading.Event()
    original = model.predict_pixels

    def alone(images):
        at_once.append(not running.acquire(blocking=False))
        try:
            if not first.is_set():
                first.wait(0.5)  # several looks at the folder
                first.set()
            return original(images)
        finally:
            if not at_once[-1]:
                running.release()

    monkeypatch.setattr(model, "predict_pixels", alone)
    limits = Limits(images=2, queue=2)
    with served(exported.path, limits, model=model, watched=watched) as client:
        wait_until(lambda: lines(watched) == 4)
        assert client.get("/readyz").status_code == 200
    assert not any(at_once)


# A thread that dies with an exception fails the test as well.
@pytest.mark.parametrize("place", ["first", "queued"])
def test_a_server_that_ends_before_it_is_ready_starts_nothing(
    exported, model, watched, monkeypatch, place
):
    go, waiting = threading.Event(), threading.Event()
    opened = Opened(model, exported.path, "exported file")
    service = Service(opened, Limits(), watched=watched)
    owner, name = (
        (model, "predict_pixels") if place == "first" else (service.batcher, "submit")
    )
    original = getattr(owner, name)

    def held(*arguments):
        waiting.set()
        assert go.wait(30)
        return original(*arguments)

    monkeypatch.setattr(owner, name, held)
    service.start()
    assert waiting.wait(30)
    (warming_up,) = (one for one in threading.enumerate() if one.name == "warm-up")
    service.close()
    go.set()
    warming_up.join(30)
    assert not warming_up.is_alive() and not service.ready
    assert "watch" not in {one.name for one in threading.enumerate()}
    assert lines(watched) == 0
