"""What the builders share: from a manual directory to records, read and checked.

A builder says where its data set's images and masks are (`_find`) and how many there
should be (`COUNTS`); all else is here. Without TensorFlow: records are written as
ArrayRecord, and images are stored as the bytes that were shipped.
"""

import abc
import collections
import contextlib
import functools
import hashlib
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from harmoniad_jax.data.images import decoded_size
from harmoniad_jax.data.mask_files import encode_mask
from harmoniad_jax.data.records import GOOD, UNLABELLED
from harmoniad_jax.errors import UserError
from tfds_builders.archives import SUFFIXES, FolderTree, Tree, open_archive, plain_name
from tfds_builders.examples import Example

logger = logging.getLogger(__name__)

LABELS = (GOOD, "anomalous")
# Encoded images in one shard. TFDS keeps the examples of a shard in memory.
SHARD_BYTES = 64 << 20


class Counts(NamedTuple):
    """Images of a category; those of training and validation are all good.

    The good and the defective ones are those of the split "test".
    """

    train: int
    good: int
    defective: int
    validation: int = 0

    def __str__(self) -> str:
        held_out = f" {self.validation} validation," if self.validation else ""
        return (
            f"{self.train} training,{held_out} {self.good} good and "
            f"{self.defective} defective"
        )


class AnomalyBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Base of the builders. Each image is an example, with these features.

      image: as shipped, of any format and size.
      mask: PNG of one channel, 255 where the image is defective and 0 elsewhere; 0
        throughout for good images, and for defective ones whose mask is lost.
      category: product class.
      label: good or anomalous, -1 where the publisher keeps it. It comes from the folder,
        never from the mask.
      defect: name of the defect, "good" where there is none, "unlabelled" where the
        publisher keeps it.
      path: of the image within the data set, as shipped.

    With `KEEPS_MASKS`:

      masks: PNG of the K masks of an image, one below the other, each of the image's size
        and as `mask`, which is their union. A single black one where K is 0.
      saturations: [K] shares of the image in (0, 1]: a defect counts as found as a whole
        when so much of it is.

    With `HAS_SAMPLES`:

      sample: name of the product within its category that an image is a view of.

    The examples are in order of category, split and path. `info.metadata` lists
    category, defect, path and SHA-256 of all of them by split, and the last two features,
    so that a reader knows them without reading images.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[Mapping[str, str]] = {"1.0.0": "First release."}

    # Every category, with its images in the original; None where they were not published.
    COUNTS: ClassVar[Mapping[str, Counts | None]]
    # In the order in which they are written. The first is trained on.
    SPLITS: ClassVar[tuple[str, ...]] = ("train", "test")
    # Whether the masks of an image are kept apart.
    KEEPS_MASKS: ClassVar[bool] = False
    # Whether there are several images of each product.
    HAS_SAMPLES: ClassVar[bool] = False
    # What a category's folder holds, to tell it from any other of the same name; see
    # `holds_categories`.
    MARKER: ClassVar[str]
    # Folders beside those of the categories that are read.
    EXTRA_FOLDERS: ClassVar[tuple[str, ...]] = ()
    # Folders below the manual directory in which folders and archives may lie as well.
    PLACES: ClassVar[tuple[str, ...]] = ()
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

    @classmethod
    def holds_categories(cls, folder: Path) -> bool:
        """Whether a folder is one of this data set, complete or not."""
        return any((folder / name / cls.MARKER).is_dir() for name in cls.COUNTS)

    @classmethod
    def places(cls, manual_dir: Path) -> list[Path]:
        """The folders that folders and archives of this data set may lie in."""
        return [manual_dir, *(manual_dir / name for name in (cls.name, *cls.PLACES))]

    @abc.abstractmethod
    def _find(self, tree: Tree) -> list[Example]:
        """Lists the images in a folder or archive, of any categories."""

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "mask": tfds.features.Image(shape=(None, None, 1)),
            "category": tfds.features.ClassLabel(names=list(self.COUNTS)),
            "label": tfds.features.ClassLabel(names=list(LABELS)),
            "defect": tfds.features.Text(),
            "path": tfds.features.Text(),
        }
        if self.KEEPS_MASKS:
            features["masks"] = tfds.features.Image(shape=(None, None, 1))
            features["saturations"] = tfds.features.Tensor(shape=(None,), dtype=np.float32)
        if self.HAS_SAMPLES:
            features["sample"] = tfds.features.Text()
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
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
        for split in self.SPLITS:
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
            if found[name] and expected is not None and counts != expected:
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
        lost = sum(e.defect not in (GOOD, UNLABELLED) and not e.masks for e in examples)
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
                if self.KEEPS_MASKS:
                    columns["saturations"].append(features["saturations"].tolist())
                if self.HAS_SAMPLES:
                    columns["sample"].append(example.sample)
                progress.update()
                yield example.path, features


