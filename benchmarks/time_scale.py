"""How memory and time of a run grow with the number of images.

    python benchmarks/time_scale.py                                   # an hour on two cores
    python benchmarks/time_scale.py --sizes 300,3000 --categories 3

For each size it draws a data set of small images, and goes through a run on it stage by
stage, in a process of its own: listing, copies, checking, encoding, the cache, the order
of training, calibration, checkpoint, evaluation in a stream, and the report. Encoder and
network are tiny and untrained, so that they do not hide what grows: the metrics mean
nothing. Drawn images are kept; everything else is measured anew. It needs Linux.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from at_scale.draw import draw
from command_line import Parser, whole_number
from rehearsal.costs import bytes_text

from harmoniad_jax.errors import USER_ERROR_STATUS, UserError
from harmoniad_jax.folders import cache_folder

BENCHMARKS = Path(__file__).resolve().parent
NOTE = """\
Memory is the most that a stage had, without mapped files, which the system takes back when
it needs room; "all" counts them. Each stage begins with what the ones before it keep."""


def measure(root: Path, scratch: Path) -> dict[str, Any]:
    """Runs `stages.py` in a process of its own; see there for what it returns.

    Raises:
      UserError: it failed.
    """
    path = scratch / "figures.json"
    paths = [str(BENCHMARKS.parent), str(BENCHMARKS), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [
            *(sys.executable, BENCHMARKS / "at_scale" / "stages.py"),
            *("--root", root, "--folder", scratch / "run", "--json", path),
        ],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.DEVNULL,
    )
    if done.returncode:
        raise UserError(f"stages.py ended with status {done.returncode}; see above.")
    return json.loads(path.read_text())


def tables(runs: Sequence[Mapping[str, Any]]) -> str:
    """Seconds, memory and disk of the stages, a column for each size, as Markdown.

    Args:
      runs: what `measure` returns, the smallest first.
    """
    sizes = [f"{run['images']:,} images" for run in runs]
    names = [stage["name"] for stage in runs[0]["stages"]]

    def row(title: str, cells: Sequence[str]) -> str:
        return f"| {' | '.join([title, *cells])} |"

    def head(title: str) -> list[str]:
        return [row(title, sizes), row("---", ["---:"] * len(sizes))]

    def stages(key: str, text: Any) -> list[str]:
        return [
            row(name, [text(run["stages"][place][key]) for run in runs])
            for place, name in enumerate(names)
        ]

    everything = [
        bytes_text(max(stage["resident_bytes"] for stage in run["stages"])) for run in runs
    ]
    kept = [
        row(name, [bytes_text(run["bytes"][name]) for run in runs])
        for name in runs[0]["bytes"]
    ]
    return "\n\n".join(
        "\n".join(lines)
        for lines in (
            head("processor seconds") + stages("processor_seconds", in_tenths),
            head("seconds") + stages("seconds", in_tenths),
            head("memory") + stages("own_bytes", bytes_text) + [row("all", everything)],
            [NOTE],
            head("on disk") + kept,
        )
    )


def in_tenths(value: float) -> str:
    return f"{value:,.1f}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--sizes", type=_counts, default=(1_500, 15_000, 150_000), help="numbers of images")
    add("--categories", type=whole_number, default=30)
    add("--side", type=whole_number, default=32, help="of the images, in pixels")
    add("--folder", default="", help="where to keep the images (default: a user cache)")
    add("--json", default="", help="file for all figures")
    return parser.parse_args(arguments)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(map(whole_number, text.split(",")))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command's entry point."""
    runs = []
    try:
        options = parse(arguments)
        given = Path(options.folder).expanduser() if options.folder else None
        folder = given or cache_folder() / "scale"
        folder.mkdir(parents=True, exist_ok=True)
        for images in sorted(options.sizes):
            root = folder / f"{images}-{options.categories}-{options.side}px"
            draw(root, images, options.categories, options.side)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                runs.append(measure(root, Path(scratch)))
            if options.json:  # kept as it is measured
                Path(options.json).write_text(json.dumps(runs, indent=2) + "\n")
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR_STATUS)
    print(tables(runs))


if __name__ == "__main__":
    main()
