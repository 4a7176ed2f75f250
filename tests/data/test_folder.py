"""Listing a folder in the MVTec layout, and what is said of one that is wrong."""

import logging
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from harmoniad_jax.data.folder import folder_dataset, masks_of, unreadable
from harmoniad_jax.data.images import read_image, read_size
from harmoniad_jax.data.mask_files import read_mask
from harmoniad_jax.data.records import Dataset, Record
from harmoniad_jax.errors import UserError

SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".bmp",
    ".tif",
    ".tiff",
    ".webp",
    ".pgm",
    ".ppm",
    ".mpo",
)


def write_image(path, size=(24, 16), mode="RGB"):
    """Noise, so that no format compresses it to nothing; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    return path


def write_mask(path, size=(24, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(size[::-1], np.uint8)
    pixels[4:8, 4:8] = 255
    Image.fromarray(pixels).save(path)
    return path


def write_category(folder):
    for name in ("000.png", "001.png"):
        write_image(folder / "train/good" / name)
    write_image(folder / "test/good/000.png")
    for defect in ("crack", "hole"):
        write_image(folder / "test" / defect / "000.png")
        write_mask(folder / "ground_truth" / defect / "000_mask.png")


@pytest.fixture
def root(tmp_path):
    """Two categories of two training images, a good and two defective test images."""
    for category in ("bottle", "grid"):
        write_category(tmp_path / "products" / category)
    return tmp_path / "products"


def bad_files_of(*parts):
    """What is wrong with the images and masks of these records."""
    records = [record for part in parts for record in part]
    return unreadable([record.image for record in records], masks_of(records))


def message_of(*arguments):
    """What `folder_dataset` says of bad input: one line."""
    with pytest.raises(UserError) as error:
        folder_dataset(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# Layouts that are right.


def test_lists_every_record_of_every_category(root):
    dataset = folder_dataset(root)
    train, test = [], []
    for category in ("bottle", "grid"):
        folder = root / category
        train += [
            Record(folder / "train/good/000.png", category),
            Record(folder / "train/good/001.png", category),
        ]
        test += [
            Record(
                folder / "test/crack/000.png",
                category,
                "crack",
                folder / "ground_truth/crack/000_mask.png",
            ),
            Record(folder / "test/good/000.png", category),
            Record(
                folder / "test/hole/000.png",
                category,
                "hole",
                folder / "ground_truth/hole/000_mask.png",
            ),
        ]
    assert dataset == Dataset(train=train, test=test)
    assert dataset.categories == ("bottle", "grid")
    assert [record.is_anomalous for record in dataset.test] == [True, False, True] * 2


@pytest.mark.parametrize("suffix", [*SUFFIXES, *(s.upper() for s in SUFFIXES)])
def test_every_image_suffix_is_an_image_and_a_mask(tmp_path, suffix):
    mode = "L" if suffix.lower() == ".pgm" else "RGB"
    write_image(tmp_path / "a/train/good" / f"0{suffix}", mode=mode)
    write_image(tmp_path / "a/test/hole" / f"0{suffix}", mode=mode)
    write_mask(tmp_path / "a/ground_truth/hole" / f"0_mask{suffix}")
    dataset = folder_dataset(tmp_path)
    assert [record.image.name for record in dataset.train] == [f"0{suffix}"]
    assert [record.mask.name for record in dataset.test] == [f"0_mask{suffix}"]
    assert bad_files_of(dataset.train, dataset.test) == []


def test_greyscale_and_colour_images_mix(root):
    write_image(root / "grid/train/good/000.png", mode="L")
    write_image(root / "grid/test/hole/000.png", mode="L")
    dataset = folder_dataset(root)
    assert len(dataset.train) == 4
    assert bad_files_of(dataset.train, dataset.test) == []


@pytest.mark.parametrize("image", ["7.jpg", "7.bmp", "7.PNG"])
@pytest.mark.parametrize("mask", ["7_mask.png", "7.png", "7_mask.bmp", "7.BMP"])
def test_mask_is_paired_by_stem(root, image, mask):
    write_image(root / "grid/test/scratch" / image)
    write_mask(root / "grid/ground_truth/scratch" / mask)
    (record,) = [r for r in folder_dataset(root).test if r.defect == "scratch"]
    assert (record.image.name, record.mask.name) == (image, mask)


def test_stems_that_resemble_each_other_are_told_apart(root):
    stems = ["1", "10", "01", "1.5", "a b", "mask", "1_masked"]
    for stem in stems:
        write_image(root / "grid/test/scratch" / f"{stem}.png")
        write_mask(root / "grid/ground_truth/scratch" / f"{stem}_mask.png")
    records = [r for r in folder_dataset(root).test if r.defect == "scratch"]
    assert sorted(record.image.stem for record in records) == sorted(stems)
    assert all(record.mask.stem == f"{record.image.stem}_mask" for record in records)


def test_mask_belongs_to_the_image_of_its_own_defect(root):
    """Every defect's images are numbered from 000."""
    records = [r for r in folder_dataset(root).test if r.is_anomalous]
    assert len(records) == 4
    for record in records:
        assert record.mask.parent.name == record.image.parent.name == record.defect


