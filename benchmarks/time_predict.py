"""How long a person waits for `predict`: for one image, and from the command to a result.

    python benchmarks/time_predict.py --workdir runs/photos --image part.png

Prints a table of batches of 1 to 16 images, which are judged in turn, and then one of the
whole command, started anew each time with a cache of compiled programs that is warm. With
`--other DIR` the command is started in turn with that of another checkout.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from command_line import Parser, whole_number

from harmoniad_jax import terminal

ROOT = Path(__file__).parents[1]
POLL_SECONDS = 0.005


def main() -> None:
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=Path, required=True, help="Of a finished run.")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--encoder", help="Where the encoder is, if not where it was.")
    parser.add_argument("--rounds", type=whole_number, default=5)
    parser.add_argument("--other", type=Path, help="Another checkout of the project.")
    parser.add_argument("--no_batches", action="store_true", help="The command alone.")
    flags = parser.parse_args()
    if not flags.no_batches:
        print_batches(flags)
        print()
    print_command(flags)


def print_batches(flags) -> None:
    """Seconds of the network for batches of every size, in turns."""
    # Imported late: the command is timed without it.
    from harmoniad_jax.devices.compilation import enable_compilation_cache
    from harmoniad_jax.inference.image_model import Query
    from harmoniad_jax.inference.trained_model import TrainedModel

    enable_compilation_cache()
    model = TrainedModel(flags.workdir, encoder=flags.encoder)
    loaded = model.load_image(Query(flags.image))
    if loaded.error:
        raise SystemExit(f"error: {loaded.error}")
    pixels = loaded.pixels
    seconds = {size: [] for size in model.batch_sizes}
    for size in seconds:  # compiled now
        model.predict_pixels(size * [pixels])
    for _ in range(flags.rounds):
        for size, found in seconds.items():
            # As many images of each size, so that all rows are equally steady.
            for _ in range(model.batch_size // size):
                start = time.perf_counter()
                model.predict_pixels(size * [pixels])
                found.append(time.perf_counter() - start)
    print("| images | seconds | an image | to that of the largest batch |")
    print("|-------:|--------:|---------:|-----------------------------:|")
    medians = {size: statistics.median(found) for size, found in seconds.items()}
    share = medians[model.batch_size] / model.batch_size
    for size, median in medians.items():
        each = median / size
        print(f"| {size} | {median:.3f} | {each:.4f} | {each / share:.2f} |")


def print_command(flags) -> None:
    """Seconds from the command to its first result, of one or two checkouts in turns."""
    checkouts = [ROOT, *([flags.other.resolve()] if flags.other else [])]
    seconds = {checkout: [] for checkout in checkouts}
    with tempfile.TemporaryDirectory() as caches:
        for number in range(flags.rounds + 1):
            for checkout, found in seconds.items():
                # What one of them compiled must not help the other.
                cache = Path(caches) / str(checkouts.index(checkout))
                passed = until_first_result(checkout, cache, flags)
                if number:  # the first one fills the cache
                    found.append(passed)
    print("| checkout | to the first result, s | smallest | largest |")
    print("|----------|-----------------------:|---------:|--------:|")
    for checkout, found in seconds.items():
        name = "this one" if checkout == ROOT else "the other"
        middle = statistics.median(found)
        print(f"| {name} | {middle:.2f} | {min(found):.2f} | {max(found):.2f} |")
    if flags.other:
        ratio = np.median(np.divide(*seconds.values()))
        print(f"\nthis one takes {ratio:.2f} of the other, by the median of the pairs")


def until_first_result(checkout: Path, cache: Path, flags) -> float:
    """Starts the command for one image, and waits for its row."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        command = [sys.executable, "-m", "harmoniad_jax.predict"]
        command += [f"--workdir={flags.workdir.resolve()}", f"--output={output}"]
        command += [f"--input={flags.image.resolve()}"]
        command += [f"--encoder={flags.encoder}"] if flags.encoder else []
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=checkout,
            env={
                **os.environ,
                "PYTHONPATH": str(checkout),
                "XDG_CACHE_HOME": str(cache),
            },
            stdout=subprocess.DEVNULL,
        )
        while process.poll() is None and not _rows(output):
            time.sleep(POLL_SECONDS)
        passed = time.perf_counter() - start
        if process.wait():
            raise SystemExit(f"the command failed with status {process.returncode}")
    return passed


def _rows(output: Path) -> int:
    """Rows of the table so far, without its head."""
    for path in output.glob("predictions*.csv"):
        with contextlib.suppress(FileNotFoundError):  # it gets its name just now
            return max(len(path.read_text().splitlines()) - 1, 0)
    return 0


if __name__ == "__main__":
    terminal.run(main)
