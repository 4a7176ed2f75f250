"""From a folder in the MVTec layout to a `Dataset`.

    ROOT/CATEGORY/train/good/*              defect-free images to learn from
    ROOT/CATEGORY/test/good/*               defect-free images to test on
    ROOT/CATEGORY/test/DEFECT/*             defective images, any number of defects
    ROOT/CATEGORY/ground_truth/DEFECT/*     masks, paired by stem: 000.png, 000_mask.png

`test` and `ground_truth` may be absent: good photos alone are enough to train. ROOT may
also be a single category. `good` may also be called as in `GOOD_NAMES`. Images of a defect
may lie in folders below it, and their masks in the same ones. Several masks of one image
lie in a folder of the image's stem: 000/0.png, 000/1.png.

What looks like a photo and is taken for nothing is an error or a warning.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from harmoniad_jax.data.images import open_image, read_size
from harmoniad_jax.data.mask_files import MaskUnion, read_mask
from harmoniad_jax.data.records import GOOD, Dataset, ImageFile, Record, check_categories
from harmoniad_jax.data.suffixes import advice_on, is_image, looks_like_photo
from harmoniad_jax.errors import UserError, raise_problems

logger = logging.getLogger(__name__)

# What the folder of defect-free images may be called, in any case.
GOOD_NAMES = (GOOD, "ok", "normal")
PARTS = ("train", "test", "ground_truth")
MASK_SUFFIX = re.compile("_mask$", re.IGNORECASE)
# Sides of a mask may be rounded when a data set was scaled down.
ASPECT_TOLERANCE = 0.02
# Problems that one message lists before it only counts them.
LISTED_PROBLEMS = 10
# Files of a folder that a warning names before it only counts them.
LISTED_FILES = 3
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
    if not _can_list(root):
        raise UserError(f"data.root={str(root)!r} {CLOSED}.")
    folders = _category_folders(root)
    for name in _subfolders(root):
        if not _can_list(root / name):
            logger.warning("%s %s. It is left out.", root / name, CLOSED)
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
        problems += _problems_of_parts(folder)
        records, found = _train_records(folder, name)
        train += records
        problems += found
        records, found = _test_records(folder, name)
        test += records
        problems += found
        problems += [f"{closed} {CLOSED}" for closed in _closed_folders(folder)]
    raise_problems(problems, LISTED_PROBLEMS)
    if not categories and root not in folders.values():
        _warn_of_unused(root, _photos(root))
    return Dataset(train=train, test=test)


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


def is_good(name: str) -> bool:
    """Whether a folder is called as one of defect-free images: see `GOOD_NAMES`."""
    return name.strip().casefold() in GOOD_NAMES


def _category_folders(root: Path) -> dict[str, Path]:
    """Folders that look like a category: they hold a `train` or a `test` folder."""

    def is_category(folder: Path) -> bool:
        return not {"train", "test"}.isdisjoint(_subfolders(folder))

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
        if name not in folders and any(map(is_image, _files_below(root / name)))
    ]


def _problems_of_parts(folder: Path) -> list[str]:
    """Images of a category that lie outside of its three folders, or loose in one."""
    problems = []
    for name in _subfolders(folder):
        plain = re.sub(r"[\s-]+", "_", name.strip().casefold())
        plain = "ground_truth" if plain == "groundtruth" else plain
        photos = _photos(folder / name, recursive=True)
        if name not in PARTS and photos and plain in PARTS:
            problems.append(f"{folder / name} is not read; rename it to {plain}")
        elif name not in PARTS:
            _warn_of_unused(folder / name, photos)
    _warn_of_unused(folder, _photos(folder))
    places = {"train": GOOD, "test": f"{GOOD} or test/DEFECT", "ground_truth": "DEFECT"}
    for part, place in places.items():
        if loose := _photos(folder / part):
            lie = "lies" if len(loose) == 1 else "lie"
            problems.append(
                f"{_listed(loose)} {lie} directly in {folder / part}; images belong into "
                f"{part}/{place}"
            )
    return problems


def _good_folder(folder: Path) -> tuple[str, list[str]]:
    """The name of the folder of good images in `train` or `test`, and what is wrong."""
    names = [
        name
        for name in _subfolders(folder)
        if is_good(name) and _photos(folder / name, recursive=True)
    ]
    if len(names) < 2:
        return (names or [GOOD])[0], []
    both = " and ".join(str(folder / name) for name in names)
    return names[0], [f"{both} both mean good images; put all of them into one"]


def _train_records(folder: Path, category: str) -> tuple[list[Record], list[str]]:
    """The training images of one category, and what is wrong with them."""
    good, problems = _good_folder(folder / "train")
    place = folder / "train" / good
    images = _images(place)
    if not images:
        problems.append(f"{place} holds no image to learn from")
    problems += [
        f"{place / child} is a folder; put its images beside it"
        for child in _subfolders(place)
    ]
    _warn_of_unread(place)
    for name in _subfolders(folder / "train"):
        if not is_good(name):
            other = folder / "train" / name
            _warn_of_unused(other, _photos(other, recursive=True))
    return [Record(image, category) for image in images], problems


def _test_records(folder: Path, category: str) -> tuple[list[Record], list[str]]:
    """The test images of one category with their masks, and what is wrong with them."""
    records: list[Record] = []
    _, problems = _good_folder(folder / "test")
    defects = _subfolders(folder / "test")
    for name in defects:
        place = folder / "test" / name
        images = sorted(filter(is_image, _files_below(place)))
        _warn_of_unread(place, recursive=True)
        masks: dict[Path, ImageFile] = {}
        if not is_good(name):
            masks, found = _paired(folder / "ground_truth" / name, place, images)
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
    for name in _subfolders(folder / "ground_truth"):
        masks_there = any(map(is_image, _files_below(folder / "ground_truth" / name)))
        if name not in defects and masks_there and not is_good(name):
            problems.append(
                f"{folder / 'ground_truth' / name} has masks but "
                f"{folder / 'test' / name} does not exist"
            )
    return records, problems


def _paired(
    place: Path, image_place: Path, images: Sequence[Path]
) -> tuple[dict[Path, ImageFile], list[str]]:
    """Images with their masks, and what is wrong with these.

    Args:
      place: the folder of the masks of a defect.
      image_place: the folder of its images.
      images: in `image_place` or below.
    """
    files = sorted(filter(is_image, _files_below(place)))
    _warn_of_unread(place, recursive=True)
    # By where the image must be below the folder of its defect, without suffix.
    by_file, by_folder, by_stem = (defaultdict(list) for _ in range(3))
    for path in files:
        below = path.relative_to(place)
        by_file[_image_stem(below)].append(path)
        if below.parent.name:
            by_folder[below.parent].append(path)
    for image in images:
        by_stem[image.relative_to(image_place).with_name(image.stem)].append(image)

    pairs: dict[Path, ImageFile] = {}
    used: dict[Path, Path] = {}
    problems = []
    for stem, namesakes in by_stem.items():
        single, several = by_file.get(stem, []), by_folder.get(stem, [])
        if not single and not several:
            continue
        if len(namesakes) > 1:
            problems.append(
                f"{_and(namesakes)} have the same name, so that {_and(single or several)} "
                "may belong to each of them; rename one"
            )
        elif len(single) > 1:
            problems.append(f"{_and(single)} are masks of the same image")
        elif single and several:
            problems.append(
                f"{single[0]} and the folder {several[0].parent} are masks of the same "
                "image; keep one"
            )
        image = namesakes[0]
        mask = single[0] if single else MaskUnion(several[0].parent, tuple(several))
        for path in (*single, *several):
            if path in used and used[path] != image:
                problems.append(f"{path} may be a mask of {used[path]} and of {image}")
            used[path] = image
        pairs[image] = mask
        for path in [*single, *([] if single else several)]:
            problems += _aspect_problem(image, path)
    # A photo that is left out for its format is named in a warning.
    unread = {
        photo.relative_to(image_place).with_name(photo.stem)
        for photo in _photos(image_place, recursive=True)
    }
    for path in files:
        stem = _image_stem(path.relative_to(place))
        if path not in used and unread.isdisjoint((stem, stem.parent)):
            problems.append(f"mask {path} has no image {image_place / stem}.*")
    return pairs, problems


def _image_stem(mask: Path) -> Path:
    """Where the image of a mask is, without suffix: a/000 for a/000_mask.png."""
    return mask.with_name(MASK_SUFFIX.sub("", mask.stem))


def _aspect_problem(image: Path, mask: Path) -> list[str]:
    """A mask may have another resolution than its image, but not another shape."""
    try:
        size, mask_size = read_size(image), read_size(mask)
    except UserError as error:
        return [str(error)]
    return (
        [] if same_aspect(size, mask_size) else [other_aspect(image, size, mask, mask_size)]
    )


def same_aspect(size: tuple[int, int], mask_size: tuple[int, int]) -> bool:
    """Whether a mask of this (width, height) is of the shape of its image."""
    (width, height), (mask_width, mask_height) = size, mask_size
    ratio = (width * mask_height) / (height * mask_width)
    return abs(ratio - 1.0) <= ASPECT_TOLERANCE


def other_aspect(
    image: object, size: tuple[int, int], mask: object, mask_size: tuple[int, int]
) -> str:
    """What is wrong with a mask that is of another shape than its image."""
    return (
        f"mask {mask} is {mask_size[0]} x {mask_size[1]} px but its image {image} is "
        f"{size[0]} x {size[1]} px: another aspect ratio"
    )


def _closed_folders(folder: Path) -> list[Path]:
    """Folders that may not be listed: this one, or any below it that is not hidden."""
    if not _can_list(folder):
        return [folder]
    below = (folder / name for name in _subfolders(folder))
    return sum((_closed_folders(child) for child in below if not child.is_symlink()), [])


def _warn_of_unread(folder: Path, recursive: bool = False) -> None:
    """Names the files of a folder that look like photos but cannot be read."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in _photos(folder, recursive):
        if not is_image(path):
            found[advice_on(path.name)].append(path)
    for advice, paths in found.items():
        one = len(paths) == 1
        logger.warning(
            "%s: %d %s cannot be read and %s left out: %s. To use %s: %s.",
            *(folder, len(paths), "photo" if one else "photos", "is" if one else "are"),
            *(_listed(paths), "it" if one else "them", advice),
        )


