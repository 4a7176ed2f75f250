"""Images and masks that were found in a folder or an archive, before they are read."""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import ClassVar, NamedTuple

import numpy as np

from harmoniad_jax.data.mask_files import read_mask
from harmoniad_jax.data.pairs import MASK_SUFFIX, other_aspect, same_aspect
from harmoniad_jax.data.records import GOOD, EncodedImage
from harmoniad_jax.data.suffixes import is_image
from harmoniad_jax.errors import UserError
from tfds_builders.archives import Tree


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file in a folder or an archive."""

    tree: Tree
    path: str

    @property
    def size(self) -> int:
        """In bytes."""
        return self.tree.size(self.path)

    def read(self) -> EncodedImage:
        return EncodedImage(f"{self.tree.path}: {self.path!r}", self.tree.read(self.path))


class Defect(NamedTuple):
    """A defect of an image.

    mask: [H, W] bool.
    saturation: share of the image in (0, 1]; the defect is found when so much of it is.
    """

    mask: np.ndarray
    saturation: float


@dataclasses.dataclass(frozen=True)
class Example:
    """One image that was found, before it is read; see `AnomalyBuilder`."""

    # Whether its masks are kept apart.
    KEEPS_MASKS: ClassVar[bool] = False

    category: str
    split: str
    defect: str
    path: str
    image: Entry
    masks: tuple[Entry, ...] = ()
    sample: str = ""

    def read_defects(self, image: EncodedImage, size: tuple[int, int]) -> list[Defect]:
        """The masks, read and checked.

        Args:
          image: for messages.
          size: its (width, height).

        Raises:
          UserError: a mask is damaged or of another shape than the image.
        """
        defects = []
        for entry in self.masks:
            encoded = entry.read()
            mask, saturation = self._decode(encoded)
            mask_size = mask.shape[::-1]
            if not same_aspect(size, mask_size):
                problem = other_aspect(image, size, encoded, mask_size)
                raise UserError(f"{problem}; download the data set again.")
            if defects and mask.shape != defects[0].mask.shape:
                raise UserError(
                    f"the masks {self.masks[0].path!r} and {entry.path!r} of one image "
                    "differ in size; download the data set again."
                )
            defects.append(Defect(mask, saturation))
        return defects

    def _decode(self, encoded: EncodedImage) -> Defect:
        """A mask, found when all of it is."""
        mask = read_mask(encoded)
        return Defect(mask, float(mask.mean()))


def examples_by_folder(
    tree: Tree, categories: Iterable[str], *, good: str
) -> list[Example]:
    """Lists CATEGORY/{train,test,ground_truth}/DEFECT/FILE, below any folder.

    Masks are paired with images by stem, since their suffixes may differ; "_mask" at the
    end of a stem is no part of it.

    Args:
      tree: where to look.
      categories: names of their folders.
      good: name of the folder of defect-free images.

    Raises:
      UserError: two masks of one image, or two images of one mask.
    """
    names = "|".join(map(re.escape, categories))
    layout = re.compile(f"(?:.*/)?({names})/(train|test|ground_truth)/([^/]+)/([^/]+)")
    examples, masks = [], []
    for name in tree.names:
        match = layout.fullmatch(name)
        if match is None or not is_image(PurePosixPath(name)):
            continue
        category, split, defect, _ = match.groups()
        entry, path = Entry(tree, name), name[match.start(1) :]
        is_good = defect == good
        if split == "ground_truth" and not is_good:
            masks.append((category, defect, entry))
        elif split == "test" or (split == "train" and is_good):
            defect = GOOD if is_good else defect
            examples.append(Example(category, split, defect, path, entry))
    return pair_masks(examples, masks)


def pair_masks(
    examples: Iterable[Example], masks: Iterable[tuple[str, str, Entry]]
) -> list[Example]:
    """Gives the defective test images their masks, by category, defect and stem.

    "_mask" at the end of a mask's stem is no part of it.

    Args:
      examples: without masks.
      masks: category, defect and file of each.

    Raises:
      UserError: two masks of one image, or two images of one mask.
    """
    found: dict[tuple[str, str, str], Entry] = {}
    for category, defect, entry in masks:
        stem = MASK_SUFFIX.sub("", PurePosixPath(entry.path).stem)
        other = found.setdefault((category, defect, stem), entry)
        if other != entry:
            raise UserError(
                f"{entry.tree.path}: {other.path!r} and {entry.path!r} are masks of the "
                "same image; remove one, or download the data set again."
            )
    paired, taken = [], {}
    for example in examples:
        key = (example.category, example.defect, PurePosixPath(example.path).stem)
        if example.split != "test" or example.defect == GOOD or key not in found:
            paired.append(example)
            continue
        name = example.image.path
        if key in taken:
            raise UserError(
                f"{example.image.tree.path}: {found[key].path!r} may be a mask of "
                f"{taken[key]!r} and of {name!r}; remove one, or download the data set "
                "again."
            )
        taken[key] = name
        paired.append(dataclasses.replace(example, masks=(found[key],)))
    return paired
