"""Times training and evaluation part by part, against the device's own speed.

    python benchmarks/time_training.py --encoder vit-l14-336       # on a GPU
    python benchmarks/time_training.py --encoder vit-s14-224 --batch_size 4 --rounds 3
    python benchmarks/time_training.py --encoder weights/dinov2-small --root photos

The parts are the program's own: reading images and cached features, the encoder, the head
(the trained update), a whole step of both, evaluation, and training from end to end from
images, from the feature cache and from features in device memory. In the same run large
matrix multiplies are timed: the share of a part is the time that its arithmetic takes at
their rate, each dtype at its own, of the time it took. Arithmetic is counted by XLA before
compilation, over all devices; memory is what a compiled call needs on one device, by XLA's
count. Parts run in turn, since machines are noisy; figures are medians over rounds. Images
were read before, so they come from the system's file cache.

Without --root the images are drawn. Settings may be added as --config.NAME=VALUE.
"""

import argparse
import ast
import dataclasses
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from command_line import Parser, whole_number
from training_parts.matmul import best_rates, default_sides, matmul_parts
from training_parts.parts import training_parts
from training_parts.report import conclusion, limits, make_row, markdown_table
from training_parts.timing import time_parts

from harmoniad_jax.config import Config, parse_config, unknown_field, with_settings
from harmoniad_jax.data.synthetic import CATEGORIES, DemoSpec, write_demo_dataset
from harmoniad_jax.errors import USER_ERROR_STATUS, UserError
from harmoniad_jax.fields import field_types
from harmoniad_jax.run.run import UNTRAINED, Run, prepare_run

# Architectures of random weights: width, depth, heads, patch and image side.
UNTRAINED_ENCODERS = {
    "vit-l14-336": (1024, 24, 16, 14, 336),
    "vit-b16-224": (768, 12, 12, 16, 224),
    "vit-s14-224": (384, 12, 6, 14, 224),
}


def make_config(
    options: argparse.Namespace, settings: Sequence[str], scratch: Path, attention: str
) -> Config:
    """The settings of the run with one kind of attention.

    Raises:
      UserError: a setting that does not exist, or is of another type.
    """
    config = Config().to_dict()
    config["data"] |= {"root": options.root or str(scratch / "images")}
    config["cache"] |= {"folder": str(scratch / "features")}
    config["encoder"] |= {"name": options.encoder, "dtype": options.dtype}
    if options.encoder in UNTRAINED_ENCODERS:
        *architecture, side = UNTRAINED_ENCODERS[options.encoder]
        names = ("width", "depth", "heads", "patch")
        config["encoder"]["name"] = UNTRAINED
        config["encoder"]["untrained"] |= dict(zip(names, architecture, strict=True))
        config["data"]["image_side"] = side
    if options.image_side:
        config["data"]["image_side"] = options.image_side
    if options.batch_size:
        config["train"]["batch_size"] = options.batch_size
    known, changes = dict(field_types(Config)), {}
    for setting in settings:
        path, equals, value = setting.removeprefix("--config.").partition("=")
        if not setting.startswith("--config.") or not equals:
            raise UserError(
                f"{setting!r} is no option; see --help. Settings are given as "
                "--config.NAME=VALUE."
            )
        if path not in known:
            raise UserError(f"{unknown_field(path)}.")
        changes[path] = _value(value, known[path])
    changed = with_settings(
        parse_config(config), changes | {"encoder.attention": attention}
    )
    # Evaluation is compared with training, image by image.
    return with_settings(changed, {"evaluation.batch_size": changed.train.batch_size})


def _value(text: str, kind: Any) -> Any:
    if kind is str:
        return text
    if kind == tuple[str, ...]:
        return tuple(filter(None, text.split(",")))
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def prepare(config: Config, images: int) -> Run:
    """The run, on so many of its training images, evenly taken."""
    run = prepare_run(config, for_training=True)
    records = run.dataset.train
    count = min(images, len(records))
    chosen = [records[i] for i in np.linspace(0, len(records) - 1, count).astype(int)]
    return dataclasses.replace(run, dataset=dataclasses.replace(run.dataset, train=chosen))


