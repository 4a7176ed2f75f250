"""The figures of a campaign as a page to read."""

from collections.abc import Mapping, Sequence
from typing import Any

from campaign.measure import MATMUL, REHEARSAL
from campaign.sizes import Sizes
from harmoniad_jax.words import gigabytes

# What one H100 or H200 is to reach.
AIMS = """\
Aims: the encoder ViT-L/14-336 at 60 % of the rate of matrix multiplies in bfloat16, the
head of its width at 35 %, the head of ViT-S width in 3 ms a step of 16 images, and training
of MVTec AD's size in 3 minutes."""
NOTE = """\
Times are medians of rounds. A share is the time that the arithmetic takes at the measured
rate of matrix multiplies of its dtype, of the time it took; float32 is multiplied at JAX's
default precision, which is TF32 on these chips. Memory is what a call needs by XLA's count.
Weights, images and features are random."""


def page(figures: Mapping[str, Any], sizes: Sizes) -> str:
    """Markdown.

    Args:
      figures: "date", "device", "results" by name, and "missing" names.
      sizes: of the campaign.
    """
    results, device = figures["results"], figures["device"]
    rates = results.get(MATMUL, {}).get("flops_per_second", {})
    parts = [
        "# One GPU",
        f"{device.get('devices', '?')} {device.get('device', 'unknown device')}, jax "
        f"{device.get('jax', '?')}, {figures['date']}: `bash benchmarks/gpu.sh`.",
        NOTE,
    ]
    if rates:
        reached = " and ".join(
            f"{rate / 1e12:,.1f} TFLOP/s in {dtype}" for dtype, rate in rates.items()
        )
        parts.append(f"Matrix multiplies reach {reached}. {AIMS}")
    for title, kind, per_step in (
        ("The head", "head", True),
        ("The encoder", "encoder", False),
        ("Evaluation", "evaluation", False),
        ("The split", "split", False),
    ):
        chosen = {n: r for n, r in results.items() if n.split()[0] == kind}
        if chosen:
            parts += [f"## {title}", _table(chosen, rates, per_step)]
    if REHEARSAL in results:
        parts += ["## Training of MVTec AD's size", _rehearsal(results[REHEARSAL], sizes)]
    for name, result in results.items():
        if name.startswith("profile") and result.get("busiest"):
            parts += [f"## {name.capitalize()}", _busiest(result["busiest"])]
    if figures["missing"]:
        parts += ["## Not measured", "\n".join(f"- {one}" for one in figures["missing"])]
    return "\n\n".join(parts) + "\n"


def _lines(rows: Sequence[Sequence[str]]) -> str:
    head, *others = rows
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ruler, *others))


def _table(results: Mapping[str, Any], rates: Mapping[str, float], per_step: bool) -> str:
    once = "ms a step" if per_step else "ms a batch"
    rows = [["", once, "images/s", "TFLOP/s", "share", "memory", "compiled in, s"]]
    for name, one in results.items():
        title = name.partition(" ")[2]
        if "error" in one:
            rows.append([title, one["error"], *["-"] * 5])
            continue
        seconds, flops, rate = one["seconds"], one.get("flops"), rates.get(one.get("dtype"))
        memory = one["memory_bytes"]
        rows.append(
            [
                title,
                f"{1000 * seconds / one.get('steps', 1):,.2f}",
                f"{one['images'] / seconds:,.0f}",
                f"{flops / seconds / 1e12:,.1f}" if flops else "-",
                f"{flops / seconds / rate:.0%}" if flops and rate else "-",
                gigabytes(memory) if memory is not None else "-",
                f"{one['compile_seconds']:,.1f}",
            ]
        )
    return _lines(rows)


def _rehearsal(one: Mapping[str, Any], sizes: Sizes) -> str:
    if "error" in one:
        return one["error"]
    done, seconds = one["steps"], one["seconds"]
    text = (
        f"{one['images']:,} images of {sizes.architectures[-1].name}, batches of "
        f"{one['batch']}, features in device memory: {done:,} of {one['all_steps']:,} "
        f"steps in {seconds:,.1f} s"
    )
    text += f", {1000 * seconds / done:,.2f} ms a step." if done else "."
    text += (
        f" Before the first step, {one['ready_seconds']:,.1f} s to read the features from "
        "disk, put them on the device and compile."
    )
    if one["pieces"] > 1:
        text += f" Measured in {one['pieces']} calls, whose steps are added up."
    if peak := one.get("peak_bytes"):
        text += f" The device held {gigabytes(peak)} at most."
    return text


def _busiest(rows: Sequence[Mapping[str, Any]]) -> str:
    return _lines(
        [
            ["operation", "ms a step", "calls a step"],
            *(
                [
                    f"`{row['name'][:60]}`",
                    f"{row['milliseconds_a_step']:,.3f}",
                    f"{row['calls_a_step']:,.1f}",
                ]
                for row in rows
            ),
        ]
    )
