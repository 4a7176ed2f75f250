"""What is timed, and how: all parts in turn, round after round."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from tqdm import tqdm

# Of a core: below it nothing works in the background.
QUIET_SHARE = 0.1
# Seconds after which a background that never gets quiet is accepted.
LONGEST_WAIT = 30.0


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Something that is timed.

    Attributes:
      name: of the part.
      ready: gives a context in which the work may be called, time after time. What would
        make the first calls cheaper or dearer than the others is done on entering it.
        What the work returns is waited for.
      images: that a call works on, over all devices; 0 where there are none.
      flops: of a call over all devices, by the dtype that they are computed in; None
        where XLA does not count them.
      attention: of the encoder; empty where no encoder takes part.
      memory_bytes: of one device that a call needs; None where no call is compiled, or
        its memory is not known.
      fewest_calls: that are timed together at least.
    """

    name: str
    ready: Callable[[], contextlib.AbstractContextManager[Callable[[], Any]]]
    images: int = 0
    flops: Mapping[str, float] | None = dataclasses.field(default_factory=dict)
    attention: str = ""
    memory_bytes: int | None = None
    fewest_calls: int = 1


def always_ready(work: Callable[[], Any]) -> Callable[[], contextlib.nullcontext]:
    """For work whose calls are all alike."""
    return lambda: contextlib.nullcontext(work)


def time_parts(parts: Sequence[Part], rounds: int, seconds: float) -> list[list[float]]:
    """Times all parts in turn, since machines are noisy.

    Args:
      parts: what to time.
      rounds: how often.
      seconds: that the calls which are timed together shall take, about.

    Returns:
      For each part the seconds of one call in each round.
    """
    with tqdm(
        desc="timing", total=(rounds + 1) * len(parts), unit="part", disable=None
    ) as bar:

        def timed(part: Part, calls: int) -> float:
            bar.set_postfix_str(part.name)
            duration = _seconds_per_call(part, calls)
            bar.update()
            return duration

        # Whatever happens at the first call only happens here.
        first = [timed(part, part.fewest_calls) for part in parts]
        calls = [
            max(part.fewest_calls, math.ceil(seconds / duration))
            for part, duration in zip(parts, first, strict=True)
        ]
        table = [list(map(timed, parts, calls)) for _ in range(rounds)]
    return [list(column) for column in zip(*table, strict=True)]


def _seconds_per_call(part: Part, calls: int) -> float:
    _wait_for_background()
    with part.ready() as work:
        start = time.perf_counter()
        for _ in range(calls):
            result = work()
        jax.block_until_ready(result)
        return (time.perf_counter() - start) / calls


def _wait_for_background() -> None:
    """Waits until the threads that read ahead have read what they may."""
    end = time.monotonic() + LONGEST_WAIT
    while time.monotonic() < end:
        start, used = time.perf_counter(), time.process_time()
        time.sleep(0.1)
        passed = time.perf_counter() - start
        if time.process_time() - used < QUIET_SHARE * passed:
            return


@contextlib.contextmanager
def nothing_read_ahead(
    batches: Iterator[Any], most: int, work: Callable[[], Any], *, warm: bool
) -> Iterator[Callable[[], Any]]:
    """The context of work that takes batches.

    Args:
      batches: that it takes.
      most: that may have been read ahead while no one took the time.
      work: takes batches.
      warm: call it once before, so that the first batch is under way.
    """
    for _ in range(most):
        next(batches)
    if warm:
        jax.block_until_ready(work())
    yield work
