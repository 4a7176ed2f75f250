"""Compares runs: the settings in which they differ, their metrics, their time.

python -m harmoniad_jax.summarize runs/* [--format=csv]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from harmoniad_jax import cli
from harmoniad_jax.errors import UserError
from harmoniad_jax.report.summary import FORMATS, is_run, read_run, write_summary


def main() -> None:
    """The command's entry point."""
    output = flags.DEFINE_enum("format", "markdown", FORMATS, "Format of the table.")

    def run(folders: Sequence[str]) -> None:
        if not folders:
            raise UserError("name the folders of runs, such as runs/*.")
        paths = [Path(folder).expanduser() for folder in folders]
        # A pattern such as runs/* catches whatever else lies there.
        runs = [path for path in paths if is_run(path)]
        for path in set(paths) - set(runs):
            print(f"{path} is no run: left out", file=sys.stderr)
        if not runs:
            raise UserError("none of these is a run, whose folder has a config.json.")
        print(write_summary([read_run(path) for path in runs], output.value))

    cli.run(run, takes_arguments=True)


if __name__ == "__main__":
    main()
