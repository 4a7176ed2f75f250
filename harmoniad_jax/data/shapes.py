"""The shape of the encoder's input: one for each category, near the aspect of its images.

A shape is (height, width) in pixels. All shapes of a run have about as many patches as the
square that `side` names, and so cost about the same.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from harmoniad_jax.data.images import image_size
from harmoniad_jax.data.records import Record
from harmoniad_jax.errors import UserError

Shape = tuple[int, int]

# Aspects are rounded to so many steps for each doubling. A step has rows of every shape,
# each computed on its own: so near aspects share one. A shape is off by 9 % at most.
STEPS = 4
# Longer images are squashed to this aspect.
MOST_ASPECT = 8.0
# Training images of a category, evenly taken, whose aspects are measured.
MEASURED_IMAGES = 32
# How batches of several shapes are made up, kept with a run. Raise it when their rows or
# the order of their images change.
COMPOSITION = 1


def input_shape(aspect: float, side: int, patch: int) -> Shape:
    """The shape for images of an aspect.

    With n = side / patch and the aspect a, rounded: n / sqrt(a) rows of n sqrt(a) patches,
    both rounded, and at least 2. A square for aspects from 0.92 to 1.09.

    Args:
      aspect: width / height of the images, > 0.
      side: of a square input in pixels, a multiple of `patch`.
      patch: side of a patch in pixels.
    """
    octaves = math.log2(min(max(aspect, 1 / MOST_ASPECT), MOST_ASPECT))
    stretch = 2 ** (round(STEPS * octaves) / STEPS / 2)
    rows, columns = (
        max(round(side / patch * factor), 2) for factor in (1 / stretch, stretch)
    )
    return rows * patch, columns * patch


def nearest_shape(aspect: float, shapes: Iterable[Shape]) -> Shape:
    """The shape whose aspect is nearest, as a ratio; of two, the smaller tuple.

    Args:
      aspect: width / height, > 0.
      shapes: at least one.
    """
    return min(sorted(set(shapes)), key=lambda one: abs(math.log(one[1] / one[0] / aspect)))


def measure_shapes(records: Sequence[Record], side: int, patch: int) -> dict[str, Shape]:
    """The shape of each category: that of the median aspect of its images.

    Only headers are read, where they can be. An image that cannot be read is left out
    here: it is named when all images are read.

    Args:
      records: training images.
      side, patch: see `input_shape`.
    """
    by_category: dict[str, list[Record]] = {}
    for record in records:
        by_category.setdefault(record.category, []).append(record)
    return {
        category: input_shape(_median_aspect(by_category[category]), side, patch)
        for category in sorted(by_category)
    }


def _median_aspect(records: Sequence[Record]) -> float:
    """The median of width / height; 1 where no image can be read."""
    count = min(MEASURED_IMAGES, len(records))
    aspects = []
    for row in np.linspace(0, len(records) - 1, count).astype(int):
        try:
            width, height = image_size(records[row].image)
        except UserError:
            continue
        aspects.append(width / height)
    return statistics.median(aspects) if aspects else 1.0


def share_rows(weights: Mapping[Shape, float], batch_size: int) -> dict[Shape, int]:
    """How many rows of a training batch each shape has, on any number of devices.

    In proportion to the weights, as nearly as whole rows and at least one of each allow:
    rows go one by one to the shape that is furthest below its share.

    Args:
      weights: of each shape, > 0; such as the number of its images.
      batch_size: B.

    Returns:
      Rows by shape, sorted; their sum is B.

    Raises:
      UserError: there are more shapes than rows.
    """
    if batch_size < len(weights):
        raise UserError(
            f"config.train.batch_size is {batch_size}, but images have {len(weights)} "
            f"shapes and each needs a row; take at least {len(weights)}, or "
            "config.data.fit=squash, in a new --workdir if the run has begun."
        )
    total = sum(weights.values())
    rows = dict.fromkeys(sorted(weights), 1)
    for _ in range(batch_size - len(rows)):
        missing = {s: weights[s] / total * batch_size - rows[s] for s in rows}
        rows[max(missing, key=missing.get)] += 1
    return rows
