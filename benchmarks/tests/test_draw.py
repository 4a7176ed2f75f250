"""The drawn stand-in of MVTec AD: classes, counts, layout, images and masks."""

import collections
import hashlib

import numpy as np
import pytest
from PIL import Image
from rehearsal.draw import LOOKS, Picture, draw, plan, write_all

from harmoniad_jax.data.synthetic import DEFECTS

SIDE = 64

# Training, good and defective images of MVTec AD, as published.
PUBLISHED = {
    "carpet": (280, 28, 89),
    "grid": (264, 21, 57),
    "leather": (245, 32, 92),
    "tile": (230, 33, 84),
    "wood": (247, 19, 60),
    "bottle": (209, 20, 63),
    "cable": (224, 58, 92),
    "capsule": (219, 23, 109),
    "hazelnut": (391, 40, 70),
    "metal_nut": (220, 22, 93),
    "pill": (267, 26, 141),
    "screw": (320, 41, 119),
    "toothbrush": (60, 12, 30),
    "transistor": (213, 60, 40),
    "zipper": (240, 32, 119),
}


def counts_of(pictures):
    """Category -> training, good and defective images."""
    counts = collections.defaultdict(lambda: [0, 0, 0])
    for category, split, defect, _ in pictures:
        kind = 0 if split == "train" else 1 if defect is None else 2
        counts[category][kind] += 1
    return {category: tuple(kinds) for category, kinds in counts.items()}


def test_the_whole_plan_has_the_published_counts():
    counts = counts_of(plan())
    assert counts == PUBLISHED
    assert [sum(kind) for kind in zip(*counts.values(), strict=True)] == [3629, 467, 1258]


def test_no_file_is_planned_twice_and_numbers_have_no_gap():
    pictures = plan()
    assert len({picture.image for picture in pictures}) == len(pictures) == 5354
    highest = collections.defaultdict(int)
    for category, split, defect, index in pictures:
        assert index == highest[category, split, defect]
        highest[category, split, defect] += 1
    assert {defect for _, _, defect in highest} == {None, *DEFECTS}


@pytest.mark.parametrize("share", [0.001, 0.05])
def test_a_share_keeps_every_class_and_kind(share):
    for category, kinds in counts_of(plan(share)).items():
        for count, whole, fewest in zip(kinds, PUBLISHED[category], (2, 1, 1), strict=True):
            assert count == max(fewest, round(share * whole))


def test_paths_are_those_of_mvtec_ad():
    good = Picture("pill", "train", None, 7)
    assert good.image == "pill/train/good/007.png"
    defective = Picture("pill", "test", "scratch", 12)
    assert defective.image == "pill/test/scratch/012.png"
    assert defective.mask == "pill/ground_truth/scratch/012_mask.png"


def test_classes_look_different():
    assert len(LOOKS) == len(set(LOOKS.values())) == 15


@pytest.mark.parametrize("category", ["carpet", "zipper"])
def test_a_mask_covers_what_the_defect_changed(category):
    picture = Picture(category, "test", "missing", 3)
    image, mask = draw(picture, 128)
    assert image.dtype == np.uint8
    assert image.shape == ((128, 128) if category == "zipper" else (128, 128, 3))
    assert mask.shape == (128, 128)
    assert 0.001 < mask.mean() < 0.3
    again, _ = draw(picture, 128)
    np.testing.assert_array_equal(image, again)
    # The clean twin: the same product without the defect, drawn from the same numbers.
    clean = clean_twin(picture, 128)
    change = np.abs(image.astype(float) - clean).reshape(*mask.shape, -1).max(axis=-1)
    assert change[mask].mean() > 6 * change[~mask].mean()


def clean_twin(picture, side):
    from harmoniad_jax.data.synthetic import DemoSpec, compose

    look = LOOKS[picture.category]
    spec = DemoSpec(side=side // 2, seed=list(LOOKS).index(picture.category))
    scene = compose(look.product, spec, picture.split, picture.index, picture.defect)
    pixels = np.uint8(np.rint(255 * scene.clean[..., look.channels]))
    image = Image.fromarray(pixels).convert("L" if look.grey else "RGB")
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC), float)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    write_all(folder, SIDE, 0.001, workers=2)
    return folder


def contents(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_is_written_is_what_was_planned(drawn):
    pictures = plan(0.001)
    images = {picture.image for picture in pictures}
    masks = {picture.mask for picture in pictures if picture.defect}
    files = contents(drawn)
    assert set(files) == images | masks
    assert len({files[name] for name in images}) == len(images)  # no two are alike
    for picture in pictures:
        with Image.open(drawn / picture.image) as image:
            assert image.size == (SIDE, SIDE)
            assert image.mode == ("L" if LOOKS[picture.category].grey else "RGB")
        if picture.defect:
            with Image.open(drawn / picture.mask) as mask:
                assert (mask.mode, mask.size) == ("L", (SIDE, SIDE))
                assert set(np.unique(mask)) == {0, 255}


def test_an_interrupted_drawing_is_continued(drawn, tmp_path):
    """What is there is left alone, what is missing comes as it would have been."""
    files = contents(drawn)
    kept, lost = drawn / "bottle/train/good/000.png", drawn / "wood/test/good/000.png"
    defective = next(picture for picture in plan(0.001) if picture.defect)
    times = kept.stat().st_mtime_ns
    lost.unlink()
    (drawn / defective.image).unlink()  # its mask was written, it was not
    write_all(drawn, SIDE, 0.001, workers=1)
    assert contents(drawn) == files
    assert kept.stat().st_mtime_ns == times
