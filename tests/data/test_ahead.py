"""Loading ahead."""

import threading
import time

import pytest

from harmoniad_jax.data.ahead import PREFETCHED_IMAGES, prefetched


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("count", [0, 1, PREFETCHED_IMAGES - 1, 3 * PREFETCHED_IMAGES])
def test_everything_in_order(threads, count):
    def load(item):
        time.sleep(0.001 * (item % 3))
        return 2 * item

    found = list(prefetched(range(count), load, threads))
    assert found == [2 * item for item in range(count)]


def test_no_more_than_was_said_is_loaded_ahead():
    loaded = []
    items = prefetched(range(1000), loaded.append, threads=2)
    for taken in range(1, 5):
        next(items)
        time.sleep(0.05)
        assert taken <= len(loaded) <= taken + PREFETCHED_IMAGES
    items.close()


def test_an_error_comes_in_its_items_place():
    def load(item):
        if item == 2:
            raise ValueError("the third")
        return item

    items = prefetched(range(5), load, threads=3)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ValueError, match="the third"):
        next(items)


def test_what_is_not_taken_is_not_loaded():
    begun, go_on = [], threading.Event()

    def load(item):
        begun.append(item)
        go_on.wait(10)

    items = prefetched(range(1000), load, threads=1)
    threading.Timer(0.05, go_on.set).start()
    next(items)
    items.close()
    time.sleep(0.05)
    assert len(begun) <= PREFETCHED_IMAGES + 1
