"""Says what a step moves between devices, and predicts how well more of them pay.

    python scripts/analyse_scaling.py --mesh 8x1 --mesh 4x2

Compiles the step for meshes of simulated devices (data x model), without weights or
images, and reads the collectives from the compiled program: how many, how many bytes, what
for. The prediction is arithmetic on these bytes, XLA's count of operations and figures of
vendors. Nothing here is a measurement of speed.
"""

import argparse
import collections
import os

# Only how a program is split is looked at: its machine code need not be good.
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
COUNTS, IMAGES = (8, 64, 512), (1, 4, 16)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mesh", action="append", help="DATAxMODEL; default 8x1 and 4x2")
    parser.add_argument("--width", type=int, default=1024, help="of the encoder")
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--patch", type=int, default=14)
    parser.add_argument("--image_side", type=int, default=336)
    parser.add_argument("--images", type=int, default=2, help="for each device")
    parser.add_argument("--utilisation", type=float, default=0.4, help="assumed")
    parser.add_argument("--parts", default="head,step", help="head: from cached features")
    return parser.parse_args()


def main() -> None:
    options = read_options()
    meshes = [tuple(map(int, m.split("x"))) for m in options.mesh or ["8x1", "4x2"]]
    most = max(data * model for data, model in meshes)
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={most} {FLAGS}"
    # Imported late: the number of devices is fixed when JAX starts.
    from scaling.program import Program

    for data, model in meshes:
        program = Program(options, data, model)
        print(f"\n## {data} x {model} devices, {options.images} images each\n")
        print(program.describe())
        for part in options.parts.split(","):
            print_collectives(program, part)
    print_prediction(program.cost(), options.utilisation)


def print_collectives(program, part: str) -> None:
    """A row for each kind and purpose."""
    compiled = program.compile(part)
    rows: dict[tuple[str, str, int], list] = collections.defaultdict(list)
    for one in program.collectives(compiled):
        rows[one.kind, program.purpose(one), one.devices].append(one)
    memory = compiled.memory_analysis()
    print(
        f"\n{part}: working memory of a device {memory.temp_size_in_bytes / 1e9:.2f} GB, "
        f"arguments {memory.argument_size_in_bytes / 1e9:.2f} GB\n"
    )
    print("| collective | over | of what | arrays | MB | MB sent by each device |")
    print("|---|---:|---|---:|---:|---:|")
    for (kind, purpose, devices), found in sorted(
        rows.items(), key=lambda row: -sum(one.sent for one in row[1])
    ):
        size, sent = sum(one.size for one in found), sum(one.sent for one in found)
        print(
            f"| {kind} | {devices} | {purpose} | {len(found)} | {size / 1e6:,.3f} "
            f"| {sent / 1e6:,.3f} |"
        )


def print_prediction(cost, utilisation: float) -> None:
    """Efficiency without overlap and with full overlap, for the head alone and all."""
    from scaling.prediction import CHIPS, efficiency

    print(
        f"\n## Predicted efficiency, at {utilisation:.0%} of the vendor's rate\n\n"
        f"{cost.moved / 1e6:,.0f} MB summed over all devices in a step; "
        f"{cost.encoder / 1e9:,.0f} GFLOP of the encoder and {cost.head / 1e9:,.0f} of the "
        "head for an image.\n"
    )
    headings = [f"{images} per chip" for images in IMAGES]
    print(f"| chips | step | {' | '.join(headings)} |")
    print(f"|---|---|{'---:|' * len(headings)}")
    for chip in CHIPS:
        for count in COUNTS:
            for name, part in (
                ("head", cost._replace(encoder=0.0)),
                ("encoder + head", cost),
            ):
                cells = [
                    " to ".join(
                        f"{efficiency(chip, part, count, images, utilisation, o):.0%}"
                        for o in (False, True)
                    )
                    for images in IMAGES
                ]
                print(f"| {count} {chip.name} | {name} | {' | '.join(cells)} |")
    for chip in CHIPS:
        print(f"\n{chip.source}.")


if __name__ == "__main__":
    main()
