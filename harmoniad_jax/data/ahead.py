"""Loading ahead: what is decoded while the device is busy with what came before."""

import collections
import concurrent.futures
from collections.abc import Callable, Iterator, Sequence
from typing import Any

PREFETCHED_IMAGES = 64


def prefetched(
    items: Sequence[Any], load: Callable[[Any], Any], threads: int | None = None
) -> Iterator[Any]:
    """What `load` gives for each item, in order; some are loaded ahead.

    An error is raised in its item's place.

    Args:
      items: of any kind.
      load: may be called in any of the threads.
      threads: that load at the same time; None: as many as Python takes by itself.
    """
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(load, item))
            if len(waiting) == PREFETCHED_IMAGES:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
