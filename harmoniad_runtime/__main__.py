"""Judges new images with an exported model, without JAX.

    python -m harmoniad_runtime --model model.onnx --input photos/today --output out

Leaves what `python -m harmoniad_jax.predict` leaves. A file that cannot be read is a row
with its error, and makes the exit status 1.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from harmoniad_jax import terminal
from harmoniad_jax.inference.files import UNREADABLE_STATUS, judge_files


def main(arguments: Sequence[str] | None = None) -> int:
    """The command's entry point; returns the exit status."""
    flags = _parser().parse_args(arguments)

    def run() -> int:
        from harmoniad_runtime import load  # late: mistakes in the flags are found first

        unreadable = judge_files(
            lambda: load(
                flags.model,
                providers=flags.provider.split(","),
                white_level=flags.white_level,
                threads=flags.threads,
            ),
            flags.input,
            Path(flags.output).expanduser(),
            category=flags.category,
            false_positive_rate=flags.false_positive_rate,
            threshold=flags.threshold,
            maps=flags.maps,
            map_size=flags.map_size,
            overlays=flags.overlays,
            overwrite=flags.overwrite,
        )
        return UNREADABLE_STATUS if unreadable else 0

    terminal.configure_output()
    return terminal.run(run)


def _parser() -> argparse.ArgumentParser:
    parser = terminal.Parser(
        prog="python -m harmoniad_runtime",
        description=__doc__.partition("\n")[0],
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, help="File that harmoniad_jax.export wrote.")
    add("--input", required=True, help="An image, a folder of images, or a glob.")
    add("--output", required=True, help="Folder to write to.")
    add("--category", help="Product class, if all are of one.")
    add("--false_positive_rate", type=float, help="Share of good images called defective.")
    add("--threshold", type=float, help="Score above which is defective.")
    add("--maps", default="png", choices=("png", "npy", "none"), help="Anomaly maps.")
    add("--map_size", default="image", choices=("image", "model"), help="Their size.")
    add("--overlays", default=True, action="store_true", help="Draw maps over the images.")
    add("--nooverlays", dest="overlays", action="store_false", help="Do not.")
    add("--overwrite", action="store_true", help="Write into a folder with files.")
    add("--white_level", type=_positive, help="White of images deeper than 8 bits.")
    add("--provider", default="CPUExecutionProvider", help="Of ONNX Runtime.")
    add("--threads", type=int, help="That compute; all cores if not given.")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
