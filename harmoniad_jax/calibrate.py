"""Sets the thresholds of a model anew, by good photos and without training.

    python -m harmoniad_jax.calibrate runs/a --good photos/today
    python -m harmoniad_jax.calibrate model.onnx --good photos/today --category bottle
    python -m harmoniad_jax.calibrate model.onnx --undo

With an exported file JAX need not be installed. See docs/guide-serve.md.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from harmoniad_jax import terminal
from harmoniad_jax.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """The command's entry point; returns the exit status."""
    flags = _parser().parse_args(arguments)

    def run() -> int:
        if (flags.good is None) != flags.undo:
            raise UserError("give --good=DIR with good photos, or --undo, and not both.")
        # Imported late: a mistake in the flags is reported without waiting for these.
        from harmoniad_jax.inference.calibrate import calibrate
        from harmoniad_jax.inference.new_thresholds import path_beside, undo
        from harmoniad_jax.serving.opening import open_model

        opened = open_model(
            flags.model, encoder=flags.encoder, white_level=flags.white_level
        )
        if flags.undo:
            undone = undo(opened.path, opened.model.own_calibration)
            print(f"undone: the thresholds of {undone.time}, by {undone.source}")
            return 0
        good = Path(flags.good).expanduser()
        calibrate(opened.model, opened.path, good, flags.category)
        print(f"stored in {path_beside(opened.path)}; --undo takes it back")
        return 0

    terminal.configure_output()
    return terminal.run(run)


def _parser() -> argparse.ArgumentParser:
    parser = terminal.Parser(
        prog="python -m harmoniad_jax.calibrate",
        description=__doc__.partition("\n")[0],
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="A finished run's folder, or an exported .onnx.")
    add("--good", help="Folder of photos without a defect.")
    add("--category", help="Their product; if not given, what their folders are called.")
    add("--undo", action="store_true", help="Take the latest calibration back.")
    add("--encoder", help="Of a run: where the encoder is now.")
    add("--white_level", type=float, help="White of images deeper than 8 bits.")
    return parser


if __name__ == "__main__":
    sys.exit(main())
