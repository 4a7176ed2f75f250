"""Draws data sets of any size in the MVTec layout: small images, which mean nothing."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from harmoniad_jax.data.records import GOOD

DEFECTS = ("dent", "scratch", "stain")
# Of the images of a category on average: the others are trained on.
TESTED_GOOD, TESTED_DEFECTIVE = 0.2, 0.2
# The smallest and the largest category have so many training images, of the mean.
SPREAD = (1 / 3, 5 / 3)
NOISE = 12.0  # deviation, of 255: no two images are nearly alike
UNFINISHED = ".unfinished"


class Plan(NamedTuple):
    """Counts of images of each category."""

    train: tuple[int, ...]
    good: int
    defective: int

    @property
    def images(self) -> int:
        return sum(self.train) + len(self.train) * (self.good + self.defective)


def plan(images: int, categories: int) -> Plan:
    """About so many images: as many to test on in each category, others to train on.

    With 150,000 in 30 categories these have 1000 to 5000 training images, 1000 good and
    1000 defective ones to test on.
    """
    each = images / categories
    trained = each * (1 - TESTED_GOOD - TESTED_DEFECTIVE) * np.linspace(*SPREAD, categories)
    return Plan(
        tuple(max(2, round(count)) for count in trained.tolist()),
        max(1, round(each * TESTED_GOOD)),
        max(1, round(each * TESTED_DEFECTIVE)),
    )


def draw(root: Path, images: int, categories: int, side: int) -> Plan:
    """Draws a data set, unless it is there; it has its name when it is complete.

    Returns:
      What it holds.
    """
    planned = plan(images, categories)
    if root.is_dir():
        return planned
    partial = root.with_name(root.name + UNFINISHED)
    shutil.rmtree(partial, ignore_errors=True)
    for number in range(categories):
        _draw_category(partial / f"product{number:03d}", planned, number, side)
    partial.rename(root)
    return planned


def _draw_category(folder: Path, planned: Plan, number: int, side: int) -> None:
    random = np.random.default_rng(number)
    # A smooth pattern of its own, as a product has.
    coarse = random.uniform(40, 215, (4, 4, 3)).astype(np.uint8)
    size = (side, side)
    product = np.asarray(Image.fromarray(coarse).resize(size), np.float32)
    for place, count, defects in _parts(planned, number):
        masks = folder / place.replace("test/", "ground_truth/")
        for name in {folder / place, *([masks] if defects else [])}:
            name.mkdir(parents=True)
        for index in range(count):
            image = product + NOISE * random.standard_normal(product.shape, np.float32)
            if defects:
                mask = np.zeros(size, np.uint8)
                top, left = random.integers(0, side * 3 // 4, 2)
                mask[top : top + side // 4, left : left + side // 4] = 255
                image[mask > 0] += 90
                _save(mask, masks / f"{index:05d}_mask.png")
            pixels = np.rint(np.clip(image, 0, 255)).astype(np.uint8)
            _save(pixels, folder / place / f"{index:05d}.png")


def _parts(planned: Plan, number: int) -> Iterator[tuple[str, int, bool]]:
    """Folder, number of images and whether they are defective."""
    yield f"train/{GOOD}", planned.train[number], False
    yield f"test/{GOOD}", planned.good, False
    for kind, name in enumerate(DEFECTS):
        if count := len(range(kind, planned.defective, len(DEFECTS))):
            yield f"test/{name}", count, True


def _save(pixels: np.ndarray, path: Path) -> None:
    Image.fromarray(pixels).save(path, "PNG", compress_level=1)
