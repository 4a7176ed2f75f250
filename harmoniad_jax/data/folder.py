"""From a folder in the MVTec layout to a `Dataset`.

    ROOT/CATEGORY/train/good/*              defect-free images to learn from
    ROOT/CATEGORY/validation/good/*         defect-free images to set thresholds on
    ROOT/CATEGORY/test/good/*               defect-free images to test on
    ROOT/CATEGORY/test/DEFECT/*             defective images, any number of defects
    ROOT/CATEGORY/ground_truth/DEFECT/*     masks, paired by stem: 000.png, 000_mask.png

Only `train` must be there: good photos alone are enough. ROOT may also be a single
category. `good` may also be called as in `GOOD_NAMES`. Images of a defect may lie in
folders below it, and their masks in the same ones. Several masks of one image lie in a
folder of the image's stem: 000/0.png, 000/1.png.

What looks like a photo and is taken for nothing is an error or a warning.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from harmoniad_jax.data.ahead import prefetched
from harmoniad_jax.data.images import open_image
from harmoniad_jax.data.listing import (
    can_list,
    files_below,
    images_in,
    listed,
    photos_in,
    subfolders,
    warn_of_unread,
)
from harmoniad_jax.data.mask_files import read_mask
from harmoniad_jax.data.pairs import paired_masks
from harmoniad_jax.data.records import GOOD, Dataset, ImageFile, Record, check_categories
from harmoniad_jax.data.suffixes import is_image
from harmoniad_jax.errors import LISTED_PROBLEMS, UserError, raise_problems

logger = logging.getLogger(__name__)

# What the folder of defect-free images may be called, in any case.
GOOD_NAMES = (GOOD, "ok", "normal")
PARTS = ("train", "validation", "test", "ground_truth")
CLOSED = "may not be read; change its permissions"


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
    if not can_list(root):
        raise UserError(f"data.root={str(root)!r} {CLOSED}.")
    folders = _category_folders(root)
    for name in subfolders(root):
        if not can_list(root / name):
            logger.warning("%s %s. It is left out.", root / name, CLOSED)
    if not folders:
        raise UserError(
            f"data.root={str(root)!r} holds no category; expected "
            "CATEGORY/train/good/ with images below it."
        )
    check_categories(categories, folders, root)

    train: list[Record] = []
    held_out: list[Record] = []
    test: list[Record] = []
    problems = [] if categories else _misplaced_images(root, folders)
    for name in sorted(set(categories) or folders):
        folder = folders[name]
        problems += _problems_of_parts(folder)
        for part, records in (("train", train), ("validation", held_out)):
            good, found = _good_records(folder / part, name)
            records += good
            problems += found
        records, found = _test_records(folder, name)
        test += records
        problems += found
        problems += [f"{closed} {CLOSED}" for closed in _closed_folders(folder)]
    raise_problems(problems, LISTED_PROBLEMS)
    if not categories and root not in folders.values():
        _warn_of_unused(root, photos_in(root))
    return Dataset(train=train, test=test, held_out=tuple(held_out))


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

    def problem(item: tuple[ImageFile, Callable[[ImageFile], Any]]) -> str | None:
        file, read = item
        try:
            read(file)
        except UserError as error:
            return str(error)
        return None

    items = [(file, decode) for file in images] + [(file, read_mask) for file in masks]
    checks = prefetched(items, problem)
    bar = tqdm(checks, "checking images", len(items), leave=False, disable=None)
    return [found for found in bar if found]


def is_good(name: str) -> bool:
    """Whether a folder is called as one of defect-free images: see `GOOD_NAMES`."""
    return name.strip().casefold() in GOOD_NAMES


def _category_folders(root: Path) -> dict[str, Path]:
    """Folders that look like a category: they hold a `train` or a `test` folder."""

    def is_category(folder: Path) -> bool:
        return not {"train", "test"}.isdisjoint(subfolders(folder))

    if is_category(root):
        return {root.resolve().name: root}
    return {name: root / name for name in subfolders(root) if is_category(root / name)}


def _misplaced_images(root: Path, folders: Mapping[str, Path]) -> list[str]:
    """Folders beside the categories whose images would be passed over."""
    if root in folders.values():
        return []
    return [
        f"{root / name} holds images but no train/{GOOD}"
        for name in subfolders(root)
        if name not in folders and any(map(is_image, files_below(root / name)))
    ]


def _problems_of_parts(folder: Path) -> list[str]:
    """Images of a category that lie outside of its folders, or loose in one."""
    problems = []
    for name in subfolders(folder):
        plain = re.sub(r"[\s-]+", "_", name.strip().casefold())
        plain = "ground_truth" if plain == "groundtruth" else plain
        photos = photos_in(folder / name, recursive=True)
        if name not in PARTS and photos and plain in PARTS:
            problems.append(f"{folder / name} is not read; rename it to {plain}")
        elif name not in PARTS:
            _warn_of_unused(folder / name, photos)
    _warn_of_unused(folder, photos_in(folder))
    places = {
        **dict.fromkeys(("train", "validation"), GOOD),
        "test": f"{GOOD} or test/DEFECT",
        "ground_truth": "DEFECT",
    }
    for part, place in places.items():
        if loose := photos_in(folder / part):
            lie = "lies" if len(loose) == 1 else "lie"
            problems.append(
                f"{listed(loose)} {lie} directly in {folder / part}; images belong into "
                f"{part}/{place}"
            )
    return problems


def _good_folder(folder: Path) -> tuple[str, list[str]]:
    """The name of the folder of good images in a part, and what is wrong."""
    names = [
        name
        for name in subfolders(folder)
        if is_good(name) and photos_in(folder / name, recursive=True)
    ]
    if len(names) < 2:
        return (names or [GOOD])[0], []
    both = " and ".join(str(folder / name) for name in names)
    return names[0], [f"{both} both mean good images; put all of them into one"]


def _good_records(part: Path, category: str) -> tuple[list[Record], list[str]]:
    """The images of `train` or `validation` of a category, and what is wrong with them."""
    good, problems = _good_folder(part)
    place = part / good
    images = images_in(place)
    if not images and part.name == "train":
        problems.append(f"{place} holds no image to learn from")
    problems += [
        f"{place / child} is a folder; put its images beside it"
        for child in subfolders(place)
    ]
    warn_of_unread(place)
    for name in subfolders(part):
        if not is_good(name):
            _warn_of_unused(part / name, photos_in(part / name, recursive=True))
    return [Record(image, category) for image in images], problems


def _test_records(folder: Path, category: str) -> tuple[list[Record], list[str]]:
    """The test images of one category with their masks, and what is wrong with them."""
    records: list[Record] = []
    _, problems = _good_folder(folder / "test")
    defects = subfolders(folder / "test")
    for name in defects:
        place = folder / "test" / name
        images = sorted(filter(is_image, files_below(place)))
        warn_of_unread(place, recursive=True)
        masks: dict[Path, ImageFile] = {}
        if not is_good(name):
            masks, found = paired_masks(folder / "ground_truth" / name, place, images)
            problems += found
        for image in images:
            below = image.parent.relative_to(place).as_posix()
            records.append(
                Record(
                    image,
                    category,
                    GOOD if is_good(name) else name,
                    masks.get(image),
                    folder="" if below == "." else below,
                )
            )
    for name in subfolders(folder / "ground_truth"):
        masks_there = any(map(is_image, files_below(folder / "ground_truth" / name)))
        if name not in defects and masks_there and not is_good(name):
            problems.append(
                f"{folder / 'ground_truth' / name} has masks but "
                f"{folder / 'test' / name} does not exist"
            )
    return records, problems


def _closed_folders(folder: Path) -> list[Path]:
    """Folders that may not be listed: this one, or any below it that is not hidden."""
    if not can_list(folder):
        return [folder]
    below = (folder / name for name in subfolders(folder))
    return sum((_closed_folders(child) for child in below if not child.is_symlink()), [])


def _warn_of_unused(folder: Path, photos: Sequence[Path]) -> None:
    """Names images that lie where the layout has no place for them."""
    if photos:
        logger.warning(
            "%s: %d %s not used: %s. Only train/%s, validation/%s, test and ground_truth "
            "are read.",
            *(folder, len(photos), "image is" if len(photos) == 1 else "images are"),
            *(listed(photos), GOOD, GOOD),
        )
