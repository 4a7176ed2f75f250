"""BTAD: three industrial products, with masks of their defects."""

from typing import ClassVar

from tfds_builders.anomaly_builder import AnomalyBuilder, Counts
from tfds_builders.archives import Tree
from tfds_builders.examples import Example, examples_by_folder


class Builder(AnomalyBuilder):
    """BTAD, from its archive or a folder.

    Images are BMP or PNG and masks PNG or BMP, by product. About eleven defective images
    have an empty mask or none.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Download btad.zip by way of https://github.com/pankajmishra000/VT-ADL and put it into
    this directory as it is, or the folder BTech_Dataset_transformed extracted from it.
    """
    HOMEPAGE = "https://github.com/pankajmishra000/VT-ADL"
    LICENCE = "CC BY-NC-SA 4.0"
    ARCHIVES = ("btad", "BTech_Dataset_transformed")
    MARKER = "train/ok"
    # Counted on disk: the data set's own description swaps products 02 and 03.
    COUNTS: ClassVar = {
        "01": Counts(400, 21, 49),
        "02": Counts(399, 30, 200),
        "03": Counts(1000, 400, 41),
    }

    def _find(self, tree: Tree) -> list[Example]:
        return examples_by_folder(tree, self.COUNTS, good="ok")
