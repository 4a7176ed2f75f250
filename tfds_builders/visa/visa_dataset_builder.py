"""VisA: objects of 12 categories, with masks of their defects."""

import csv
import io
from pathlib import PurePosixPath
from typing import ClassVar

from harmoniad_jax.data.records import GOOD
from harmoniad_jax.errors import UserError
from tfds_builders.anomaly_builder import AnomalyBuilder, Counts
from tfds_builders.archives import Tree
from tfds_builders.examples import Entry, Example

SPLIT_FILE = "split_csv/1cls.csv"
COLUMNS = ("object", "split", "label", "image", "mask")
ANOMALY = "anomaly"


class Builder(AnomalyBuilder):
    """VisA, from its archive or a folder, in the split of `split_csv/1cls.csv`.

    The shipped masks hold the number of a defect's kind; here 255 stands for any.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Download VisA_20220922.tar by way of https://github.com/amazon-science/spot-diff and
    put it into this directory as it is, or the folder extracted from it.
    """
    HOMEPAGE = "https://github.com/amazon-science/spot-diff"
    LICENCE = "CC BY 4.0"
    ARCHIVES = ("VisA_20220922", "VisA")
    MARKER = "Data/Images"
    EXTRA_FOLDERS = (PurePosixPath(SPLIT_FILE).parent.name,)
    # Of split_csv/1cls.csv.
    COUNTS: ClassVar = {
        "candle": Counts(900, 100, 100),
        "capsules": Counts(542, 60, 100),
        "cashew": Counts(450, 50, 100),
        "chewinggum": Counts(453, 50, 100),
        "fryum": Counts(450, 50, 100),
        "macaroni1": Counts(900, 100, 100),
        "macaroni2": Counts(900, 100, 100),
        "pcb1": Counts(904, 100, 100),
        "pcb2": Counts(901, 100, 100),
        "pcb3": Counts(905, 101, 100),
        "pcb4": Counts(904, 101, 100),
        "pipe_fryum": Counts(450, 50, 100),
    }

    def _find(self, tree: Tree) -> list[Example]:
        split_files = [name for name in tree.names if name.endswith(SPLIT_FILE)]
        if not split_files:
            raise UserError(
                f"{tree.path} has no {SPLIT_FILE}, which says what to train on; it is "
                "part of the published archive."
            )
        prefix = split_files[0].removesuffix(SPLIT_FILE)
        names = frozenset(tree.names)

        def entry(path: str | None) -> Entry | None:
            name = prefix + (path or "")
            return Entry(tree, name) if name in names else None

        examples = []
        for row in _rows(tree, split_files[0]):
            image, mask = entry(row["image"]), entry(row["mask"])
            if image is None or row["object"] not in self.COUNTS:
                continue  # a partial copy
            # The image label is that of the folder, as in the other data sets.
            is_good = PurePosixPath(row["image"]).parent.name == "Normal"
            if row["split"] not in self.SPLITS or (row["split"] == "train" and not is_good):
                raise UserError(
                    f"{tree.path}: {split_files[0]} puts {row['image']!r} into "
                    f"{row['split']!r}; it is not the published one."
                )
            examples.append(
                Example(
                    category=row["object"],
                    split=row["split"],
                    defect=GOOD if is_good else ANOMALY,
                    path=row["image"],
                    image=image,
                    masks=() if is_good or mask is None else (mask,),
                )
            )
        return examples


def _rows(tree: Tree, name: str) -> list[dict[str, str]]:
    try:
        text = tree.read(name).decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text)))
    except (UnicodeDecodeError, csv.Error):
        rows = []
    if not rows or not set(COLUMNS) <= set(rows[0]):
        raise UserError(
            f"{tree.path}: {name} is no table with the columns {', '.join(COLUMNS)}."
        )
    return rows
