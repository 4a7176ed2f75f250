"""Times training steps with the feature cache and without it, on your images.

    python benchmarks/time_cache.py --root photos --encoder weights/dinov2-small

Both train the same number of steps from the same state, in turn; figures are seconds per
step, medians over steps. The first pass over the images, which fills the cache, is timed
by itself: it costs what encoding takes in one epoch without it.
"""

import argparse
import statistics
import tempfile
import time

import jax
import numpy as np

from harmoniad_jax.config import Config, parse_config
from harmoniad_jax.config_files import load_config
from harmoniad_jax.run.run import prepare_run
from harmoniad_jax.training.stepper import make_stepper


def make_config(options: argparse.Namespace, cache: str, enabled: bool) -> Config:
    config = load_config("folder", f"root={options.root},encoder={options.encoder}")
    config.data.categories = tuple(filter(None, options.categories.split(",")))
    config.cache.folder = cache
    config.cache.enabled = enabled
    return parse_config(config)


class Training:
    """A run, one step at a time."""

    def __init__(self, config: Config):
        run = prepare_run(config, for_training=True)
        start = time.perf_counter()
        self._stepper = make_stepper(run, run.place_encoder())
        self.preparation = time.perf_counter() - start
        self.images = len(run.dataset.train)
        self._state = self._stepper.begin(run.new_state())

    def step(self) -> tuple[float, float]:
        """Seconds of a step, and its loss."""
        start = time.perf_counter()
        self._state, metrics = self._stepper.advance(self._state, 1)
        loss = float(metrics["loss"])
        return time.perf_counter() - start, loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", required=True, help="folder in the MVTec layout")
    parser.add_argument("--encoder", required=True, help="folder or name of an encoder")
    parser.add_argument("--categories", default="", help="names with commas; all if empty")
    parser.add_argument("--steps", type=int, default=15)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as cache:
        with_cache = Training(make_config(options, cache, enabled=True))
        without = Training(make_config(options, cache, enabled=False))
        rows = [(*with_cache.step(), *without.step()) for _ in range(options.steps + 1)][
            1:
        ]  # the first compiles
    cached, cached_loss, fresh, fresh_loss = np.array(rows).T
    ours, theirs = statistics.median(cached), statistics.median(fresh)
    deviation = np.abs(cached_loss - fresh_loss).max()
    print(
        f"{jax.device_count()} {jax.devices()[0].device_kind}, {with_cache.images} images"
    )
    print(f"encoding and compiling    {with_cache.preparation:8.1f} s")
    print(f"a step without the cache  {theirs:8.3f} s")
    print(f"a step with it            {ours:8.3f} s, {theirs / ours:.1f} times faster")
    print(f"largest difference of the losses {deviation:.1e} of about {fresh_loss[0]:.2f}")


if __name__ == "__main__":
    main()
