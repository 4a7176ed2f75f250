"""Real-IAD: thirty objects from five sides each, in the multi-class split."""

import json
import re
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from harmoniad_jax.data.records import GOOD
from harmoniad_jax.errors import UserError
from tfds_builders.anomaly_builder import (
    AnomalyBuilder,
    find_archives,
    logger,
    missing,
)
from tfds_builders.archives import FolderTree, Tree
from tfds_builders.examples import Entry, Example

SPLIT_FILES = "realiad_jsons"
SPLIT_FILE = re.compile(rf"(?:.*/)?{SPLIT_FILES}/([^/]+)\.json")
# Folders of images; an object is taken from the first that has it.
RESOLUTIONS = ("realiad_1024", "realiad_512", "realiad_256", "realiad_raw")
COLUMNS = ("category", "anomaly_class", "image_path")
CATEGORIES = (
    *("audiojack", "bottle_cap", "button_battery", "end_cap", "eraser", "fire_hood"),
    *("mint", "mounts", "pcb", "phone_battery", "plastic_nut", "plastic_plug"),
    *("porcelain_doll", "regulator", "rolled_strip_base", "sim_card_set", "switch"),
    *("tape", "terminalblock", "toothbrush", "toy", "toy_brick", "transistor1"),
    *("u_block", "usb", "usb_adaptor", "vcpill", "wooden_beads", "woodstick", "zipper"),
)


class Builder(AnomalyBuilder):
    """Real-IAD, from an archive for each object, or folders, of any one resolution.

    The split is that of `realiad_jsons`: several objects, all views. A sample is a product
    that was photographed from five sides; its images are in one split. A side that shows
    no defect is good, whatever the other sides show. Defects are called as published, with
    two letters.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Ask for Real-IAD at https://realiad4ad.github.io/Real-IAD. Put realiad_jsons.zip and the
    archives of the objects (realiad_1024/audiojack.zip, ...) into this directory as they
    are, or the folders extracted from them.
    """
    HOMEPAGE = "https://realiad4ad.github.io/Real-IAD"
    LICENCE = "CC BY-NC-SA 4.0"
    ARCHIVES = ()
    MARKER = "OK"
    HAS_SAMPLES = True
    PLACES = ("Real-IAD", *RESOLUTIONS, *(f"Real-IAD/{name}" for name in RESOLUTIONS))
    # The split files count the images. Published are the sums: 36,465 training images, and
    # 63,256 good and 51,329 defective ones to test on.
    COUNTS: ClassVar = dict.fromkeys(CATEGORIES)

    @classmethod
    def archive_stems(cls) -> tuple[str, ...]:
        return tuple(cls.COUNTS)

    def _collect(self, manual_dir: Path) -> list[Example]:
        self._split = {}
        places = self.places(manual_dir)
        for place in places:
            if (place / SPLIT_FILES).is_dir():
                self._read_split(FolderTree(place, (SPLIT_FILES,)))
        for path in find_archives(places, (SPLIT_FILES,)):
            with self._open(path) as tree:
                self._read_split(tree)
        if not self._split:
            raise UserError(
                f"{missing(type(self), manual_dir)} {SPLIT_FILES} is not there, which says "
                "what to train on."
            )
        return super()._collect(manual_dir)

    def _read_split(self, tree: Tree) -> None:
        for name in tree.names:
            match = SPLIT_FILE.fullmatch(name)
            if match and match[1] in self.COUNTS and match[1] not in self._split:
                self._split[match[1]] = _rows(tree, name)

    def _find(self, tree: Tree) -> list[Example]:
        names = "|".join(map(re.escape, self.COUNTS))
        layout = re.compile(f"(?:.*/)?({names})/((?:OK|NG)/.+)")
        files: dict[str, dict[str, str]] = {}
        for name in tree.names:
            if match := layout.fullmatch(name):
                files.setdefault(match[1], {})[match[2]] = name
        examples = []
        for category, there in files.items():
            if category not in self._split:
                raise UserError(
                    f"{tree.path} holds {category}, but there is no {SPLIT_FILES}/"
                    f"{category}.json, which says what to train on."
                )
            rows = self._split[category]
            found = [
                self._example(tree, there, category, split, row)
                for split, row in rows
                if row["image_path"] in there
            ]
            _check_samples(tree, found)
            if len(found) < len(rows):
                logger.warning(
                    "%s: expected %d images of %s, found %d",
                    *(self.name, len(rows), category, len(found)),
                )
            examples += found
        return examples

    def _example(
        self,
        tree: Tree,
        files: dict[str, str],
        category: str,
        split: str,
        row: dict[str, Any],
    ) -> Example:
        image, mask = row["image_path"], files.get(row.get("mask_path") or "")
        defect = row["anomaly_class"]
        return Example(
            *(category, split, defect),
            path=f"{category}/{image}",
            image=Entry(tree, files[image]),
            masks=(Entry(tree, mask),) if mask and defect != GOOD else (),
            sample=str(PurePosixPath(image).parent),
        )


def _rows(tree: Tree, name: str) -> list[tuple[str, dict[str, Any]]]:
    """Split and columns of each image; a good one has the defect `GOOD`."""
    rows = []
    try:
        table = json.loads(tree.read(name))
        normal = table["meta"]["normal_class"]
        for split in ("train", "test"):
            for row in table[split]:
                columns = {column: str(row[column]) for column in COLUMNS}
                good = columns["anomaly_class"] == normal
                columns["anomaly_class"] = GOOD if good else columns["anomaly_class"]
                columns["mask_path"] = row.get("mask_path")
                rows.append((split, columns))
    except (KeyError, TypeError, ValueError, AttributeError):
        rows = []
    if not rows:
        raise UserError(
            f"{tree.path}: {name} is not a split file, with lists of images to train and "
            "to test on; download it again."
        )
    for split, row in rows:
        if split == "train" and row["anomaly_class"] != GOOD:
            raise UserError(
                f"{tree.path}: {name} trains on the defective {row['image_path']!r}; it is "
                "not the published one."
            )
    return rows


def _check_samples(tree: Tree, examples: list[Example]) -> None:
    """Refuses to train on one side of a product and to test on another.

    Raises:
      UserError: naming the product.
    """
    splits: dict[str, str] = {}
    for example in examples:
        if splits.setdefault(example.sample, example.split) != example.split:
            raise UserError(
                f"{tree.path}: images of the sample {example.sample!r} of "
                f"{example.category} are in train and in test; the split file is not the "
                "published one."
            )
