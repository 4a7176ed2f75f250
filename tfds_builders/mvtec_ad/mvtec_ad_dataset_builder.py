"""MVTec AD: textures and objects of 15 categories, with masks of their defects."""

from typing import ClassVar

from tfds_builders.anomaly_builder import AnomalyBuilder, Counts
from tfds_builders.archives import Tree
from tfds_builders.examples import Example, examples_by_folder


class Builder(AnomalyBuilder):
    """MVTec AD, from its archive, an archive for each category, or a folder."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Download mvtec_anomaly_detection.tar.xz, or the archives of single categories
    (bottle.tar.xz, ...), from
    https://www.mvtec.com/company/research/datasets/mvtec-ad/downloads (a form asks for
    your name), and put them into this directory as they are, or the folder extracted
    from them.
    """
    HOMEPAGE = "https://www.mvtec.com/company/research/datasets/mvtec-ad"
    LICENCE = "CC BY-NC-SA 4.0"
    ARCHIVES = ("mvtec_anomaly_detection",)
    MARKER = "train/good"
    # Counted in the published data set; 3629 training and 1725 test images together.
    COUNTS: ClassVar = {
        "bottle": Counts(209, 20, 63),
        "cable": Counts(224, 58, 92),
        "capsule": Counts(219, 23, 109),
        "carpet": Counts(280, 28, 89),
        "grid": Counts(264, 21, 57),
        "hazelnut": Counts(391, 40, 70),
        "leather": Counts(245, 32, 92),
        "metal_nut": Counts(220, 22, 93),
        "pill": Counts(267, 26, 141),
        "screw": Counts(320, 41, 119),
        "tile": Counts(230, 33, 84),
        "toothbrush": Counts(60, 12, 30),
        "transistor": Counts(213, 60, 40),
        "wood": Counts(247, 19, 60),
        "zipper": Counts(240, 32, 119),
    }

    @classmethod
    def archive_stems(cls) -> tuple[str, ...]:
        return (*cls.ARCHIVES, *cls.COUNTS)

    def _find(self, tree: Tree) -> list[Example]:
        return examples_by_folder(tree, self.COUNTS, good="good")
