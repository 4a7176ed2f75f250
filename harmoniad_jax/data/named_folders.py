"""From folders that are named one by one to a `Dataset`, as users of anomalib have them.

    ROOT/NORMAL/*          defect-free images
    ROOT/ABNORMAL/*        defective images to test on
    ROOT/NORMAL_TEST/*     defect-free images to test on
    ROOT/MASKS/*           masks of the defective images, paired by stem

ROOT is one product, or holds a folder for each product with these names in it. Images may
lie in folders below the named ones.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from harmoniad_jax.data.listing import files_below, subfolders, warn_of_unread
from harmoniad_jax.data.pairs import paired_masks
from harmoniad_jax.data.records import GOOD, Dataset, Record, check_categories
from harmoniad_jax.data.suffixes import is_image
from harmoniad_jax.errors import UserError, raise_problems


class NamedFolders(NamedTuple):
    """What is where, below the folder of a product or absolute.

    Attributes:
      normal: folders of defect-free images, one or more.
      abnormal: folders of defective images; a folder's name is that of its defect.
      normal_test: folders of defect-free images to test on.
      masks: one for each of `abnormal`, or none.
      test_share: of the normal images that are tested on instead of trained on, where
        `normal_test` is empty.
    """

    normal: Sequence[str]
    abnormal: Sequence[str] = ()
    normal_test: Sequence[str] = ()
    masks: Sequence[str] = ()
    test_share: float = 0.0


def named_folders_dataset(
    root: Path, named: NamedFolders, categories: Sequence[str] = ()
) -> Dataset:
    """Lists images by the folders that hold them.

    Args:
      root: of one product, or of a folder for each.
      named: the folders.
      categories: the products to take; all that are there if empty.

    Raises:
      UserError: a folder that no product has or that is empty, an image in two of them, a
        mask without image or of another aspect ratio. Every problem is listed.
    """
    if named.masks and len(named.masks) != len(named.abnormal):
        raise UserError(
            f"data.mask_dir names {len(named.masks)} folders and data.abnormal_dir "
            f"{len(named.abnormal)}; give one of masks for each of images."
        )
    products = _products(root, named.normal[0])
    check_categories(categories, products, root)
    train: list[Record] = []
    test: list[Record] = []
    problems = _absent(list(products.values()), named)
    for name in sorted(set(categories) or products):
        found = _Product(products[name], name, named, problems)
        normal, good = found.good(named.normal), found.good(named.normal_test)
        if not named.normal_test:
            normal, good = split_off(normal, named.test_share)
        train += normal
        test += good + found.defective()
        problems += found.twice()
    raise_problems(problems)
    return Dataset(train=train, test=test)


def split_off(records: Sequence[Record], share: float) -> tuple[list[Record], list[Record]]:
    """Those that are kept, and a share of them, evenly taken over their order.

    Views of one product of a category stay together.
    """
    products: dict[tuple[str, object], list[Record]] = {}
    for row, record in enumerate(records):
        products.setdefault((record.category, record.sample or row), []).append(record)
    groups = list(products.values())
    count = min(round(share * len(groups)), len(groups) - 1)
    taken = {(2 * i + 1) * len(groups) // (2 * count) for i in range(count)}
    parts: tuple[list[Record], list[Record]] = ([], [])
    for index, group in enumerate(groups):
        parts[index in taken].extend(group)
    return parts


def _products(root: Path, normal: str) -> dict[str, Path]:
    """The folder of each product: `root`, or those in it that hold normal images."""
    if (root / normal).is_dir():
        # Of absolute folders `root` may be left away.
        folder = root if not Path(normal).is_absolute() else (root / normal).parent
        return {folder.resolve().name: root}
    found = {
        name: root / name for name in subfolders(root) if (root / name / normal).is_dir()
    }
    if not found:
        raise UserError(
            f"data.normal_dir={normal!r}: neither {root / normal} nor a folder of that "
            f"name in the folders of {root} is there."
        )
    return found


def _absent(products: Sequence[Path], named: NamedFolders) -> list[str]:
    """The folders that no product has; not every product has every kind of defect."""
    problems = []
    for name in (*named.normal, *named.abnormal, *named.normal_test, *named.masks):
        places = [product / name for product in products]
        if not any(place.is_dir() for place in places):
            others = f", nor in {len(places) - 1} other products" if places[1:] else ""
            problems.append(f"{places[0]} is not a folder{others}")
    return problems


class _Product:
    """The images of one product, listed folder by folder."""

    def __init__(self, root: Path, name: str, named: NamedFolders, problems: list[str]):
        self._root, self._name, self._named = root, name, named
        self._problems = problems
        self._seen: dict[Path, list[Path]] = {}

    def _images(self, folder: Path) -> list[Path]:
        warn_of_unread(folder, recursive=True)
        images = sorted(filter(is_image, files_below(folder)))
        if folder.is_dir() and not images:
            self._problems.append(f"{folder} holds no image")
        for image in images:
            place = image.parent.resolve() / image.name
            self._seen.setdefault(place, []).append(folder)
        return images

    def good(self, folders: Sequence[str]) -> list[Record]:
        """Records of defect-free images."""
        return [
            Record(image, self._name, folder=_below(self._root / folder, image, folders))
            for folder in folders
            for image in self._images(self._root / folder)
        ]

    def defective(self) -> list[Record]:
        """Records of defective images, with their masks."""
        records = []
        folders = self._named.abnormal
        for index, name in enumerate(folders):
            folder = self._root / name
            images, masks = self._images(folder), {}
            if self._named.masks and images:
                place = self._root / self._named.masks[index]
                masks, problems = paired_masks(place, folder, images)
                self._problems += problems
            defect = folder.resolve().name
            # An image in a folder called "good" would count as good.
            defect = f"{defect} (defective)" if defect == GOOD else defect
            records += [
                Record(
                    image,
                    self._name,
                    defect,
                    masks.get(image),
                    folder=_below(folder, image),
                )
                for image in images
            ]
        return records

    def twice(self) -> list[str]:
        """What is wrong with images that are in two of the folders."""
        both = {tuple(folders) for folders in self._seen.values()}
        return [
            f"{' and '.join(map(str, folders))} hold the same images; name folders that do "
            "not lie in each other"
            for folders in sorted(both)
            if len(folders) > 1
        ]


def _below(folder: Path, image: Path, among: Sequence[str] = ()) -> str:
    """Where an image lies below its folder; with its name, if it is one of several."""
    below = image.parent.relative_to(folder).as_posix()
    parts = [folder.name if len(among) > 1 else "", "" if below == "." else below]
    return "/".join(filter(None, parts))
