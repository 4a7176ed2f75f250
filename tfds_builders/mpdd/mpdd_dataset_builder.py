"""MPDD: six kinds of painted metal parts, with masks of their defects."""

from typing import ClassVar

from tfds_builders.anomaly_builder import AnomalyBuilder, Counts
from tfds_builders.archives import Tree
from tfds_builders.examples import Example, examples_by_folder


class Builder(AnomalyBuilder):
    """MPDD, from its archive or a folder, in the layout of MVTec AD."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Download MPDD.zip by way of https://github.com/stepanje/MPDD and put it into this
    directory as it is, or the folder extracted from it.
    """
    HOMEPAGE = "https://github.com/stepanje/MPDD"
    LICENCE = "Not stated in its repository; ask its authors."
    ARCHIVES = ("MPDD", "anomaly_dataset")
    MARKER = "train/good"
    # Listed in the published archive; 888 training and 458 test images together.
    COUNTS: ClassVar = {
        "bracket_black": Counts(289, 32, 47),
        "bracket_brown": Counts(185, 26, 51),
        "bracket_white": Counts(110, 30, 30),
        "connector": Counts(128, 30, 14),
        "metal_plate": Counts(54, 26, 71),
        "tubes": Counts(122, 32, 69),
    }

    def _find(self, tree: Tree) -> list[Example]:
        return examples_by_folder(tree, self.COUNTS, good="good")
