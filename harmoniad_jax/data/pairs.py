"""Images and their masks, paired by where they lie and by stem."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from harmoniad_jax.data.images import read_size
from harmoniad_jax.data.listing import files_below, photos_in, warn_of_unread
from harmoniad_jax.data.mask_files import MaskUnion
from harmoniad_jax.data.records import ImageFile
from harmoniad_jax.data.suffixes import is_image
from harmoniad_jax.errors import UserError

MASK_SUFFIX = re.compile("_mask$", re.IGNORECASE)
# Sides of a mask may be rounded when a data set was scaled down.
ASPECT_TOLERANCE = 0.02


def paired_masks(
    place: Path, image_place: Path, images: Sequence[Path]
) -> tuple[dict[Path, ImageFile], list[str]]:
    """Images with their masks, and what is wrong with these.

    Args:
      place: the folder of the masks of a defect.
      image_place: the folder of its images.
      images: in `image_place` or below.
    """
    files = sorted(filter(is_image, files_below(place)))
    warn_of_unread(place, recursive=True)
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
            problems += aspect_problem(image, path)
    # A photo that is left out for its format is named in a warning.
    unread = {
        photo.relative_to(image_place).with_name(photo.stem)
        for photo in photos_in(image_place, recursive=True)
    }
    for path in files:
        stem = _image_stem(path.relative_to(place))
        if path not in used and unread.isdisjoint((stem, stem.parent)):
            problems.append(f"mask {path} has no image {image_place / stem}.*")
    return pairs, problems


def _image_stem(mask: Path) -> Path:
    """Where the image of a mask is, without suffix: a/000 for a/000_mask.png."""
    return mask.with_name(MASK_SUFFIX.sub("", mask.stem))


def aspect_problem(image: Path, mask: Path) -> list[str]:
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


def _and(paths: Sequence[Path]) -> str:
    return " and ".join(map(str, paths))
