"""From measured seconds to rates, a table, and what limits training."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from harmoniad_jax.words import gigabytes
from training_parts import parts
from training_parts.timing import Part

# Of the measured matrix-multiply rate, for a ViT-L/14 at 336 px in bfloat16 on a GPU.
ENCODER_AIM = 0.5


@dataclasses.dataclass(frozen=True)
class Row:
    """The figures of a part, medians over rounds.

    Attributes:
      name, attention: of the part.
      seconds: of one call.
      images: of one call, over all devices.
      flops: of one call, over all devices; 0 where it computes nothing that is counted.
      share: seconds that this arithmetic takes at the measured rate of a matrix multiply
        of its dtype, of the seconds it took; None without such arithmetic.
      memory_bytes: that a call needs on one device; None where it is not known.
      rounds: images per second in each round.
    """

    name: str
    attention: str
    seconds: float
    images: int
    flops: float
    share: float | None
    memory_bytes: int | None
    rounds: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Images per second over all devices."""
        return self.images / self.seconds

    @property
    def title(self) -> str:
        return f"{self.name} ({self.attention})" if self.attention else self.name

    def to_json(self, devices: int) -> dict[str, Any]:
        return {
            "name": self.name,
            "attention": self.attention or None,
            "seconds_per_call": self.seconds,
            "images_per_call": self.images,
            "images_per_second": self.rate,
            "images_per_second_per_device": self.rate / devices,
            "images_per_second_of_rounds": list(self.rounds),
            "flops_per_call": self.flops or None,
            "flops_per_second": self.flops / self.seconds if self.flops else None,
            "share_of_matmul_rate": self.share,
            "memory_bytes_per_device": self.memory_bytes,
        }


def make_row(part: Part, seconds: Sequence[float], rates: Mapping[str, float]) -> Row:
    """The figures of a part.

    Args:
      part: what was timed.
      seconds: of one call, in each round.
      rates: FLOP/s of a matrix multiply over all devices, by dtype.
    """
    median, flops = statistics.median(seconds), part.flops or {}
    ideal = sum(count / rates[dtype] for dtype, count in flops.items())
    return Row(
        part.name,
        part.attention,
        median,
        part.images,
        sum(flops.values()),
        ideal / median if flops else None,
        part.memory_bytes,
        tuple(part.images / duration for duration in seconds),
    )


def markdown_table(rows: Sequence[Row], devices: int) -> str:
    """One line a part; with several devices also what each of them does."""
    several = devices > 1
    names = ["part", "images/s", *(["images/s a device"] if several else []), "ms an image"]
    names += ["GFLOP an image", "GFLOP/s", "share of matmul rate", "memory of a device"]
    lines = [names, ["---", *["---:"] * (len(names) - 1)]]
    for row in rows:
        per_image, per_second = row.flops / row.images / 1e9, row.flops / row.seconds / 1e9
        lines.append(
            [
                row.title,
                f"{row.rate:,.1f}",
                *([f"{row.rate / devices:,.1f}"] if several else []),
                f"{1000 / row.rate:,.2f}",
                f"{per_image:,.2f}" if row.flops else "-",
                f"{per_second:,.0f}" if row.flops else "-",
                f"{row.share:.0%}" if row.share is not None else "-",
                gigabytes(row.memory_bytes) if row.memory_bytes is not None else "-",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def limits(rows: Sequence[Row]) -> dict[str, str]:
    """The part that limits training, by what training begins with.

    Reading runs beside the devices' work, while encoder and head follow one another: the
    slowest of the three is what an improvement has to begin with. With several kinds of
    attention the fastest encoder is meant.
    """
    found = _fastest(rows)
    images, features = found[parts.READ_IMAGES], found[parts.READ_FEATURES]
    encoder, head = found[parts.ENCODER], found[parts.HEAD]
    images_limit = images.rate < found[parts.STEP].rate
    slower = min(encoder, head, key=lambda row: row.rate)
    return {
        parts.FROM_IMAGES: images.name if images_limit else slower.name,
        parts.FROM_FEATURES: min(features, head, key=lambda row: row.rate).name,
    }


def conclusion(
    rows: Sequence[Row],
    rates: Mapping[str, float],
    encoder_dtype: str,
    devices: int,
    backend: str,
) -> str:
    """What limits training, and how well the encoder uses the devices, in sentences."""
    found, limited = _fastest(rows), limits(rows)
    sentences = []
    each = " on each device" if devices > 1 else ""
    for dtype, rate in rates.items():
        reached = rate / devices / 1e9
        sentences.append(f"A {dtype} matrix multiply reaches {reached:,.0f} GFLOP/s{each}.")
    for start in (parts.FROM_IMAGES, parts.FROM_FEATURES):
        limit = limited[start]
        sentences.append(
            f"To {start}, {found[start].rate:,.1f} images/s, is limited by: {limit} "
            f"({found[limit].rate:,.1f} images/s alone)."
        )
    encoders = [row for row in rows if row.name == parts.ENCODER]
    known = [row for row in encoders if row.share is not None]
    if known:
        shares = " and ".join(f"{row.share:.0%} with {row.attention}" for row in known)
        aim = (
            f"; the aim with ViT-L/14 at 336 px in bfloat16 is {ENCODER_AIM:.0%} or more"
            if backend == "gpu"
            else ""
        )
        sentences.append(
            f"The encoder reaches {shares} attention of the measured {encoder_dtype} "
            f"matrix-multiply rate{aim}."
        )
    first, *others = encoders
    for other in others:
        # Round by round: what slowed a round down slowed both.
        ratio = statistics.median(
            ours / theirs for ours, theirs in zip(other.rounds, first.rounds, strict=True)
        )
        sentences.append(
            f"With {other.attention} attention the encoder is {ratio:.2f} times as fast as "
            f"with {first.attention}, by the median of the rounds' ratios."
        )
    return " ".join(sentences)


def _fastest(rows: Sequence[Row]) -> dict[str, Row]:
    """The row of each part, with the kind of attention that makes it fastest."""
    return {row.name: row for row in sorted(rows, key=lambda row: row.rate)}
