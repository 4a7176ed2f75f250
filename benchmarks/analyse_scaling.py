"""Counts what the devices of a mesh send each other in a step, and predicts how it scales.

    python benchmarks/analyse_scaling.py                       # CLIP ViT-L/14 at 336 px
    python benchmarks/analyse_scaling.py --mesh 8x1 --mesh 4x2 --images 2 \\
        --chip v5e --chips 8,64,512 --images_per_chip 1,4,16

It compiles the step of training for meshes of simulated devices, from stored features and
from images, and reads the collectives from what XLA made of it. No weight is drawn and
nothing is run, so that a laptop is enough. What follows are predictions from operations
and bytes that were counted, and no measurements: docs/scaling.md says what they leave out.

The simulated devices are CPUs. XLA splits a step over devices before it knows what they
are, but on a TPU or GPU it may then write an all-reduce, of which a device keeps a part, as
a reduce-scatter. Working memory is that of the CPU's program. Settings of the run may be
added as --config.NAME=VALUE.
"""

import argparse
import ast
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from scaling.prediction import CHIPS, Chip, Work, predict

from harmoniad_jax.config import Config, parse_config
from harmoniad_jax.config_files import load_config
from harmoniad_jax.errors import USER_ERROR_STATUS, UserError

if TYPE_CHECKING:
    from scaling.programs import Program

    from harmoniad_jax.run.run import Run

# Compiling faster changes nothing in how a step is split over devices.
XLA_FLAGS = (
    "--xla_force_host_platform_device_count={} --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)
# CLIP ViT-L/14 at 336 px, as it runs on accelerators.
SETTINGS = {
    "data.image_side": 336,
    "encoder.name": "untrained",
    "encoder.dtype": "bfloat16",
    "encoder.untrained.width": 1024,
    "encoder.untrained.depth": 24,
    "encoder.untrained.heads": 16,
    "encoder.untrained.patch": 14,
}


def configured(settings: Sequence[str]) -> Config:
    """The config of `configs/mvtec.py` with `SETTINGS` and those of the command line."""
    config = load_config("mvtec")
    config.update_from_flattened_dict(SETTINGS)
    for setting in settings:
        match = re.fullmatch(r"--config\.([\w.]+)=(.*)", setting)
        if not match:
            raise UserError(
                f"{setting!r} is no option; see --help. Settings of the run are given as "
                "--config.NAME=VALUE."
            )
        try:
            value = ast.literal_eval(match[2])
        except (SyntaxError, ValueError):
            value = match[2]
        try:
            config.update_from_flattened_dict({match[1]: value})
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{setting!r} is no setting of a run: {error}.") from None
    return parse_config(config)


def on_mesh(config: Config, mesh: tuple[int, int], images: int) -> Config:
    """The config for a mesh of data x model devices, each with so many images."""
    values = config.to_dict()
    values["sharding"] |= {"data": mesh[0], "model": mesh[1]}
    values["train"]["batch_size"] = images * mesh[0] * mesh[1]
    return parse_config(values)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], words: int) -> str:
    """A Markdown table whose first `words` columns are words and the rest numbers."""
    cells = [header, *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| "
        + " | ".join(
            cell.ljust(width) if place < words else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in cells
    ]
    rule = "|".join(
        "-" * (width + 2) if place < words else "-" * (width + 1) + ":"
        for place, width in enumerate(widths)
    )
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def megabytes(num_bytes: float) -> str:
    """With two digits that count where it is less than ten."""
    return f"{num_bytes / 1e6:,.{1 if num_bytes >= 1e7 else 3}f}"


def describe_run(run: "Run") -> str:
    """What lives on each device of a mesh."""
    from scaling.programs import abstract_encoder_params, bytes_per_device

    state = run.abstract_state
    parts = {
        "parameters": state.params,
        "optimizer state": state.opt_state,
        "encoder": abstract_encoder_params(run),
    }
    sizes = [f"{name} {megabytes(bytes_per_device(p))} MB" for name, p in parts.items()]
    data, model = run.mesh.devices.shape
    return (
        f"## {data} x {model} devices, {run.config.train.batch_size} images\n\n"
        f"On each device: {', '.join(sizes)}."
    )


def describe_program(run: "Run", name: str, program: "Program") -> str:
    """A table of what a step's collectives move."""
    from scaling.programs import by_purpose

    rows = [
        (
            what,
            kind + (" (a turn of a loop)" if row.in_open_loop else ""),
            f"{row.largest.dtype}{list(row.largest.shape)}",
            row.operations,
            megabytes(row.num_bytes),
            megabytes(row.sent_bytes),
        )
        for (what, kind), row in by_purpose(program.collectives, run).items()
    ]
    header = ("what", "collective", "largest array", "operations", "MB", "sent, MB")
    return (
        f"### Step from {name}\n\n{program.flops / 1e9:,.0f} GFLOP over all devices; on "
        f"each, arguments {megabytes(program.argument_bytes)} MB, working memory "
        f"{megabytes(program.temporary_bytes)} MB.\n\n{table(header, rows, words=3)}"
    )


def counted_work(run: "Run", programs: dict[str, "Program"]) -> Work:
    """What the prediction needs, from the steps of one mesh."""
    from scaling.programs import by_purpose

    batch, features = run.config.train.batch_size, programs["features"]
    rows = by_purpose(features.collectives, run).items()
    sums = {
        what: sum(row.num_bytes for (purpose, _), row in rows if purpose == what)
        for what in ("gradients", "hard mining")
    }
    return Work(
        encoder_flops=(programs["images"].flops - features.flops) / batch,
        head_flops=features.flops / batch,
        gradient_bytes=sums["gradients"],
        mining_bytes=sums["hard mining"] / batch,
    )


def describe_prediction(work: Work, name: str, options: argparse.Namespace) -> str:
    """A table of predicted times and efficiencies of a chip."""
    chip: Chip = CHIPS[name]
    rows = []
    for chips in options.chips:
        for images in options.images_per_chip:
            shares = (options.peak_share, options.link_share)
            head = predict(work._replace(encoder_flops=0.0), chip, chips, images, *shares)
            whole = predict(work, chip, chips, images, *shares)
            rows.append(
                (
                    f"{chips:,}",
                    images,
                    f"{chips * images:,}",
                    *(f"{1e3 * seconds:.2f}" for seconds in head),
                    f"{head.efficiency:.0%}",
                    f"{head.overlapped_efficiency:.0%}",
                    f"{1e3 * whole.compute:.2f}",
                    f"{whole.efficiency:.0%}",
                    f"{whole.overlapped_efficiency:.0%}",
                )
            )
    header = (
        *("chips", "images each", "batch", "compute, ms", "gradients, ms", "mining, ms"),
        *("efficiency", "overlapped", "with encoder, ms", "efficiency", "overlapped"),
    )
    return (
        f"### {name}, predicted\n\nAssumed: {options.peak_share:.0%} of "
        f"{chip.bfloat16 / 1e12:,.0f} TFLOP/s in the encoder and of "
        f"{chip.float32 / 1e12:,.0f} in the head; {options.link_share:.0%} of "
        f"{chip.near_bandwidth / 1e9:,.0f} GB/s from each chip within {chip.near}, and of "
        f"{chip.far_bandwidth / 1e9:,.1f} GB/s beyond.\n\n{table(header, rows, words=0)}"
    )


def report(options: argparse.Namespace, config: Config) -> Iterator[str]:
    """The paragraphs, each when it is known."""
    from scaling.programs import PROGRAMS, abstract_run, compile_step

    work = None
    for mesh in options.mesh:
        run = abstract_run(on_mesh(config, mesh, options.images))
        yield describe_run(run)
        programs = {}
        for name in PROGRAMS:
            programs[name] = compile_step(run, name)
            yield describe_program(run, name, programs[name])
        if work is None and mesh[1] == 1:
            work = counted_work(run, programs)
    if work is None:
        yield "No prediction: it is for whole weights on every chip; add --mesh 8x1."
        return
    yield (
        "## Predicted from these counts, not measured\n\n"
        f"An image takes {work.head_flops / 1e9:,.0f} GFLOP in the head and "
        f"{work.encoder_flops / 1e9:,.0f} in the encoder; {megabytes(work.gradient_bytes)} "
        f"MB of gradients a step, and {megabytes(work.mining_bytes)} MB an image for hard "
        "mining."
    )
    for name in options.chip:
        yield describe_prediction(work, name, options)


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, as the commands of the package do."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help.")


