"""MVTec LOCO AD: five objects with structural and logical defects, a mask for each."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, ClassVar, NamedTuple

import numpy as np

from harmoniad_jax.data.images import open_with_pillow
from harmoniad_jax.data.records import GOOD, EncodedImage
from harmoniad_jax.data.suffixes import is_image
from harmoniad_jax.errors import UserError
from tfds_builders.anomaly_builder import AnomalyBuilder, Counts
from tfds_builders.archives import Tree
from tfds_builders.examples import Defect, Entry, Example

SETTINGS = "defects_config.json"


class Saturation(NamedTuple):
    """When a kind of defect counts as found as a whole.

    threshold: pixels, or a share of the defect where it is relative.
    """

    threshold: float
    relative: bool


@dataclasses.dataclass(frozen=True)
class LocoExample(Example):
    """An image with a mask for each of its defects.

    saturations: by the number that a mask marks its defect with; it is the kind of defect.
    """

    KEEPS_MASKS: ClassVar[bool] = True

    saturations: Mapping[int, Saturation] = dataclasses.field(default_factory=dict)

    def _decode(self, encoded: EncodedImage) -> Defect:
        values = np.asarray(open_with_pillow(encoded))
        kinds = np.unique(values[values != 0]).tolist() if values.ndim == 2 else []
        if len(kinds) != 1 or kinds[0] not in self.saturations:
            raise UserError(
                f"the mask {encoded} holds the numbers {kinds}; expected one of "
                f"{', '.join(map(str, self.saturations))}, as {SETTINGS} says; download "
                "the data set again."
            )
        mask, saturation = values != 0, self.saturations[kinds[0]]
        pixels = saturation.threshold * (mask.sum() if saturation.relative else 1)
        # What is smaller than its threshold is found when all of it is.
        return Defect(mask, float(min(pixels, mask.sum())) / mask.size)


class Builder(AnomalyBuilder):
    """MVTec LOCO AD, from its archive or a folder.

    A defect is called "logical_anomalies" or "structural_anomalies". A mask marks one
    defect; where it might be marked in several places, as a missing part might, it marks
    all of them, and a part of it is enough (`saturations`).
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Download mvtec_loco_anomaly_detection.tar.xz from
    https://www.mvtec.com/company/research/datasets/mvtec-loco (a form asks for your name)
    and put it into this directory as it is, or the folder extracted from it.
    """
    HOMEPAGE = "https://www.mvtec.com/company/research/datasets/mvtec-loco"
    LICENCE = "CC BY-NC-SA 4.0"
    ARCHIVES = ("mvtec_loco_anomaly_detection", "mvtec_loco")
    MARKER = "train/good"
    SPLITS = ("train", "validation", "test")
    KEEPS_MASKS = True
    # Counted in the published archive: 1778 training, 305 validation and 1568 test images
    # together. The article has 1772 and 304; splicing_connectors differs.
    COUNTS: ClassVar = {
        "breakfast_box": Counts(351, 102, 173, 62),
        "juice_bottle": Counts(335, 94, 236, 54),
        "pushpins": Counts(372, 138, 172, 69),
        "screw_bag": Counts(360, 122, 219, 60),
        "splicing_connectors": Counts(360, 119, 193, 60),
    }

    def _find(self, tree: Tree) -> list[Example]:
        names = "|".join(map(re.escape, self.COUNTS))
        images = re.compile(f"(?:.*/)?({names})/(train|validation|test)/([^/]+)/([^/]+)")
        masks = re.compile(f"(?:.*/)?({names})/ground_truth/([^/]+)/([^/]+)/[^/]+")
        settings = re.compile(f"(?:.*/)?({names})/{re.escape(SETTINGS)}")
        saturations: dict[str, Mapping[int, Saturation]] = {}
        of_image: dict[tuple[str, ...], list[Entry]] = {}
        for name in tree.names:
            if match := settings.fullmatch(name):
                saturations[match[1]] = _saturations(tree, name)
            elif (match := masks.fullmatch(name)) and is_image(PurePosixPath(name)):
                of_image.setdefault(match.groups(), []).append(Entry(tree, name))
        examples = []
        for name in tree.names:
            match = images.fullmatch(name)
            if match is None or not is_image(PurePosixPath(name)):
                continue
            category, split, defect, file = match.groups()
            if split != "test" and defect != GOOD:
                continue
            if category not in saturations:
                raise UserError(
                    f"{tree.path}: {category} has no {SETTINGS}, which says how much of a "
                    "defect must be found; it is part of the published archive."
                )
            key = (category, defect, PurePosixPath(file).stem)
            examples.append(
                LocoExample(
                    *(category, split, defect),
                    path=name[match.start(1) :],
                    image=Entry(tree, name),
                    masks=() if defect == GOOD else tuple(of_image.get(key, ())),
                    saturations=saturations[category],
                )
            )
        return examples


def _saturations(tree: Tree, name: str) -> dict[int, Saturation]:
    try:
        rows: list[dict[str, Any]] = json.loads(tree.read(name))
        found = {
            int(row["pixel_value"]): Saturation(
                float(row["saturation_threshold"]), bool(row["relative_saturation"])
            )
            for row in rows
        }
    except (KeyError, TypeError, ValueError):
        found = {}
    if not found or not all(one.threshold > 0 for one in found.values()):
        raise UserError(
            f"{tree.path}: {name} is not a list of defects with pixel_value, "
            "saturation_threshold and relative_saturation; download the data set again."
        )
    return found