def _warn_of_unused(folder: Path, photos: Sequence[Path]) -> None:
    """Names images that lie where the layout has no place for them."""
    if photos:
        logger.warning(
            "%s: %d %s not used: %s. Only train/%s, test and ground_truth are read.",
            *(folder, len(photos), "image is" if len(photos) == 1 else "images are"),
            *(_listed(photos), GOOD),
        )


def _and(paths: Sequence[Path]) -> str:
    return " and ".join(map(str, paths))


def _listed(paths: Sequence[Path]) -> str:
    """The names of a few files, and how many more there are."""
    names = ", ".join(path.name for path in paths[:LISTED_FILES])
    more = len(paths) - LISTED_FILES
    return f"{names} and {more} more" if more > 0 else names


def _subfolders(folder: Path) -> list[str]:
    if not _can_list(folder):
        return []
    return sorted(
        child.name
        for child in folder.iterdir()
        if child.is_dir() and not child.name.startswith(".")
    )


def _files(folder: Path) -> list[Path]:
    """The files of a folder, sorted."""
    if not _can_list(folder):
        return []
    return sorted(path for path in folder.iterdir() if not path.is_dir())


def _files_below(folder: Path, above: frozenset[Path] = frozenset()) -> list[Path]:
    """The files of a folder and of all below it that are not hidden, sorted."""
    here = folder.resolve()
    if here in above:  # a link that leads back
        return []
    above |= {here}
    below = [_files_below(folder / name, above) for name in _subfolders(folder)]
    return sorted([*_files(folder), *sum(below, [])])


def _photos(folder: Path, recursive: bool = False) -> list[Path]:
    """The files of a folder that look like photos, readable or not; sorted."""
    files = _files_below(folder) if recursive else _files(folder)
    return [path for path in files if looks_like_photo(path)]


def _can_list(folder: Path) -> bool:
    """Whether it is a folder whose files may be read; see `_closed_folders`."""
    try:
        if not folder.is_dir():
            return False
        for child in folder.iterdir():
            child.lstat()
            break
    except PermissionError:
        return False
    return True


def _images(folder: Path) -> list[Path]:
    """Image files by suffix, sorted; anything else (Thumbs.db, notes) is passed over."""
    return [path for path in _files(folder) if is_image(path)]
