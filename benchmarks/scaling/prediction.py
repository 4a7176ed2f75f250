"""From counted operations and bytes to the time of a step on many chips.

Nothing here is measured. A step computes, then sums its gradients over all chips, and for
hard mining every chip gets the distances of all positions of the batch first. Latency, the
memory's bandwidth, the input and the host are left out.
"""

import dataclasses
from typing import NamedTuple


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a vendor promises of a chip.

    Attributes:
      bfloat16, float32: FLOP/s of matrix products, the latter at JAX's default precision.
      near: chips that are joined by the fast links.
      near_bandwidth: bytes/s that a chip sends over all of its fast links together.
      far_bandwidth: bytes/s that a chip sends beyond them: its share of the network.
    """

    bfloat16: float
    float32: float
    near: int
    near_bandwidth: float
    far_bandwidth: float


CHIPS = {
    # Google Cloud, "TPU v5e": 197 TFLOP/s in bfloat16, which float32 products are rounded
    # to; 400 GB/s of inter-chip links, both directions counted; pods of 256, of which
    # each has 6.4 Tbit/s to the data centre.
    "v5e": Chip(197e12, 197e12, 256, 200e9, 6.4e12 / 8 / 256),
    # NVIDIA, "H100 Tensor Core GPU" data sheet, SXM: half of the figures with sparsity,
    # in bfloat16 and TF32; 900 GB/s of NVLink, both directions counted, between the eight
    # of a node. "DGX H100" has a 400 Gbit/s adapter for each of them.
    "h100": Chip(989e12, 494.5e12, 8, 450e9, 50e9),
}


class Work(NamedTuple):
    """What a step costs, as counted.

    encoder_flops, head_flops: of one image.
    gradient_bytes: summed over all chips, whatever their number.
    mining_bytes: of one image, that every chip gets.
    """

    encoder_flops: float
    head_flops: float
    gradient_bytes: float
    mining_bytes: float


class Times(NamedTuple):
    """Seconds of a step."""

    compute: float
    gradients: float
    mining: float

    @property
    def efficiency(self) -> float:
        """Share of the time that is computing, where nothing overlaps."""
        return self.compute / sum(self)

    @property
    def overlapped_efficiency(self) -> float:
        """The same, where all of the gradients' way is hidden behind computing.

        That of the distances cannot be: the gradient begins with them.
        """
        return self.compute / (max(self.compute, self.gradients) + self.mining)


def predict(
    work: Work, chip: Chip, chips: int, images: int, peak_share: float, link_share: float
) -> Times:
    """The times of a step of chips x images.

    Args:
      work: what was counted.
      chip: each of the chips.
      chips: how many there are; all of `chip.near` or a part of it, or a multiple.
      images: of each chip.
      peak_share: of the promised FLOP/s that is reached, in (0, 1].
      link_share: of the promised bandwidths that is reached, in (0, 1].
    """
    seconds = work.encoder_flops / chip.bfloat16 + work.head_flops / chip.float32
    one_way = gather_seconds(work.gradient_bytes, chip, chips) / link_share
    batch = chips * images
    return Times(
        compute=images * seconds / peak_share,
        gradients=2 * one_way,
        mining=gather_seconds(work.mining_bytes * batch, chip, chips) / link_share,
    )


def gather_seconds(num_bytes: float, chip: Chip, chips: int) -> float:
    """Of gathering an array on all chips, or of summing and scattering it.

    First in rings of chips that hold the same place in their groups, over the network;
    then in a ring of each group, over the fast links. An all-reduce is both, one after
    the other: twice the time.
    """
    near = min(chips, chip.near)
    far = -(-chips // near)
    over_network = (far - 1) / far * (num_bytes / near) / chip.far_bandwidth
    over_links = (near - 1) / near * num_bytes / chip.near_bandwidth
    return over_network + over_links