def _mesh(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not DATAxMODEL, such as 4x2")
    return int(match[1]), int(match[2])


def _counts(text: str) -> list[int]:
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no list such as 8,64,512")
    return [int(part) for part in text.split(",")]


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text} must be above 0 and at most 1")
    return share


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Config]:
    """The options, and the config that they are about."""
    parser = _Parser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--mesh", type=_mesh, action="append", help="DATAxMODEL (default: 8x1 and 4x2)")
    add("--images", type=int, default=2, help="of each device, in what is compiled")
    add("--chip", choices=CHIPS, action="append", help="to predict for (default: all)")
    add("--chips", type=_counts, default=[8, 64, 512], help="to predict for")
    add("--images_per_chip", type=_counts, default=[1, 4, 16], help="to predict for")
    add("--peak_share", type=_share, default=0.4, help="of the FLOP/s, assumed")
    add("--link_share", type=_share, default=0.8, help="of the bandwidths, assumed")
    options, settings = parser.parse_known_args(arguments)
    if options.images < 1:
        raise UserError(f"--images={options.images} must be at least 1.")
    options.mesh = options.mesh or [(8, 1), (4, 2)]
    options.chip = options.chip or list(CHIPS)
    return options, configured(settings)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command's entry point."""
    try:
        options, config = parse(arguments)
        # Before JAX is imported: the number of devices is fixed at its start.
        devices = max(data * model for data, model in options.mesh)
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["XLA_FLAGS"] = XLA_FLAGS.format(devices)
        for paragraph in report(options, config):
            print(f"{paragraph}\n", flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR_STATUS)


if __name__ == "__main__":
    main()
