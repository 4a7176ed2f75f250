"""From a folder in the MVTec layout to a `Dataset`.

    ROOT/CATEGORY/train/good/*              defect-free images to learn from
    ROOT/CATEGORY/test/good/*               defect-free images to test on
    ROOT/CATEGORY/test/DEFECT/*             defective images, any number of defects
    ROOT/CATEGORY/ground_truth/DEFECT/*     masks, paired by stem: 000.png, 000_mask.png

`test` and `ground_truth` may be absent: good photos alone are enough to train. ROOT may
also be a single category.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any

from PIL import Image
from tqdm import tqdm

from harmoniad_jax.data.images import open_image, read_size
from harmoniad_jax.data.mask_files import read_mask
from harmoniad_jax.data.records import GOOD, Dataset, ImageFile, Record, check_categories
from harmoniad_jax.errors import UserError, raise_problems

Image.init()  # fills the tables of formats
IMAGE_SUFFIXES = frozenset(
    suffix
    for suffix, image_format in Image.registered_extensions().items()
    if image_format in Image.OPEN
)
MASK_SUFFIX = re.compile("_mask$", re.IGNORECASE)
# Sides of a mask may be rounded when a data set was scaled down.
ASPECT_TOLERANCE = 0.02
# Problems that one message lists before it only counts them.
LISTED_PROBLEMS = 10


def folder_dataset(root: Path, categories: Sequence[str] = ()) -> Dataset:
    """Lists a folder in the MVTec layout.

    Args:
      root: the data set, or one category of it.
      categories: the ones to take; all that are there if empty.

    Raises:
      UserError: no such folder, a category that is not there or has no training image,
        a mask without image or of another aspect ratio. Every problem is listed.
    """
    if not root.is_dir():
        raise UserError(
            f"data.root={str(root)!r} is not a folder; expected one that holds "
            "CATEGORY/train/good/ with images."
        )
    folders = _category_folders(root)
    if not folders:
        raise UserError(
            f"data.root={str(root)!r} holds no category; expected "
            "CATEGORY/train/good/ with images below it."
        )
    check_categories(categories, folders, root)

    train: list[Record] = []
    test: list[Record] = []
    problems = [] if categories else _misplaced_images(root, folders)
    for name in sorted(set(categories) or folders):
        folder = folders[name]
        images = _images(folder / "train" / GOOD)
        if not images:
            problems.append(f"{folder / 'train' / GOOD} holds no image to learn from")
        problems += [
            f"{folder / 'train' / GOOD / child} is a folder; put its images beside it"
            for child in _subfolders(folder / "train" / GOOD)
        ]
        train += [Record(image, name) for image in images]
        records, mask_problems = _test_records(folder, name)
        test += records
        problems += mask_problems
    raise_problems(problems, LISTED_PROBLEMS)
    return Dataset(train=train, test=test)


def check_images(records: Sequence[Record]) -> None:
    """Decodes every image and mask once, so that a bad file stops a run at its start.

    Raises:
      UserError: naming the files that cannot be read.
    """
    images, masks = [record.image for record in records], masks_of(records)
    raise_problems(unreadable(images, masks), LISTED_PROBLEMS)


def masks_of(records: Sequence[Record]) -> list[ImageFile]:
    """The masks of the records that have one."""
    return [record.mask for record in records if record.mask is not None]


def unreadable(
    images: Sequence[ImageFile],
    masks: Sequence[ImageFile],
    decode: Callable[[ImageFile], Any] = open_image,
) -> list[str]:
    """What is wrong with the files that cannot be decoded, in words.

    Args:
      images, masks: the files.
      decode: of an image.
    """

    def problem(file: ImageFile, read: Callable[[ImageFile], Any]) -> str | None:
        try:
            read(file)
        except UserError as error:
            return str(error)
        return None

    files, reads = [*images, *masks], [decode] * len(images) + [read_mask] * len(masks)
    with ThreadPoolExecutor() as pool:
        checks = pool.map(problem, files, reads)
        bar = tqdm(checks, "checking images", len(files), leave=False, disable=None)
        return [found for found in bar if found]


def _category_folders(root: Path) -> dict[str, Path]:
    """Folders that look like a category: they hold a `train` or a `test` folder."""

    def is_category(folder: Path) -> bool:
        return (folder / "train").is_dir() or (folder / "test").is_dir()

    if is_category(root):
        return {root.resolve().name: root}
    return {name: root / name for name in _subfolders(root) if is_category(root / name)}


def _misplaced_images(root: Path, folders: Mapping[str, Path]) -> list[str]:
    """Folders beside the categories whose images would be passed over."""
    if root in folders.values():
        return []
    return [
        f"{root / name} holds images but no train/{GOOD}"
        for name in _subfolders(root)
        if name not in folders and any(map(is_image, (root / name).rglob("*")))
    ]


def _test_records(folder: Path, category: str) -> tuple[list[Record], list[str]]:
    """The test images of one category with their masks, and what is wrong with them."""
    records, problems = [], []
    defects = _subfolders(folder / "test")
    for defect in defects:
        images = _images(folder / "test" / defect)
        masks: dict[str, Path] = {}
        for path in _images(folder / "ground_truth" / defect) if defect != GOOD else ():
            stem = MASK_SUFFIX.sub("", path.stem)
            if stem in masks:
                problems.append(f"{path} and {masks[stem]} are masks of the same image")
            masks[stem] = path
        for image in images:
            mask = masks.pop(image.stem, None)
            records.append(Record(image, category, defect, mask))
            if mask is not None:
                problems += _aspect_problem(image, mask)
        problems += [
            f"mask {mask} has no image {folder / 'test' / defect / stem}.*"
            for stem, mask in masks.items()
        ]
    for defect in _subfolders(folder / "ground_truth"):
        if defect not in defects and _images(folder / "ground_truth" / defect):
            problems.append(
                f"{folder / 'ground_truth' / defect} has masks but "
                f"{folder / 'test' / defect} does not exist"
            )
    return records, problems


def _aspect_problem(image: Path, mask: Path) -> list[str]:
    """A mask may have another resolution than its image, but not another shape."""
    try:
        (width, height), (mask_width, mask_height) = read_size(image), read_size(mask)
    except UserError as error:
        return [str(error)]
    ratio = (width * mask_height) / (height * mask_width)
    if abs(ratio - 1.0) <= ASPECT_TOLERANCE:
        return []
    return [
        f"mask {mask} is {mask_width} x {mask_height} px but its image {image} is "
        f"{width} x {height} px: another aspect ratio"
    ]


def _subfolders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(
        child.name
        for child in folder.iterdir()
        if child.is_dir() and not child.name.startswith(".")
    )


def _images(folder: Path) -> list[Path]:
    """Image files by suffix, sorted; anything else (Thumbs.db, notes) is passed over."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if is_image(path))


def is_image(path: PurePath) -> bool:
    """Whether a file is called as images are; hidden ones are none."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