def draw(root: Path, options: argparse.Namespace) -> None:
    """Draws images in the MVTec layout; a share of them is held out."""
    each = -(-2 * options.images // len(CATEGORIES))
    spec = DemoSpec(
        side=options.drawn_side,
        train_per_category=max(each, 2),
        test_good_per_category=1,
        test_per_defect=1,
    )
    write_demo_dataset(root, spec)


def benchmark(
    options: argparse.Namespace, settings: Sequence[str], scratch: Path
) -> tuple[dict[str, Any], str]:
    """The figures, and the table as Markdown."""
    configs = [
        make_config(options, settings, scratch, attention)
        for attention in options.attention.split(",")
    ]
    if not options.root:
        draw(scratch / "images", options)
    runs = [prepare(config, options.images) for config in configs]
    run = runs[0]
    dtypes = sorted({run.config.encoder.dtype, "float32"})
    sides = options.matmul_sides or default_sides()
    matmuls = matmul_parts(run.mesh, dtypes, sides)
    parts = training_parts(runs)
    seconds = time_parts([*matmuls, *parts], options.rounds, options.seconds)
    medians = [float(np.median(column)) for column in seconds]
    rates = best_rates(matmuls, medians[: len(matmuls)])
    rows = [
        make_row(part, column, rates)
        for part, column in zip(parts, seconds[len(matmuls) :], strict=True)
    ]
    devices, device = run.mesh.size, jax.devices()[0].device_kind
    dtype, side = run.config.encoder.dtype, run.config.data.image_side
    batch = run.config.train.batch_size
    title = (
        f"{devices} {device}, encoder {options.encoder} at {side} px in {dtype}, batches "
        f"of {batch} from {len(run.dataset.train)} images, with features in device memory "
        f"{run.config.train.steps_per_call} steps a call; medians of {options.rounds} "
        "rounds."
    )
    text = conclusion(rows, rates, dtype, devices, jax.default_backend())
    figures = {
        "device": device,
        "devices": devices,
        "jax": jax.__version__,
        "options": vars(options) | {"settings": list(settings)},
        "settings": run.config.to_dict(),
        "matmul_flops_per_second": rates,
        "parts": [row.to_json(devices) for row in rows],
        "limits": limits(rows),
        "conclusion": text,
    }
    return figures, "\n\n".join([title, markdown_table(rows, devices), text])


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The options, and settings of the run."""
    parser = Parser(
        description=__doc__.partition("\n")[0],
        epilog="Settings may be added as --config.NAME=VALUE.",
        allow_abbrev=False,
    )
    add, sizes = parser.add_argument, ", ".join(UNTRAINED_ENCODERS)
    add("--encoder", default="vit-s14-224", help=f"folder or name of one, or {sizes}")
    add("--root", default="", help="folder in the MVTec layout (default: drawn images)")
    add("--images", type=whole_number, default=64, help="to train on, at most")
    add("--drawn_side", type=whole_number, default=1024, help="of drawn images, in pixels")
    add("--image_side", type=whole_number, help="of the encoder's input")
    add(
        "--batch_size",
        type=whole_number,
        help="of training and evaluation, over all devices",
    )
    add("--dtype", default="auto", help="of the encoder: auto, float32 or bfloat16")
    add("--attention", default="library", help="library, fused or library,fused")
    add("--rounds", type=whole_number, default=5)
    add("--seconds", type=float, default=0.5, help="that a part takes in a round, about")
    add("--matmul_sides", type=_counts, help="of the matrices that are multiplied")
    add("--json", default="", help="file for all figures")
    return parser.parse_known_args(arguments)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(map(whole_number, text.split(",")))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command's entry point."""
    try:
        options, settings = parse(arguments)
        with tempfile.TemporaryDirectory() as scratch:
            figures, table = benchmark(options, settings, Path(scratch))
        if options.json:
            Path(options.json).write_text(json.dumps(figures, indent=2) + "\n")
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR_STATUS)
    print(table)


if __name__ == "__main__":
    # What is compiled and encoded meanwhile, as the commands say it.
    logging.basicConfig(format="%(message)s", force=True)
    logging.getLogger("harmoniad_jax").setLevel(logging.INFO)
    main()
