"""What the builders share: from a manual directory to records, read and checked.

A builder says where its data set's images and masks are (`_find`) and how many there
should be (`COUNTS`); all else is here. Without TensorFlow: records are written as
ArrayRecord, and images are stored as the bytes that were shipped.
"""

import abc
import collections
import contextlib
import dataclasses
import functools
import hashlib
import io
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from harmoniad_jax.data.folder import MASK_SUFFIX, other_aspect, same_aspect
from harmoniad_jax.data.images import decoded_size
from harmoniad_jax.data.mask_files import encode_mask, read_mask
from harmoniad_jax.data.records import GOOD, EncodedImage
from harmoniad_jax.data.suffixes import is_image
from harmoniad_jax.errors import UserError
from tfds_builders.archives import SUFFIXES, FolderTree, Tree, open_archive, plain_name

logger = logging.getLogger(__name__)

LABELS = (GOOD, "anomalous")
SPLITS = ("train", "test")
# Encoded images in one shard. TFDS keeps the examples of a shard in memory.
SHARD_BYTES = 64 << 20


class Counts(NamedTuple):
    """Images of a category; those to train on are all good."""

    train: int
    good: int
    defective: int

    def __str__(self) -> str:
        return f"{self.train} training, {self.good} good and {self.defective} defective"


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


@dataclasses.dataclass(frozen=True)
class Example:
    """One image that was found, before it is read; see `AnomalyBuilder`."""

    category: str
    split: str
    defect: str
    path: str
    image: Entry
    mask: Entry | None = None


class AnomalyBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Base of the builders. Each image is an example, with these features.

      image: as shipped, of any format and size.
      mask: PNG of one channel, 255 where the image is defective and 0 elsewhere; 0
        throughout for good images, and for defective ones whose mask is lost.
      category: product class.
      label: good or anomalous. It comes from the folder, never from the mask.
      defect: name of the defect, "good" where there is none.
      path: of the image within the data set, as shipped.

    The examples are in order of category, split and path. `info.metadata` lists
    category, defect, path and SHA-256 of all of them by split, so that a reader knows
    them without reading images.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[Mapping[str, str]] = {"1.0.0": "First release."}

    # Of every category, in the original.
    COUNTS: ClassVar[Mapping[str, Counts]]
    # What a category's folder holds, to tell it from any other of the same name.
    MARKER: ClassVar[str]
    # Folders beside those of the categories that are read.
    EXTRA_FOLDERS: ClassVar[tuple[str, ...]] = ()
    # Names of the archives of the whole data set, without suffix.
    ARCHIVES: ClassVar[tuple[str, ...]]
    HOMEPAGE: ClassVar[str]
    LICENCE: ClassVar[str]

    # Whether to show a bar of our own, with a total, while examples are written.
    show_progress = False

    def __init__(self, *, file_format: Any = None, **kwargs):
        """As any TFDS builder, but writes ArrayRecord unless told otherwise."""
        super().__init__(file_format=file_format or "array_record", **kwargs)

    @classmethod
    def archive_stems(cls) -> tuple[str, ...]:
        """Names of the archives that are looked for, without suffix, in order."""
        return cls.ARCHIVES

    @abc.abstractmethod
    def _find(self, tree: Tree) -> list[Example]:
        """Lists the images in a folder or archive, of any categories."""

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "mask": tfds.features.Image(shape=(None, None, 1)),
                    "category": tfds.features.ClassLabel(names=list(self.COUNTS)),
                    "label": tfds.features.ClassLabel(names=list(LABELS)),
                    "defect": tfds.features.Text(),
                    "path": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage=self.HOMEPAGE,
            license=self.LICENCE,
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[Callable[[], Iterator]]]:
        examples = self._collect(Path(dl_manager.manual_dir))
        self._report(examples)
        shards = {}
        for split in SPLITS:
            chosen = [example for example in examples if example.split == split]
            if chosen:
                self.info.metadata[split] = collections.defaultdict(list)
                shards[split] = self._shards(split, chosen)
        return shards

    def _download_and_prepare(self, *args, **kwargs) -> None:
        with contextlib.ExitStack() as self._open_trees:
            super()._download_and_prepare(*args, **kwargs)

    def _collect(self, manual_dir: Path) -> list[Example]:
        """All images in a manual directory, sorted.

        Folders come first; an archive gives the categories that no folder holds.

        Raises:
          UserError: there is nothing, or nothing to train on.
        """
        examples: dict[str, list[Example]] = {}
        for path in (
            *data_folders(type(self), manual_dir),
            *data_archives(type(self), manual_dir),
        ):
            if len(examples) == len(self.COUNTS):
                break
            logger.info("%s: reading %s", self.name, path)
            tree = self._open_trees.enter_context(self._open(path))
            found = collections.defaultdict(list)
            for example in self._find(tree):
                found[example.category].append(example)
            examples = dict(found) | examples
        everything = sum(examples.values(), [])
        if not everything:
            raise UserError(missing(type(self), manual_dir))
        if not any(example.split == "train" for example in everything):
            raise UserError(f"{manual_dir} holds no training image of {self.name}.")
        return sorted(everything, key=lambda example: (example.category, example.path))

    def _open(self, path: Path) -> Tree:
        if path.is_dir():
            return FolderTree(path, (*self.COUNTS, *self.EXTRA_FOLDERS))
        # TFDS writes into a temporary folder on the data's own disk.
        return open_archive(path, Path(self.data_dir))

    def _report(self, examples: Sequence[Example]) -> None:
        """Warns where the images are not those of the original data set."""
        found = {name: [] for name in self.COUNTS}
        for example in examples:
            found[example.category].append(example)
        for name, expected in self.COUNTS.items():
            counts = _count(found[name])
            if found[name] and counts != expected:
                logger.warning(
                    "%s: expected %s images of %s, found %s",
                    self.name,
                    expected,
                    name,
                    counts,
                )
        absent = [name for name in self.COUNTS if not found[name]]
        if absent:
            logger.warning("%s: not there: %s", self.name, ", ".join(absent))
        lost = sum(e.defect != GOOD and e.mask is None for e in examples)
        if lost:
            logger.warning("%s: %d defective images have no mask", self.name, lost)

    def _shards(
        self, split: str, examples: Sequence[Example]
    ) -> list[Callable[[], Iterator]]:
        """Functions that yield the examples of one shard each."""
        progress = tqdm(
            desc=f"{self.name} {split}",
            total=len(examples),
            unit="image",
            disable=None if self.show_progress else True,
        )
        self._open_trees.callback(progress.close)
        shards: list[list[Example]] = [[]]
        size = 0
        for example in examples:
            bytes_of_image = example.image.size
            if shards[-1] and size + bytes_of_image > SHARD_BYTES:
                shards.append([])
                size = 0
            shards[-1].append(example)
            size += bytes_of_image
        return [
            functools.partial(self._generate, split, shard, progress) for shard in shards
        ]

    def _generate(self, split: str, examples: Sequence[Example], progress: tqdm):
        """Yields key and features, read and checked by several threads."""
        columns = self.info.metadata[split]
        with ThreadPoolExecutor() as pool:
            for example, features in zip(examples, pool.map(_read, examples), strict=True):
                digest = hashlib.sha256(features["image"].getbuffer()).hexdigest()
                columns["category"].append(example.category)
                columns["defect"].append(example.defect)
                columns["path"].append(example.path)
                columns["sha256"].append(digest)
                progress.update()
                yield example.path, features