def test_masks_of_good_images_are_not_used(root):
    write_mask(root / "grid/ground_truth/good/000_mask.png")
    good = [r for r in folder_dataset(root).test if not r.is_anomalous]
    assert [record.mask for record in good] == [None, None]


def test_categories_are_taken_by_name_once_and_in_order(root):
    write_category(root / "cable")
    dataset = folder_dataset(root, ("grid", "cable", "grid"))
    assert dataset.categories == ("cable", "grid")
    assert [r.category for r in dataset.train] == ["cable", "cable", "grid", "grid"]
    assert {r.category for r in dataset.test} == {"cable", "grid"}


def test_defect_of_a_category_that_was_not_chosen_does_no_harm(root):
    write_mask(root / "bottle/ground_truth/hole/999_mask.png")
    assert folder_dataset(root, ("grid",)).categories == ("grid",)


def test_root_may_be_one_category(root):
    dataset = folder_dataset(root / "grid")
    assert dataset.categories == ("grid",)
    assert [r.key for r in dataset.train] == ["grid/good/000.png", "grid/good/001.png"]


def test_the_current_folder_may_be_one_category(root, monkeypatch):
    monkeypatch.chdir(root / "grid")
    assert folder_dataset(type(root)(".")).categories == ("grid",)


def test_good_photos_alone_are_a_data_set(tmp_path):
    write_image(tmp_path / "a/train/good/0.png")
    dataset = folder_dataset(tmp_path)
    assert (len(dataset.train), list(dataset.test)) == (1, [])


def test_without_masks_the_label_still_comes_from_the_folder(tmp_path):
    for name in ("train/good/0.png", "test/good/0.png", "test/hole/0.png"):
        write_image(tmp_path / "a" / name)
    good, hole = folder_dataset(tmp_path).test
    assert (good.is_anomalous, good.mask) == (False, None)
    assert (hole.is_anomalous, hole.mask) == (True, None)


def test_one_lost_mask_leaves_the_others(root):
    (root / "grid/ground_truth/hole/000_mask.png").unlink()
    masks = {r.key: r.mask for r in folder_dataset(root, ("grid",)).test}
    assert masks["grid/hole/000.png"] is None
    assert masks["grid/crack/000.png"] is not None


def test_stray_files_are_passed_over(root):
    expected = folder_dataset(root)
    for folder in (
        root,
        root / "grid",
        root / "grid/train",
        root / "grid/train/good",
        root / "grid/test/hole",
        root / "grid/ground_truth/hole",
    ):
        for name in ("Thumbs.db", "license.txt", ".DS_Store", "._000.png", "notes"):
            (folder / name).write_bytes(b"not an image")
    assert folder_dataset(root) == expected


def test_folders_that_are_no_category_are_passed_over(root):
    (root / "split_csv").mkdir()
    (root / "notes/drafts").mkdir(parents=True)
    assert folder_dataset(root).categories == ("bottle", "grid")


