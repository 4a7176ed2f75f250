"""Measures what is asked of one GPU in a set time, and goes on where it was cut.

    bash benchmarks/gpu.sh                  # on a rented machine: see there
    python benchmarks/gpu.py --out gpu      # where everything is installed
    python benchmarks/gpu.py --out /tmp/gpu --tiny      # any machine, in a minute

Matrix multiplies, the encoders with both kinds of attention, evaluation, steps of the head
at both widths, in both dtypes and as `plain`, in batches of 16, 64 and 256, the split as
transforms and as a matrix, what a step is busy with, and training of MVTec AD's size from
cached features. Weights and features are random. Each figure is written when it is
measured; the same command makes those that are missing. The programs of a group are
compiled at the same time before it is measured. `campaign.json` has all figures,
`campaign.md` is a page to read.
"""

import argparse
import concurrent.futures
import datetime
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from campaign.keep import Deadline, Kept
from campaign.measure import Context, Measurement, measurements
from campaign.page import page
from campaign.runs import describe_device, peak_bytes
from campaign.sizes import FULL, TINY, Sizes
from command_line import Parser

from harmoniad_jax.errors import USER_ERROR_STATUS, UserError

# Of the budget: what starting a process and writing the page take.
RESERVED = 5.0
DEVICE = "device"
# Cores that compiling one program keeps busy.
CORES_TO_COMPILE = 4
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")


def measure(wanted: Sequence[Measurement], context: Context) -> None:
    """Makes measurements in this process, in their order."""
    context.kept.put(DEVICE, describe_device())
    compile_ahead(wanted, context)
    for one in wanted:
        if context.deadline.left < _least(one, context.sizes):
            print(f"no time is left for: {one.name}", file=sys.stderr, flush=True)
            return
        begun = time.perf_counter()
        result = _result(one, context)
        if result is not None:
            if ahead := context.kept.get(_compiling(one)):
                result |= {"compile_seconds": ahead["compile_seconds"]}
            result |= {"peak_bytes_of_process": peak_bytes()}
            context.kept.put(one.name, result)
        seconds = time.perf_counter() - begun
        print(f"{one.name}: {seconds:.1f} s", file=sys.stderr, flush=True)


def compile_ahead(wanted: Sequence[Measurement], context: Context) -> None:
    """Leaves what measurements compile in the compilation cache, several at a time."""
    ahead = [
        one
        for one in wanted
        if one.is_compiled_ahead
        and not context.kept.is_done(_compiling(one))
        and context.deadline.left >= _least(one, context.sizes)
    ]
    workers = min(len(ahead), (os.cpu_count() or 1) // CORES_TO_COMPILE)
    if workers < 2:
        return
    compiling = context._replace(compiling=True)
    with concurrent.futures.ThreadPoolExecutor(workers) as executor:
        results = executor.map(lambda one: _result(one, compiling), ahead)
        for one, result in zip(ahead, results, strict=True):
            if result is not None:
                context.kept.put(_compiling(one), result)


def _compiling(one: Measurement) -> str:
    return f"compiling {one.name}"


def _least(one: Measurement, sizes: Sizes) -> float:
    return one.seconds if sizes is FULL else 0.0


def _result(one: Measurement, context: Context) -> dict[str, Any] | None:
    """What was measured; what does not fit is a result, and other errors are not."""
    try:
        return one.work(context)
    except Exception as error:  # the other measurements are made all the same
        if any(words in str(error) for words in OUT_OF_MEMORY):
            return {"error": "does not fit into the device's memory"}
        traceback.print_exc()
        return None


def _missing(only: re.Pattern, sizes: Sizes, kept: Kept) -> list[Measurement]:
    """What is asked for and was not measured yet, in its order."""
    asked = [one for one in measurements(sizes) if only.search(one.name)]
    return [one for one in asked if not kept.is_done(one.name)]


def campaign(options: argparse.Namespace) -> None:
    """Each group in a process of its own: what one takes of the device is given back."""
    deadline = Deadline(time.time() + options.budget)
    kept, sizes = Kept(options.out), _sizes(options)
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = _missing(options.only, sizes, kept)
    for group in dict.fromkeys(one.group for one in wanted):
        missing = [one for one in wanted if one.group == group]
        if _can_begin(missing, deadline, sizes):
            _run(group, options, deadline)
            write_page(options.out, sizes)
    write_page(options.out, sizes)


def _can_begin(missing: Sequence[Measurement], deadline: Deadline, sizes: Sizes) -> bool:
    least = min((_least(one, sizes) for one in missing), default=float("inf"))
    return deadline.left - RESERVED >= least


def _run(group: str, options: argparse.Namespace, deadline: Deadline) -> None:
    """Measures a group in a process of its own, until the time is over."""
    command = [sys.executable, __file__, "--out", str(options.out), "--group", group]
    command += ["--scratch", str(options.scratch), "--only", options.only.pattern]
    command += ["--until", str(deadline.at - RESERVED)]
    command += ["--tiny"] if options.tiny else []
    process = subprocess.Popen(command, env=_environment(options))
    try:
        process.wait(timeout=max(deadline.left - RESERVED, 1.0))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        print(f"cut at the end of the budget: {group}", file=sys.stderr, flush=True)


def write_page(out: Path, sizes: Sizes) -> None:
    """Writes what there is so far."""
    kept = Kept(out)
    names = [one.name for one in measurements(sizes)]
    found = {name: kept.get(name) for name in names}
    figures = {
        "date": datetime.date.today().isoformat(),
        "device": kept.get(DEVICE) or {},
        "results": {name: result for name, result in found.items() if result},
        "missing": [name for name in names if not kept.is_done(name)],
    }
    for name, text in (
        ("campaign.json", json.dumps(figures, indent=2) + "\n"),
        ("campaign.md", page(figures, sizes)),
    ):
        unfinished = out / f".{name}.unfinished"
        unfinished.write_text(text)
        unfinished.replace(out / name)


def _environment(options: argparse.Namespace) -> dict[str, str]:
    root = Path(__file__).resolve().parents[1]
    paths = [str(root), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    # What was compiled before the campaign was cut need not be compiled again; the time it
    # took is kept with the figures.
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(options.scratch / "compiled"))
    return environment


def _sizes(options: argparse.Namespace) -> Sizes:
    return TINY if options.tiny else FULL


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the results, kept between calls")
    add("--budget", type=float, default=540.0, help="seconds that all may take")
    add("--scratch", type=Path, help="folder for 9 GB of features (default: temporary)")
    add("--tiny", action="store_true", help="so small that a CPU does it in a minute")
    add(
        "--only",
        type=re.compile,
        default=re.compile(""),
        help="regular expression of the names",
    )
    add("--group", help=argparse.SUPPRESS)
    add("--until", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.budget <= 0:
        raise UserError(f"--budget={options.budget:g} must be above 0.")
    options.out = options.out.absolute()
    name = "harmoniad-campaign-tiny" if options.tiny else "harmoniad-campaign"
    options.scratch = options.scratch or Path(tempfile.gettempdir()) / name
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """The command's entry point."""
    try:
        options = parse(arguments)
        if options.until is None:
            campaign(options)
            print((options.out / "campaign.md").read_text(), end="")
            return
        context = Context(
            _sizes(options),
            options.out,
            options.scratch,
            Kept(options.out),
            Deadline(options.until),
        )
        missing = _missing(options.only, context.sizes, context.kept)
        measure([one for one in missing if one.group == options.group], context)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR_STATUS)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", force=True)
    main()
