"""From a data set that TFDS prepared to a `Dataset`.

Reads what the builders in `tfds_builders` wrote: ArrayRecord with random access, so that
an image is read when it is its turn, and a list of all examples beside it.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import tensorflow_datasets as tfds
from google.protobuf import json_format

from harmoniad_jax.data.records import GOOD, UNLABELLED, Dataset, Record
from harmoniad_jax.data.sources import TEST, VALIDATION
from harmoniad_jax.errors import UserError

# Images and masks as they are stored: what they are decoded with is `preprocess.py`.
STORED = ("image", "mask", "masks")

# What the readers of shards and descriptions raise where bytes are missing or wrong.
DAMAGES = (
    AttributeError,
    IndexError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    json_format.Error,
)


@dataclasses.dataclass(frozen=True)
class StoredImage:
    """An image or a mask of a prepared data set.

    Attributes:
      source: random access to the examples.
      index: of the example.
      feature: "image", "mask" or "masks".
      path: of the image within the data set.
    """

    source: Any = dataclasses.field(repr=False, compare=False)
    index: int
    feature: str
    path: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    def read_bytes(self) -> bytes:
        """The encoded image.

        Raises:
          UserError: it was damaged on disk.
        """
        reason = "it is cut"
        try:
            data = self.source[self.index][self.feature]
            # A cut shard gives nothing instead of an error.
            if isinstance(data, bytes) and data:
                return data
        except DAMAGES as error:
            reason = _one_line(error)
        raise UserError(
            f"{self} cannot be read ({reason}); prepare its data set again with "
            "python -m tfds_builders.prepare NAME --overwrite."
        )

    def __str__(self) -> str:
        return f"the {self.feature} of {self.path}"


def prepared_dataset(folder: Path, test_split: str = TEST) -> Dataset:
    """Lists a prepared data set, without reading an image.

    Its validation images, if it has any, are the held-out ones.

    Args:
      folder: the version's folder, such as DATA_DIR/mvtec_ad/1.0.0.
      test_split: the images to test on.

    Raises:
      UserError: `folder` holds no data set that was prepared by `tfds_builders`, or no
        such split.
    """
    try:
        builder = tfds.builder_from_directory(folder)
        lists = dict(builder.info.metadata or {})
        features = builder.info.features
        decoders = {name: tfds.decode.SkipDecoding() for name in STORED if name in features}
        train, test, held_out = (
            _records(builder.as_data_source(split, decoders=decoders), lists[split])
            if split in builder.info.splits
            else []
            for split in ("train", test_split, VALIDATION)
        )
        splits = list(builder.info.splits)
    except (*DAMAGES, tfds.core.DatasetNotFoundError) as error:
        raise UserError(
            f"{folder} is damaged or was not prepared by tfds_builders "
            f"({_one_line(error)}); prepare it again with "
            "python -m tfds_builders.prepare NAME --overwrite."
        ) from None
    if test_split not in (*splits, TEST) or test_split in ("train", VALIDATION):
        there = ", ".join(sorted({TEST, *splits} - {"train", VALIDATION}))
        raise UserError(
            f"data.test_split is {test_split!r}; {folder} can be tested on {there}."
        )
    return Dataset(train=train, test=test, held_out=tuple(held_out))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _records(source: Any, columns: dict[str, Sequence[str]]) -> list[Record]:
    """Records of a split from its list of examples.

    Raises:
      ValueError: the list is not that of the split.
    """
    if len(columns["path"]) != len(source):
        raise ValueError(f"it lists {len(columns['path'])} of {len(source)} examples")
    count = len(source)
    rows = zip(
        *(columns[k] for k in ("category", "defect", "path", "sha256")),
        columns.get("sample", [""] * count),
        columns.get("saturations", [()] * count),
        strict=True,
    )
    return [
        Record(
            image=StoredImage(source, index, "image", path),
            category=category,
            defect=defect,
            mask=None
            if defect in (GOOD, UNLABELLED)
            else StoredImage(source, index, "mask", path),
            sha256=sha256,
            sample=sample,
            masks=StoredImage(source, index, "masks", path) if saturations else None,
            saturations=tuple(saturations),
        )
        for index, row in enumerate(rows)
        for category, defect, path, sha256, sample, saturations in (row,)
    ]
