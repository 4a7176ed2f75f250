"""How well more devices pay, from operations and bytes: arithmetic, no measurement."""

from typing import NamedTuple


class Chip(NamedTuple):
    """What a vendor says of an accelerator.

    Attributes:
      name: for the table.
      encoder_rate, head_rate: dense operations/s in bfloat16, and in what a float32
        matrix product is computed in by default (bfloat16 on TPU, TF32 on the H100).
      bandwidth: bytes/s that a chip can send to the others of its slice or island.
      island: chips that this bandwidth joins.
      network: bytes/s of each chip beyond them.
      source: where the vendor says so.
    """

    name: str
    encoder_rate: float
    head_rate: float
    bandwidth: float
    island: int
    network: float
    source: str


CHIPS = (
    Chip(
        "TPU v5e",
        *(197e12, 197e12, 200e9, 256, 12.5e9),
        "Google Cloud documentation, 'TPU v5e': 197 TFLOP/s, 1600 Gbit/s between chips, "
        "slices of 256; 100 Gbit/s for each chip assumed between slices",
    ),
    Chip(
        "H100 SXM",
        *(989e12, 495e12, 450e9, 8, 50e9),
        "NVIDIA H100 data sheet: 989 TFLOP/s bfloat16 and 495 TF32, dense, 900 GB/s NVLink "
        "in both directions together; a 400 Gbit/s network card for each GPU assumed",
    ),
)


class Cost(NamedTuple):
    """Of a step.

    encoder, head: operations for one image.
    moved: bytes of the arrays that are summed over all devices in a step.
    """

    encoder: float
    head: float
    moved: float


def efficiency(
    chip: Chip, cost: Cost, chips: int, images: int, utilisation: float, overlap: bool
) -> float:
    """Time of the computation as a share of the time of a step.

    Args:
      chip: its figures.
      cost: of a step.
      chips: how many.
      images: of the batch, for each chip.
      utilisation: share of the vendor's rate that is reached, an assumption.
      overlap: whether communication hides behind computation wholly; else not at all.
    """
    rate = cost.encoder / chip.encoder_rate + cost.head / chip.head_rate
    computing = images * rate / utilisation
    bandwidth = chip.bandwidth if chips <= chip.island else chip.network
    sending = 2 * (chips - 1) / chips * cost.moved / bandwidth
    whole = max(computing, sending) if overlap else computing + sending
    return computing / whole