def test_hidden_folders_are_passed_over(root):
    """Notebooks and file managers leave copies of images in folders of their own."""
    expected = folder_dataset(root)
    write_image(root / "grid/test/.ipynb_checkpoints/000-checkpoint.png")
    write_image(root / ".Trash/train/good/000.png")
    assert folder_dataset(root) == expected


def test_an_empty_folder_of_masks_does_no_harm(root):
    (root / "grid/ground_truth/scratch").mkdir()
    assert len(folder_dataset(root).test) == 6


@pytest.mark.parametrize("size", [(48, 32), (12, 8), (31, 21), (96, 64)])
def test_a_mask_of_another_resolution_is_fine(root, size):
    mask = write_mask(root / "grid/ground_truth/hole/000_mask.png", size)
    assert mask in [record.mask for record in folder_dataset(root).test]


# Layouts that are wrong.


def test_absent_root(tmp_path):
    message = message_of(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in message
    assert "train/good" in message


def test_root_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in message_of(tmp_path / "file")


def test_empty_root(tmp_path):
    message = message_of(tmp_path)
    assert str(tmp_path) in message
    assert "train/good" in message


@pytest.mark.parametrize("lacks", ["train", "train/good", "images"])
def test_category_without_good_training_images(root, lacks):
    folder = root / "grid/train"
    for path in (folder / "good").iterdir():
        path.unlink()
    if lacks != "images":
        (folder / "good").rmdir()
    if lacks == "train":
        folder.rmdir()
    message = message_of(root)
    assert str(root / "grid/train/good") in message
    assert "bottle" not in message


def test_unknown_category(root):
    message = message_of(root, ("botle", "bottle"))
    assert "'botle'" in message
    assert "bottle, grid" in message
    assert "Did you mean 'bottle'?" in message


def test_several_unknown_categories_are_all_named(root):
    message = message_of(root, ("zebra", "grid", "quilt"))
    assert "'zebra'" in message
    assert "'quilt'" in message
    assert "Did you mean" not in message


def test_mask_without_image(root):
    mask = write_mask(root / "grid/ground_truth/hole/007_mask.png")
    message = message_of(root)
    assert str(mask) in message
    assert str(root / "grid/test/hole/007") in message


def test_masks_of_a_defect_without_test_folder(root):
    write_mask(root / "grid/ground_truth/scratch/000_mask.png")
    message = message_of(root)
    assert str(root / "grid/ground_truth/scratch") in message
    assert str(root / "grid/test/scratch") in message


def test_ground_truth_without_any_test_folder(tmp_path):
    write_image(tmp_path / "a/train/good/0.png")
    write_mask(tmp_path / "a/ground_truth/hole/0.png")
    assert str(tmp_path / "a/test/hole") in message_of(tmp_path)


@pytest.mark.parametrize("size", [(16, 24), (24, 24), (26, 16)])
def test_mask_of_another_aspect_ratio(root, size):
    mask = write_mask(root / "grid/ground_truth/hole/000_mask.png", size)
    message = message_of(root)
    assert str(mask) in message
    assert str(root / "grid/test/hole/000.png") in message
    assert f"{size[0]} x {size[1]}" in message
    assert "24 x 16" in message


def test_all_problems_are_listed_at_once(root):
    (root / "bottle/train/good/000.png").unlink()
    (root / "bottle/train/good/001.png").unlink()
    orphan = write_mask(root / "bottle/ground_truth/hole/007_mask.png")
    write_mask(root / "grid/ground_truth/scratch/000_mask.png")
    turned = write_mask(root / "grid/ground_truth/hole/000_mask.png", (16, 24))
    message = message_of(root)
    for path in (
        root / "bottle/train/good",
        orphan,
        root / "grid/ground_truth/scratch",
        turned,
    ):
        assert str(path) in message


def test_a_flood_of_problems_is_cut_and_counted(root):
    for index in range(100, 117):
        write_mask(root / f"grid/ground_truth/hole/{index}_mask.png")
    message = message_of(root)
    assert "100_mask.png" in message
    assert "116_mask.png" not in message
    assert "and 7 more" in message


# Habits of those who make folders.


@pytest.mark.parametrize("name", ["Good", "GOOD", "ok", "OK", "Normal", "good ", " Ok"])
def test_good_folders_are_known_by_several_names(root, name):
    expected = folder_dataset(root)
    for part in ("train", "test"):
        (root / "grid" / part / "good").rename(root / "grid" / part / name)
    dataset = folder_dataset(root)
    assert [r.key for r in dataset.train] == [r.key for r in expected.train]
    assert sorted(r.key for r in dataset.test) == sorted(r.key for r in expected.test)
    assert [r.is_anomalous for r in dataset.test].count(False) == 2


@pytest.mark.parametrize("part", ["train", "test"])
def test_two_good_folders_are_an_error_that_names_both(root, part):
    write_image(root / "grid" / part / "OK/000.png")
    message = message_of(root)
    assert str(root / "grid" / part / "good") in message
    assert str(root / "grid" / part / "OK") in message


def test_an_empty_good_folder_does_not_count(root):
    (root / "grid/test/OK").mkdir()
    assert len(folder_dataset(root).test) == 6


def test_images_below_a_defect_folder_are_taken_with_their_masks(root):
    for day in ("day1", "day2"):
        write_image(root / "grid/test/hole" / day / "000.png")
        write_mask(root / "grid/ground_truth/hole" / day / "000_mask.png")
    write_image(root / "grid/test/good/day1/a/000.png")
    records = [r for r in folder_dataset(root).test if r.category == "grid"]
    keys = [record.key for record in records]
    assert keys == [
        "grid/crack/000.png",
        "grid/good/000.png",
        "grid/good/day1/a/000.png",
        "grid/hole/000.png",
        "grid/hole/day1/000.png",
        "grid/hole/day2/000.png",
    ]
    for record in records:
        if record.is_anomalous:
            below = record.image.parent.relative_to(root / "grid/test")
            assert record.mask.parent == root / "grid/ground_truth" / below


def test_a_link_that_leads_back_is_not_followed(root):
    (root / "grid/test/hole/again").symlink_to(root / "grid/test/hole")
    assert len(folder_dataset(root).test) == 6


@pytest.mark.parametrize("place", ["train", "test", "ground_truth"])
def test_images_directly_in_a_part_are_an_error(root, place):
    write_image(root / "grid" / place / "IMG_1.png")
    message = message_of(root)
    assert "IMG_1.png lies directly in" in message
    assert str(root / "grid" / place) in message
    assert f"images belong into {place}/" in message


def test_two_images_of_one_name_and_one_mask_are_an_error(root):
    write_image(root / "grid/test/hole/000.jpg")
    message = message_of(root)
    assert str(root / "grid/test/hole/000.jpg") in message
    assert str(root / "grid/test/hole/000.png") in message
    assert str(root / "grid/ground_truth/hole/000_mask.png") in message


def test_two_images_of_one_name_are_fine_without_masks(root):
    (root / "grid/ground_truth/hole/000_mask.png").unlink()
    write_image(root / "grid/test/hole/000.jpg")
    assert len(folder_dataset(root).test) == 7


def test_a_folder_of_masks_is_their_union(root):
    place = root / "grid/ground_truth/hole"
    (place / "000_mask.png").unlink()
    first = write_mask(place / "000/0.png")
    other = np.zeros((16, 24), np.uint8)
    other[10:12] = 255
    Image.fromarray(other).save(place / "000/1.png")
    (record,) = [r for r in folder_dataset(root, ("grid",)).test if r.defect == "hole"]
    np.testing.assert_array_equal(read_mask(record.mask), read_mask(first) | (other > 0))
    assert bad_files_of([record]) == []
    assert hash(record) is not None


@pytest.mark.parametrize(
    ("extra", "said"),
    [("000/0.png", "are masks of the same image"), ("7/0.png", "has no image")],
)
def test_a_folder_of_masks_that_is_one_too_many(root, extra, said):
    path = write_mask(root / "grid/ground_truth/hole" / extra)
    message = message_of(root)
    assert said in message
    assert str(path.parent) in message


def test_masks_of_a_folder_have_the_shape_of_the_image(root):
    (root / "grid/ground_truth/hole/000_mask.png").unlink()
    path = write_mask(root / "grid/ground_truth/hole/000/0.png", (16, 24))
    assert f"mask {path} is 16 x 24 px" in message_of(root)


def test_a_mask_of_two_images_is_an_error(root):
    """ground_truth/hole/a/0.png is of test/hole/a.png or of test/hole/a/0.png."""
    write_image(root / "grid/test/hole/a.png")
    write_image(root / "grid/test/hole/a/0.png")
    path = write_mask(root / "grid/ground_truth/hole/a/0.png")
    message = message_of(root)
    assert f"{path} may be a mask of" in message
    assert str(root / "grid/test/hole/a.png") in message


# Photos that are passed over, and say so.


@pytest.fixture
def warnings_of(listen):
    def warnings(root):
        take = listen(logging.WARNING)
        folder_dataset(root)
        return take()

    return warnings


@pytest.mark.parametrize("place", ["train/good", "test/good", "test/hole/day1"])
@pytest.mark.parametrize("suffix", [".CR2", ".jxl", ".dng"])
def test_photos_that_cannot_be_read_are_counted_and_named(root, warnings_of, place, suffix):
    for index in range(5):
        (root / "grid" / place).mkdir(exist_ok=True)
        (root / "grid" / place / f"{index}{suffix}").write_bytes(b"raw")
    (warning,) = warnings_of(root)
    assert "5 photos cannot be read and are left out" in warning
    assert f"0{suffix}, 1{suffix}, 2{suffix} and 2 more" in warning
    assert "convert to PNG" in warning


def test_heic_without_the_plugin_is_named_with_what_to_install(
    root, warnings_of, monkeypatch
):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (root / "grid/test/hole/000.png").rename(root / "grid/test/hole/000.HEIC")
    (warning,) = warnings_of(root)
    assert "1 photo cannot be read and is left out: 000.HEIC" in warning
    assert "pip install pillow-heif" in warning


def test_heic_with_the_plugin_is_read(root, monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif")
    pixels = np.full((16, 24, 3), 90, np.uint8)
    path = root / "grid/train/good/002.HEIC"
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(path, format="HEIF")
    (record,) = [r for r in folder_dataset(root).train if r.image == path]
    assert bad_files_of([record]) == []
    np.testing.assert_allclose(read_image(path), 90, atol=3)
    assert read_size(path) == (24, 16)


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ("grid/train/bad/0.png", "train/bad"),
        ("grid/validation/bad/0.png", "validation/bad"),
        ("grid/more/good/0.png", "more"),
        ("grid/0.png", "grid"),
        ("0.png", "products"),
    ],
)
def test_images_without_a_place_are_named(root, warnings_of, place, named):
    write_image(root / place)
    (warning,) = warnings_of(root)
    assert "1 image is not used: 0.png" in warning
    assert f"{named}: " in warning


