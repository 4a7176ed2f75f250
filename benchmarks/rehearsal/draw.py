"""Draws a data set with the classes, counts and layout of MVTec AD.

    python benchmarks/rehearsal/draw.py --folder images [--share 0.01] [--side 1024]

The pictures are those of the demo, in other colours for each class: they take as long to
read and as much room as the real ones, and mean nothing. Images that are there already are
left alone, so that the same command continues where it was interrupted.
"""

import argparse
import itertools
import multiprocessing
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from harmoniad_jax.data.records import GOOD
from harmoniad_jax.data.synthetic import DEFECTS, SMALLEST_SIDE, DemoSpec, compose
from harmoniad_jax.errors import USER_ERROR_STATUS

# Deviation of the sensor's noise, of 255. It makes a PNG of about the real size.
NOISE = 0.7
# Of a category; one of two training images is held out of training.
FEWEST = {"train": 2, "good": 1, "defective": 1}


class Look(NamedTuple):
    """A product of the demo, its colour channels in an order, and whether it is grey."""

    product: str
    channels: tuple[int, int, int]
    grey: bool = False


LOOKS = {
    "carpet": Look("fabric", (0, 1, 2)),
    "grid": Look("fabric", (0, 2, 1), grey=True),
    "leather": Look("fabric", (2, 1, 0)),
    "tile": Look("fabric", (1, 0, 2)),
    "wood": Look("fabric", (2, 0, 1)),
    "bottle": Look("washer", (2, 1, 0)),
    "cable": Look("washer", (0, 2, 1)),
    "hazelnut": Look("washer", (0, 1, 2)),
    "metal_nut": Look("washer", (1, 2, 0)),
    "screw": Look("washer", (0, 1, 2), grey=True),
    "capsule": Look("tablet", (0, 2, 1)),
    "pill": Look("tablet", (0, 1, 2)),
    "toothbrush": Look("tablet", (2, 1, 0)),
    "transistor": Look("tablet", (1, 0, 2)),
    "zipper": Look("tablet", (0, 1, 2), grey=True),
}


class Picture(NamedTuple):
    """One image of the data set; `defect` is None where there is none."""

    category: str
    split: str
    defect: str | None
    index: int

    @property
    def image(self) -> str:
        return f"{self.category}/{self.split}/{self.defect or GOOD}/{self.index:03d}.png"

    @property
    def mask(self) -> str:
        return f"{self.category}/ground_truth/{self.defect}/{self.index:03d}_mask.png"


def plan(share: float = 1.0) -> list[Picture]:
    """All images, or a share of every category's: at least `FEWEST` of each kind.

    The defective ones of a category are dealt to the demo's defects in turn.
    """
    # Imported late: the workers, which import this file, need no data set builders.
    from tfds_builders import BUILDERS

    pictures = []
    for place, (category, original) in enumerate(BUILDERS["mvtec_ad"].COUNTS.items()):
        train, good, defective = (
            range(max(fewest, round(share * getattr(original, kind))))
            for kind, fewest in FEWEST.items()
        )
        pictures += [Picture(category, "train", None, i) for i in train]
        pictures += [Picture(category, "test", None, i) for i in good]
        for i in defective:
            index, _ = divmod(i, len(DEFECTS))
            defect = DEFECTS[(i + place) % len(DEFECTS)]
            pictures.append(Picture(category, "test", defect, index))
    return pictures


def draw(picture: Picture, side: int) -> tuple[np.ndarray, np.ndarray]:
    """An image, uint8 [S, S, 3] or [S, S] where it is grey, and its mask, bool [S, S].

    Drawn at half the side and enlarged, which is as sharp as most photos are.
    """
    place, look = list(LOOKS).index(picture.category), LOOKS[picture.category]
    spec = DemoSpec(side=max(SMALLEST_SIDE, side // 2), seed=place)
    scene = compose(look.product, spec, picture.split, picture.index, defect=picture.defect)
    pixels = np.rint(255 * scene.image[..., look.channels]).astype(np.uint8)
    image = Image.fromarray(pixels).convert("L" if look.grey else "RGB")
    image = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC), np.float32)
    kind = [None, *DEFECTS].index(picture.defect)
    numbers = (place, picture.split == "test", kind, picture.index)
    noise = np.random.default_rng(numbers).standard_normal(image.shape, np.float32)
    image = np.rint(np.clip(image + NOISE * noise, 0, 255)).astype(np.uint8)
    mask = Image.fromarray(scene.mask).resize((side, side), Image.Resampling.NEAREST)
    return image, np.asarray(mask)


def write(picture: Picture, side: int, folder: Path) -> None:
    """Writes an image and its mask, each of them whole or not at all."""
    image, mask = draw(picture, side)
    # The image comes last: where it is, its mask is.
    files = {picture.mask: np.uint8(255) * mask} if picture.defect else {}
    for name, pixels in (files | {picture.image: image}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # No image to the builder; what a killed process left of it is written over.
        unfinished = path.with_name(f".{path.name}.unfinished")
        try:
            Image.fromarray(pixels).save(unfinished, "PNG", compress_level=1)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


def write_all(folder: Path, side: int, share: float, workers: int) -> None:
    """Writes what is missing of the data set, in several processes."""
    missing = [picture for picture in plan(share) if not (folder / picture.image).exists()]
    if not missing:
        return
    # Not forked: a fork copies the locks of threads that it does not copy.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_leave_interrupts) as pool:
        try:
            done = pool.map(
                write,
                missing,
                itertools.repeat(side),
                itertools.repeat(folder),
                chunksize=4,
            )
            for _ in tqdm(done, "drawing", len(missing), unit="image", disable=None):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _leave_interrupts() -> None:
    """Ctrl-C reaches every process; the first one tells the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--side", type=int, default=1024, help="of the images, in pixels")
    parser.add_argument(
        "--share", type=float, default=1.0, help="of the images, above 0 and up to 1"
    )
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes"
    )
    options = parser.parse_args()
    try:
        write_all(options.folder, options.side, options.share, options.workers)
    except OSError as error:
        print(f"error: the images cannot be written ({error}).", file=sys.stderr)
        sys.exit(USER_ERROR_STATUS)
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
