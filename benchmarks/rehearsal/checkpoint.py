"""Times saving and restoring the checkpoint of a run, and prints the figures as JSON.

    python benchmarks/rehearsal/checkpoint.py --workdir runs/a --scratch empty

`blocking_seconds` of `save_seconds` keep training from going on; the rest happens beside
it. The file is read right after it was written, so it comes from the system's memory
where it fits into that.
"""

import argparse
import json
import time
from pathlib import Path

import jax

from harmoniad_jax.checkpoints.store import Checkpoints
from harmoniad_jax.data.records import Dataset
from harmoniad_jax.run.run import prepare_run


def measure(workdir: Path, scratch: Path) -> dict[str, float]:
    """Restores the latest checkpoint of a run, and saves it again elsewhere.

    Args:
      workdir: folder of the run.
      scratch: folder to save to; the checkpoint stays there.
    """
    with Checkpoints(workdir, read_only=True) as checkpoints:
        identity = checkpoints.read_identity()
        # No image is needed to know the shapes of the state.
        run = prepare_run(identity.config, Dataset([], []))
        abstract = run.abstract_state
        start = time.perf_counter()
        state, iterator_state, calibration, _ = checkpoints.restore(abstract)
        jax.block_until_ready(state)
        restored = time.perf_counter()
    with Checkpoints(scratch) as checkpoints:
        opened = time.perf_counter()
        checkpoints.save(state, iterator_state, identity, calibration)
        returned = time.perf_counter()
    saved = time.perf_counter()
    return {
        "restore_seconds": restored - start,
        "blocking_seconds": returned - opened,
        "save_seconds": saved - opened,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=Path, required=True, help="folder of a run")
    parser.add_argument("--scratch", type=Path, required=True, help="where to save to")
    options = parser.parse_args()
    print(json.dumps(measure(options.workdir, options.scratch)))


if __name__ == "__main__":
    main()