@pytest.mark.parametrize("name", ["Test", "TEST", "Ground Truth", "groundtruth"])
def test_a_part_that_is_misspelt_is_an_error(root, name):
    write_image(root / "bottle" / name / "hole/0.png")
    message = message_of(root)
    assert f"{root / 'bottle' / name} is not read; rename it to" in message


def test_validation_images_are_held_out(root, warnings_of):
    for name in ("0.png", "1.png"):
        write_image(root / "grid/validation/OK" / name)
    assert warnings_of(root) == []
    dataset = folder_dataset(root)
    assert [record.key for record in dataset.held_out] == [
        *("grid/good/0.png", "grid/good/1.png")
    ]
    assert dataset.train == folder_dataset(root, ["bottle", "grid"]).train
    after = dataset.hold_out(0.5)
    held = [record.category for record in after.held_out]
    assert sorted(held) == ["bottle", "grid", "grid"]
    write_image(root / "grid/validation/2.png")
    assert "images belong into validation/good" in message_of(root)


def test_a_right_layout_is_no_reason_for_a_warning(root, warnings_of):
    assert warnings_of(root) == []


@pytest.fixture
def closed(monkeypatch):
    """A function that takes away the right to list a folder, also from root."""
    shut = set()
    listed = os.scandir

    def scandir(folder):
        if folder in shut:
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    return shut.add


