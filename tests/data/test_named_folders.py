"""Folders that are named one by one, against the same images in the MVTec layout."""

import shutil

import numpy as np
import pytest
from PIL import Image

from harmoniad_jax.data.folder import folder_dataset
from harmoniad_jax.data.named_folders import (
    NamedFolders,
    named_folders_dataset,
    split_off,
)
from harmoniad_jax.data.records import Record
from harmoniad_jax.errors import UserError


def draw(path, size=(12, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*size[::-1], 3), np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    """Two products: good images, two kinds of defects with masks, and notes beside."""
    for product in ("bottle", "cap"):
        for index in range(10):
            draw(tmp_path / product / f"OK/{index}.png")
        draw(tmp_path / product / "OK/day2/0.png")
        draw(tmp_path / product / "OK_test/0.png")
        for defect in ("scratch", "dent"):
            for index in range(2):
                draw(tmp_path / product / defect / f"{index}.png")
                draw(tmp_path / product / f"{defect}_masks/{index}_mask.png")
        (tmp_path / product / "OK/notes.txt").write_text("notes")
    return tmp_path


ALL = NamedFolders(
    normal=["OK"],
    abnormal=["scratch", "dent"],
    normal_test=["OK_test"],
    masks=["scratch_masks", "dent_masks"],
)


def test_the_same_images_in_the_mvtec_layout_are_the_same_records(products):
    root = products / "washer"
    defects = [path.name for path in (root / "test").iterdir() if path.name != "good"]
    named = NamedFolders(
        normal=["train/good"],
        abnormal=[f"test/{name}" for name in defects],
        normal_test=["test/good"],
        masks=[f"ground_truth/{name}" for name in defects],
    )
    found, expected = named_folders_dataset(root, named), folder_dataset(root)
    assert found.train == expected.train
    assert set(found.test) == set(expected.test)
    assert found.train_fingerprint == expected.train_fingerprint


def test_each_folder_with_these_names_is_a_product(root):
    dataset = named_folders_dataset(root, ALL)
    assert dataset.categories == ("bottle", "cap")
    assert len(dataset.train) == 22
    test = [record for record in dataset.test if record.category == "cap"]
    assert sorted(record.defect for record in test) == [
        *("dent", "dent", "good", "scratch", "scratch")
    ]
    for record in test:
        assert (record.mask is not None) == record.is_anomalous
        if record.is_anomalous:
            masks = root / "cap" / f"{record.defect}_masks"
            assert record.mask == masks / f"{record.image.stem}_mask.png"
    assert named_folders_dataset(root, ALL, ["cap"]).categories == ("cap",)
    with pytest.raises(UserError, match="Did you mean 'cap'"):
        named_folders_dataset(root, ALL, ["cup"])


def test_not_every_product_has_every_kind_of_defect(root):
    for folder in ("dent", "dent_masks"):
        shutil.rmtree(root / "cap" / folder)
    dataset = named_folders_dataset(root, ALL)
    defects = {(record.category, record.defect) for record in dataset.test}
    assert defects == {
        *(("cap", "good"), ("cap", "scratch")),
        *(("bottle", "good"), ("bottle", "scratch"), ("bottle", "dent")),
    }
    with pytest.raises(UserError, match="bottle/hole is not a folder, nor in 1 other"):
        named_folders_dataset(root, NamedFolders(["OK"], ["hole"]))
    (root / "cap/dent").mkdir()
    with pytest.raises(UserError, match="cap/dent holds no image"):
        named_folders_dataset(root, ALL)


def test_one_product_is_called_as_its_folder(root, monkeypatch):
    named = named_folders_dataset(root / "cap", ALL)
    assert named.categories == ("cap",)
    monkeypatch.chdir(root / "cap")
    assert named_folders_dataset(root / "cap", ALL).train == named.train
    absolute = NamedFolders([str(root / "bottle/OK")])
    assert named_folders_dataset(root.parent, absolute).categories == ("bottle",)


def test_good_images_alone_are_enough(root):
    dataset = named_folders_dataset(root / "cap", NamedFolders(["OK"]))
    assert (len(dataset.train), len(dataset.test)) == (11, 0)
    assert {record.folder for record in dataset.train} == {"", "day2"}


def test_a_share_of_the_good_images_is_tested_on(root):
    named = NamedFolders(["OK"], ["scratch"], test_share=0.2)
    dataset = named_folders_dataset(root / "cap", named)
    assert (len(dataset.train), len(dataset.test)) == (9, 2 + 2)
    whole = named_folders_dataset(root / "cap", NamedFolders(["OK"])).train
    assert {r.image for r in dataset.train + dataset.test if not r.is_anomalous} == {
        r.image for r in whole
    }


@pytest.mark.parametrize("count", [0, 1, 2, 7, 100])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 0.9, 0.999])
def test_a_share_leaves_something_to_learn_from(count, share):
    records = [Record(str(index), "cap") for index in range(count)]
    kept, taken = split_off(records, share)
    assert sorted([*kept, *taken], key=lambda r: int(r.image)) == records
    assert len(taken) == max(min(round(share * count), count - 1), 0)


def test_a_defect_whose_folder_is_called_good_stays_a_defect(root):
    (root / "cap/scratch").rename(root / "cap/good")
    dataset = named_folders_dataset(root / "cap", NamedFolders(["OK"], ["good"]))
    assert all(record.is_anomalous for record in dataset.test)


@pytest.mark.parametrize(
    ("named", "parts"),
    [
        (ALL._replace(normal=["ok"]), ("data.normal_dir='ok'", "cap/ok")),
        (ALL._replace(abnormal=["a", "b"]), ("cap/a is not a folder", "cap/b is not")),
        (ALL._replace(normal_test=["OK"]), ("cap/OK and", "hold the same images")),
        (ALL._replace(abnormal=["OK/day2", "dent"], masks=()), ("do not lie in each",)),
        (ALL._replace(masks=["scratch_masks"]), ("names 1", "data.abnormal_dir 2")),
        (ALL._replace(masks=["dent_masks", "OK"]), ("OK/2.png has no image",)),
    ],
)
def test_what_cannot_be_meant_is_refused(root, named, parts):
    with pytest.raises(UserError) as error:
        named_folders_dataset(root / "cap", named)
    for part in parts:
        assert part in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_mask_of_another_shape_is_refused(root):
    draw(root / "cap/dent_masks/0_mask.png", size=(8, 8))
    with pytest.raises(UserError, match="another aspect ratio"):
        named_folders_dataset(root / "cap", ALL)
