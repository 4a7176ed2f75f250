"""RobustAD: three products, photographed as in training and under changed conditions."""

import json
import re
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from harmoniad_jax.data.records import GOOD
from harmoniad_jax.errors import UserError
from tfds_builders.anomaly_builder import AnomalyBuilder
from tfds_builders.archives import Tree
from tfds_builders.examples import Entry, Example

TABLE = "metadata.jsonl"
ANOMALY = "anomaly"
NUM_SHIFTS = 6


class Builder(AnomalyBuilder):
    """RobustAD, from the folders of its repository, or an archive of them.

    The split "test" is of the conditions of training (the published test0), "test1" to
    "test6" of changed ones: other light, position, background and so on. PiledBags has no
    masks. Defective images of the published training set are left out.

    Written from the published list of files and the description of `metadata.jsonl`, not
    from the images: what does not fit it is refused.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Download https://huggingface.co/datasets/AmazonScience/RobustAD and put its folders
    MetalParts, PCB and PiledBags into this directory, or an archive of them, RobustAD.zip.
    """
    HOMEPAGE = "https://huggingface.co/datasets/AmazonScience/RobustAD"
    LICENCE = "CC BY 4.0"
    ARCHIVES = ("RobustAD",)
    SPLITS = ("train", "test", *(f"test{shift}" for shift in range(1, NUM_SHIFTS + 1)))
    PLACES = ("RobustAD",)
    COUNTS: ClassVar = dict.fromkeys(("MetalParts", "PCB", "PiledBags"))

    @classmethod
    def holds_categories(cls, folder: Path) -> bool:
        return any(any((folder / name).glob("*_data_dir_train")) for name in cls.COUNTS)

    def _find(self, tree: Tree) -> list[Example]:
        names = "|".join(map(re.escape, self.COUNTS))
        layout = re.compile(
            rf"((?:.*/)?({names})/[^/]+_data_dir_(train|test[0-{NUM_SHIFTS}])/)"
            + re.escape(TABLE)
        )
        there = frozenset(tree.names)
        examples = []
        for name in tree.names:
            match = layout.fullmatch(name)
            if match is None:
                continue
            folder, category, split = match.groups()
            split = "test" if split == "test0" else split
            for row in _rows(tree, name):
                image = folder + row["file_name"]
                defect = ANOMALY if row["label"] else GOOD
                if image not in there or (split == "train" and defect != GOOD):
                    continue
                examples.append(
                    Example(
                        *(category, split, defect),
                        path=image[match.start(2) :],
                        image=Entry(tree, image),
                        masks=_masks(tree, there, folder, row),
                    )
                )
        return examples


def _masks(
    tree: Tree, there: frozenset[str], folder: str, row: dict[str, Any]
) -> tuple[Entry, ...]:
    """The mask that a row names: from the top of the data set, or from its own folder."""
    if not row["label"] or not row.get("mask"):
        return ()
    mask = PurePosixPath(str(row["mask"]))
    top = "/".join(folder.rstrip("/").split("/")[:-2])
    from_top = f"{top}/{mask}".lstrip("/")
    for name in (from_top, f"{folder}{mask}", f"{folder}masks/{mask.name}"):
        if name in there:
            return (Entry(tree, name),)
    return ()


def _rows(tree: Tree, name: str) -> list[dict[str, Any]]:
    """A row for each image; its label must be that of its folder."""
    folders = {"normal": 0, ANOMALY: 1}
    try:
        lines = tree.read(name).decode().splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
        fits = all(
            row["label"] == folders[PurePosixPath(row["file_name"]).parts[0]]
            for row in rows
        )
    except (KeyError, IndexError, TypeError, ValueError):
        rows, fits = [], False
    if not rows or not fits:
        raise UserError(
            f"{tree.path}: {name} does not list images of the folders normal and {ANOMALY} "
            "with file_name and label; download the data set again."
        )
    return rows