def data_folders(builder: type[AnomalyBuilder], manual_dir: Path) -> list[Path]:
    """The folders in a manual directory, or itself, that hold categories."""
    folders = dict.fromkeys(
        folder
        for place in builder.places(manual_dir)
        if place.is_dir()
        for folder in (place, *sorted(child for child in place.iterdir() if child.is_dir()))
    )
    return [folder for folder in folders if builder.holds_categories(folder)]


def data_archives(builder: type[AnomalyBuilder], manual_dir: Path) -> list[Path]:
    """The archives of a data set in a manual directory, the whole one first."""
    return find_archives(builder.places(manual_dir), builder.archive_stems())


def find_archives(folders: Sequence[Path], stems: Sequence[str]) -> list[Path]:
    """The archives of these names, without suffix, in some folders, in that order."""
    paths = [
        path
        for folder in folders
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if path.is_file()
    ]
    # Copies such as "a (1).zip" are taken where the file itself is not there.
    files = {plain_name(path.name): path for path in reversed(paths)}
    files |= {path.name.lower(): path for path in reversed(paths)}
    names = ((stem + suffix).lower() for stem in stems for suffix in SUFFIXES)
    return [files[name] for name in names if name in files]


def missing(builder: type[AnomalyBuilder], manual_dir: Path) -> str:
    """What to say where a manual directory holds nothing of a data set."""
    instructions = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
    return f"{manual_dir} holds no part of {builder.name}. {instructions}"


def _count(examples: Sequence[Example]) -> Counts:
    number = collections.Counter(
        (example.split, example.defect == GOOD) for example in examples
    )
    return Counts(
        number["train", True],
        number["test", True],
        number["test", False],
        number["validation", True],
    )


def _read(example: Example) -> dict[str, Any]:
    """The features of an example.

    Raises:
      UserError: an image or mask is damaged, or they differ in shape.
    """
    encoded = example.image.read()
    width, height = decoded_size(encoded)
    defects = example.read_defects(encoded, (width, height))
    mask = _empty_mask(height, width)
    if defects:
        # Masks may be smaller than their image, but are of one size then.
        mask = encode_mask(np.logical_or.reduce([defect.mask for defect in defects]))
    unlabelled = example.defect == UNLABELLED
    features = {
        "image": io.BytesIO(encoded.data),
        "mask": io.BytesIO(mask),
        "category": example.category,
        "label": -1 if unlabelled else LABELS[example.defect != GOOD],
        "defect": example.defect,
        "path": example.path,
    }
    if example.KEEPS_MASKS:
        stacked = [defect.mask for defect in defects]
        masks = encode_mask(np.concatenate(stacked)) if stacked else mask
        features["masks"] = io.BytesIO(masks)
        features["saturations"] = np.array([d.saturation for d in defects], np.float32)
    if example.sample:
        features["sample"] = example.sample
    return features


@functools.lru_cache(maxsize=64)
def _empty_mask(height: int, width: int) -> bytes:
    return encode_mask(np.zeros((height, width), bool))
