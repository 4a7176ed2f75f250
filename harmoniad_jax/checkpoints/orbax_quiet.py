"""A read or write of many arrays that fails is one exception, and nothing else.

orbax raises the first error and closes its event loop while other arrays are under way.
What becomes of them would appear on the terminal, a traceback for each.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

from absl import logging as absl_logging


@contextlib.contextmanager
def quiet_failures() -> Iterator[None]:
    """Within it orbax says nothing of errors that it raises, in any thread."""
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(_Policy())
    absl_logging.get_absl_logger().addFilter(_is_not_of_orbax)
    try:
        yield
    finally:
        absl_logging.get_absl_logger().removeFilter(_is_not_of_orbax)
        asyncio.set_event_loop_policy(before)


def end_threads(timeout: float) -> None:
    """Waits for orbax's threads, some of which write on after another one failed.

    Args:
      timeout: of each, in seconds.
    """
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax."):
            thread.join(timeout)


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that ends what it began before it is closed."""

    def close(self) -> None:
        if not self.is_closed():
            # The errors of these tasks are taken note of by those who wait for them.
            left = asyncio.all_tasks(self)
            self.run_until_complete(_all_done(left))
        super().close()


async def _all_done(tasks: set[asyncio.Task]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
    # Once more around, for what waits for the tasks that were done before.
    await asyncio.sleep(0)


class _Policy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _Loop()


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in Path(record.pathname).parts