def data_folders(builder: type[AnomalyBuilder], manual_dir: Path) -> list[Path]:
    """The folders in a manual directory, or itself, that hold categories."""

    def holds_categories(folder: Path) -> bool:
        return any((folder / name / builder.MARKER).is_dir() for name in builder.COUNTS)

    if not manual_dir.is_dir():
        return []
    children = sorted(child for child in manual_dir.iterdir() if child.is_dir())
    return [folder for folder in (manual_dir, *children) if holds_categories(folder)]


def data_archives(builder: type[AnomalyBuilder], manual_dir: Path) -> list[Path]:
    """The archives of a data set in a manual directory, the whole one first."""
    folders = (manual_dir, manual_dir / builder.name)
    paths = [
        path
        for folder in folders
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if path.is_file()
    ]
    # Copies such as "a (1).zip" are taken where the file itself is not there.
    files = {plain_name(path.name): path for path in reversed(paths)}
    files |= {path.name.lower(): path for path in paths}
    names = (
        (stem + suffix).lower() for stem in builder.archive_stems() for suffix in SUFFIXES
    )
    return [files[name] for name in names if name in files]


def missing(builder: type[AnomalyBuilder], manual_dir: Path) -> str:
    """What to say where a manual directory holds nothing of a data set."""
    instructions = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
    return f"{manual_dir} holds no part of {builder.name}. {instructions}"


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
    images, masks, masked = [], {}, {}
    for name in tree.names:
        match = layout.fullmatch(name)
        if match is None or not is_image(PurePosixPath(name)):
            continue
        category, split, defect, file = match.groups()
        stem = PurePosixPath(file).stem
        if split == "ground_truth":
            key = (category, defect, MASK_SUFFIX.sub("", stem))
            if key in masks and defect != good:
                raise UserError(
                    f"{tree.path}: {masks[key].path!r} and {name!r} are masks of the same "
                    "image; remove one, or download the data set again."
                )
            masks[key] = Entry(tree, name)
        elif split == "test" or defect == good:
            path = name[match.start(1) :]
            images.append((category, split, defect, stem, name, path))
    for category, split, defect, stem, name, _ in images:
        key = (category, defect, stem)
        if split == "train" or defect == good or key not in masks:
            continue
        if key in masked:
            raise UserError(
                f"{tree.path}: {masks[key].path!r} may be a mask of {masked[key]!r} and of "
                f"{name!r}; remove one, or download the data set again."
            )
        masked[key] = name
    return [
        Example(
            category,
            split,
            defect=GOOD if defect == good else defect,
            path=path,
            image=Entry(tree, name),
            mask=None if defect == good else masks.get((category, defect, stem)),
        )
        for category, split, defect, stem, name, path in images
    ]


def _count(examples: Sequence[Example]) -> Counts:
    test = [example for example in examples if example.split == "test"]
    good = sum(example.defect == GOOD for example in test)
    return Counts(len(examples) - len(test), good, len(test) - good)


def _read(example: Example) -> dict[str, Any]:
    """The features of an example.

    Raises:
      UserError: an image or mask is damaged, or they differ in shape.
    """
    encoded = example.image.read()
    width, height = decoded_size(encoded)
    if example.mask is None:
        mask = _empty_mask(height, width)
    else:
        encoded_mask = example.mask.read()
        pixels = read_mask(encoded_mask)
        size, mask_size = (width, height), pixels.shape[::-1]
        if not same_aspect(size, mask_size):
            problem = other_aspect(encoded, size, encoded_mask, mask_size)
            raise UserError(f"{problem}; download the data set again.")
        mask = encode_mask(pixels)
    return {
        "image": io.BytesIO(encoded.data),
        "mask": io.BytesIO(mask),
        "category": example.category,
        "label": LABELS[example.defect != GOOD],
        "defect": example.defect,
        "path": example.path,
    }


@functools.lru_cache(maxsize=64)
def _empty_mask(height: int, width: int) -> bytes:
    return encode_mask(np.zeros((height, width), bool))
