"""MVTec AD 2: eight objects under changing light, with masks of their defects."""

import re
from pathlib import PurePosixPath
from typing import ClassVar

from harmoniad_jax.data.records import GOOD, UNLABELLED
from harmoniad_jax.data.suffixes import is_image
from tfds_builders.anomaly_builder import AnomalyBuilder, Counts
from tfds_builders.archives import Tree
from tfds_builders.examples import Entry, Example, pair_masks

PRIVATE = ("test_private", "test_private_mixed")


class Builder(AnomalyBuilder):
    """MVTec AD 2, from its archive, an archive for each object, or a folder.

    The split "test" is the public test set. The publisher keeps the labels of the splits
    "test_private" and "test_private_mixed"; its server takes predictions of them.
    File names tell the light: 000_regular.png, 000_overexposed.png, ...
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Download mvtec_ad_2.tar.gz, or the archives of single objects (can.tar.gz, ...), from
    https://www.mvtec.com/company/research/datasets/mvtec-ad-2 (a form asks for your name),
    and put them into this directory as they are, or the folder extracted from them.
    """
    HOMEPAGE = "https://www.mvtec.com/company/research/datasets/mvtec-ad-2"
    LICENCE = "CC BY-NC-SA 4.0"
    ARCHIVES = ("mvtec_ad_2",)
    MARKER = "train/good"
    SPLITS = ("train", "validation", "test", *PRIVATE)
    # Counted in the published data set; 2528 training, 302 validation and 1084 public test
    # images together, and 2045 in each of the private test sets.
    COUNTS: ClassVar = {
        "can": Counts(412, 72, 90, 46),
        "fabric": Counts(387, 66, 90, 43),
        "fruit_jelly": Counts(263, 20, 60, 37),
        "rice": Counts(313, 42, 90, 35),
        "sheet_metal": Counts(137, 24, 90, 19),
        "vial": Counts(291, 35, 105, 41),
        "wallplugs": Counts(293, 60, 90, 33),
        "walnuts": Counts(432, 60, 90, 48),
    }

    @classmethod
    def archive_stems(cls) -> tuple[str, ...]:
        return (*cls.ARCHIVES, *cls.COUNTS)

    def _find(self, tree: Tree) -> list[Example]:
        names = "|".join(map(re.escape, self.COUNTS))
        folders = {
            "train/good": ("train", GOOD),
            "validation/good": ("validation", GOOD),
            "test_public/good": ("test", GOOD),
            "test_public/bad": ("test", "bad"),
            **{name: (name, UNLABELLED) for name in PRIVATE},
        }
        masks_of_bad = "test_public/ground_truth/bad"
        layout = re.compile(
            f"(?:.*/)?({names})/({'|'.join([*folders, masks_of_bad])})/([^/]+)"
        )
        examples, masks = [], []
        for name in tree.names:
            match = layout.fullmatch(name)
            if match is None or not is_image(PurePosixPath(name)):
                continue
            category, folder, _ = match.groups()
            if folder == masks_of_bad:
                masks.append((category, "bad", Entry(tree, name)))
                continue
            split, defect = folders[folder]
            path = name[match.start(1) :]
            examples.append(Example(category, split, defect, path, Entry(tree, name)))
        return pair_masks(examples, masks)