@pytest.mark.parametrize("place", ["grid/test/hole", "grid/train", "grid/ground_truth"])
def test_a_folder_that_may_not_be_read_is_an_error(root, closed, place):
    closed(root / place)
    assert f"{root / place} may not be read; change its permissions" in message_of(root)


def test_a_category_that_may_not_be_read_is_named(root, closed, warnings_of):
    closed(root / "grid")
    (warning,) = warnings_of(root)
    assert f"{root / 'grid'} may not be read" in warning


def test_a_root_that_may_not_be_read(root, closed):
    closed(root)
    assert "may not be read" in message_of(root)


# Files that cannot be read.


def test_good_files_are_no_problem(root):
    dataset = folder_dataset(root)
    assert bad_files_of(dataset.train, dataset.test) == []
    assert bad_files_of([]) == []


def test_every_bad_file_is_named(root):
    def cut(path):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        return path

    folder = root / "grid"
    bad = [
        cut(write_image(folder / "train/good/cut.png", (64, 64))),
        cut(write_image(folder / "train/good/cut.jpg", (64, 64))),
        folder / "train/good/text.png",
        folder / "test/good/zero.png",
        cut(write_image(folder / "ground_truth/hole/000_mask.png", (96, 64), "L")),
    ]
    bad[2].write_text("This is a note, not a picture.")
    bad[3].write_bytes(b"")
    dataset = folder_dataset(root)
    problems = bad_files_of(dataset.train, dataset.test)
    assert len(problems) == len(bad)
    for path in bad:
        (problem,) = [found for found in problems if f"{path} cannot be read" in found]
        assert "\n" not in problem


