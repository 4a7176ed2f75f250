"""What the campaign measures: at full size, and so small that a CPU does it in a test."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Architecture:
    """An encoder of random weights; how fast it is does not depend on them."""

    name: str
    width: int
    depth: int
    heads: int
    patch: int
    side: int
    # Of the trained network: channels of an attention head, groups, blocks of a branch.
    head_width: int = 64
    groups: int = 2
    blocks: int = 4


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of a campaign.

    Attributes:
      architectures: the encoders; features of the last one are those of the rehearsal.
      batches: of encoder, head and evaluation.
      matmul_sides: of the matrices that are multiplied.
      images, steps: of the rehearsal; steps are in batches of `rehearsal_batch`.
      steps_per_call: of the head.
      piece: steps of the rehearsal between two notes of how far it came.
      rounds, seconds: see `timing.time_parts`.
    """

    architectures: tuple[Architecture, ...]
    batches: tuple[int, ...]
    matmul_sides: tuple[int, ...]
    images: int
    steps: int
    rehearsal_batch: int = 16
    steps_per_call: int = 10
    piece: int = 500
    rounds: int = 3
    seconds: float = 0.3


FULL = Sizes(
    # DINOv2-S at 224 px has the sizes of the first.
    architectures=(
        Architecture("ViT-S/14-224", 384, 12, 6, 14, 224),
        Architecture("ViT-L/14-336", 1024, 24, 16, 14, 336),
    ),
    batches=(16, 64, 256),
    matmul_sides=(4096, 8192),
    images=3629,
    steps=10_000,
)
TINY = Sizes(
    architectures=(
        Architecture("tiny", 32, 2, 2, 8, 32, head_width=16, groups=1, blocks=1),
    ),
    batches=(2,),
    matmul_sides=(64,),
    images=6,
    steps=4,
    rehearsal_batch=2,
    steps_per_call=2,
    piece=2,
    rounds=1,
    seconds=0.001,
)