# What a data set says of itself.


def test_fingerprint_stays_when_the_folder_is_moved(root, tmp_path):
    before = folder_dataset(root).train_fingerprint
    moved = root.rename(tmp_path / "elsewhere")
    assert folder_dataset(moved).train_fingerprint == before


def test_fingerprint_ignores_test_images(root):
    before = folder_dataset(root).train_fingerprint
    write_image(root / "grid/test/good/999.png")
    assert folder_dataset(root).train_fingerprint == before


def test_fingerprint_changes_with_the_training_images(root):
    seen = {folder_dataset(root).train_fingerprint}
    added = write_image(root / "grid/train/good/999.png")
    seen.add(folder_dataset(root).train_fingerprint)
    added = added.rename(added.with_name("998.png"))
    seen.add(folder_dataset(root).train_fingerprint)
    added.rename(root / "bottle/train/good/998.png")
    seen.add(folder_dataset(root).train_fingerprint)
    seen.add(folder_dataset(root, ("grid",)).train_fingerprint)
    assert len(seen) == 5


def test_categories_are_those_that_are_trained_on():
    records = [Record(None, name) for name in ("b", "a", "b")]
    assert Dataset(train=records, test=[]).categories == ("a", "b")


def test_images_that_would_be_passed_over_are_a_problem(products, tmp_path):
    root = tmp_path / "photos"
    shutil.copytree(products, root)
    image = next((root / "tablet" / "train" / "good").iterdir())
    for place in ("cap/good", "lid/Train/good", "tablet/train/good/day2"):
        (root / place).mkdir(parents=True)
        shutil.copy(image, root / place)
    with pytest.raises(UserError) as error:
        folder_dataset(root)
    for place in ("cap holds", "lid holds", "day2 is a folder"):
        assert place in str(error.value)
    # Chosen by name, the other folders are nobody's business.
    shutil.rmtree(root / "tablet" / "train" / "good" / "day2")
    assert folder_dataset(root, ("tablet",)).categories == ("tablet",)


@pytest.mark.parametrize("suffix", [".jfif", ".gif", ".jp2", ".tga"])
def test_any_format_that_can_be_read_is_an_image(products, tmp_path, suffix):
    folder = tmp_path / "cap" / "train" / "good"
    folder.mkdir(parents=True)
    image = next((products / "tablet" / "train" / "good").iterdir())
    Image.open(image).save((folder / "000").with_suffix(suffix))
    assert len(folder_dataset(tmp_path).train) == 1
