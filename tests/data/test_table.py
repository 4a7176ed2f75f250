"""Tables of paths and labels, against the folder that they were written from."""

import csv
import os

import numpy as np
import pytest
from PIL import Image

from harmoniad_jax.data.folder import folder_dataset
from harmoniad_jax.data.table import table_dataset
from harmoniad_jax.errors import UserError

COLUMNS = ("image_path", "label", "mask_path", "split", "category", "defect", "sample")


def write_table(path, rows, columns=COLUMNS, delimiter=",", encoding="utf-8"):
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(columns)
        writer.writerows([[row.get(column, "") for column in columns] for row in rows])
    return path


def draw(path, size=(12, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*size[::-1], 3), np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    """Ten good and two defective images, and a mask."""
    for index in range(10):
        draw(tmp_path / f"ok/{index}.png")
    for index in range(2):
        draw(tmp_path / f"ng/{index}.png")
    draw(tmp_path / "masks/0.png")
    return tmp_path


def good(*numbers, **more):
    return [{"image_path": f"ok/{n}.png", "label": "normal", **more} for n in numbers]


def bad(*numbers, **more):
    return [{"image_path": f"ng/{n}.png", "label": "abnormal", **more} for n in numbers]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_folder_as_a_table_is_the_same_data_set(products, tmp_path, delimiter):
    expected = folder_dataset(products)
    rows = [
        {
            "image_path": os.path.relpath(record.image, products),
            "label": "anomalous" if record.is_anomalous else "good",
            "mask_path": record.mask and os.path.relpath(record.mask, products),
            "split": split,
            "category": record.category,
            "defect": record.defect,
        }
        for split in ("train", "test")
        for record in getattr(expected, split)
    ]
    path = write_table(tmp_path / "all.csv", rows, delimiter=delimiter)
    found = table_dataset(path, products)
    for split in ("train", "test"):
        ours, theirs = getattr(found, split), getattr(expected, split)
        facts = [(r.image, r.category, r.defect, r.mask) for r in ours]
        assert facts == [(r.image, r.category, r.defect, r.mask) for r in theirs]
    assert table_dataset(path, products, ["washer"]).categories == ("washer",)
    with pytest.raises(UserError, match="there are fabric, tablet, washer"):
        table_dataset(path, products, ["bottle"])


def test_without_split_the_normal_images_are_trained_on(root):
    """Spaces, a byte order mark, other columns and lines without anything are no matter."""
    rows = [*good(*range(10)), {}, *bad(0, mask_path=" masks/0.png "), *bad(1)]
    for row in rows:
        row["note"] = "" if row == {} else "seen"
    columns = ("label", " image_path", "note", "mask_path ")
    rows = [{k + " " * (k == "mask_path"): v for k, v in row.items()} for row in rows]
    rows = [{" " * (k == "image_path") + k: v for k, v in row.items()} for row in rows]
    path = write_table(root / "cap.csv", rows, columns, encoding="utf-8-sig")
    dataset = table_dataset(path)
    assert dataset.categories == ("cap",)
    assert len(dataset.train) == 10
    assert [record.defect for record in dataset.test] == ["anomalous"] * 2
    assert [record.mask for record in dataset.test] == [root / "masks/0.png", None]
    assert {record.folder for record in dataset.train} == {"ok"}
    some = table_dataset(path, test_share=0.2)
    assert (len(some.train), len(some.test)) == (8, 4)


def test_validation_images_are_held_out_and_views_stay_together(root):
    rows = [
        *good(0, 1, sample="a"),
        *good(2, 3, 4, sample="b"),
        *good(5, 6, 7, split="val"),
        *good(8, split="test"),
    ]
    path = write_table(root / "cap.csv", rows)
    dataset = table_dataset(path)
    assert [r.image.stem for r in dataset.held_out] == ["5", "6", "7"]
    assert len(dataset.hold_out(0.3).train) == 5
    rows = [row for row in rows if "split" not in row]
    dataset = table_dataset(write_table(root / "cap.csv", rows)).hold_out(0.3)
    assert {r.sample for r in dataset.held_out} in ({"a"}, {"b"})
    assert {r.sample for r in dataset.held_out} | {r.sample for r in dataset.train} == {
        *("a", "b")
    }
    assert not {r.sample for r in dataset.held_out} & {r.sample for r in dataset.train}


def test_views_of_one_product_are_on_one_side(root):
    """With a split that is given, and without one."""
    rows = [
        *good(0, 1, sample="a"),
        *good(2, 3, sample="b"),
        *bad(0, sample="a"),
        *(row for n in range(2, 5) for row in good(2 * n, 2 * n + 1, sample=f"{n}")),
    ]
    splits = {"normal": "train", "abnormal": "test"}
    given = [{**row, "split": splits[row["label"]]} for row in rows]
    path = write_table(root / "cap.csv", given)
    with pytest.raises(UserError, match="'a' of cap are in test and train; put all"):
        table_dataset(path)
    dataset = table_dataset(write_table(path, rows))
    assert {record.sample for record in dataset.train} == {"b", "2", "3", "4"}
    assert [record.sample for record in dataset.test] == ["a"] * 3
    dataset = table_dataset(path, test_share=0.25)
    train, test = ({r.sample for r in part} for part in (dataset.train, dataset.test))
    assert (len(train), len(test), train & test) == (3, 2, set())


def test_paths_may_be_absolute(root, tmp_path_factory):
    rows = [{"image_path": root / "ok/0.png", "label": 0}]
    path = write_table(tmp_path_factory.mktemp("elsewhere") / "cap.csv", rows)
    (record,) = table_dataset(path).train
    assert (record.image, record.folder) == (root / "ok/0.png", "")


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([*good(0), *bad(7)], ("cap.csv:3:", "ng/7.png is not there")),
        ([*good(0), *bad(0, mask_path="x.png")], ("cap.csv:3:", "x.png is not there")),
        (good(0, label="fine"), ("cap.csv:2:", "'fine'", "normal, good, ok, 0")),
        (good(0, split="dev"), ("cap.csv:2:", "'dev'", "train, test, val")),
        (bad(0, split="train"), ("cap.csv:2:", "a defective image is for train")),
        (bad(0, split="val"), ("cap.csv:2:", "a defective image is for val")),
        (good(0, 1, 0), ("cap.csv:4:", "'ok/0.png' is in line 2 too")),
        (bad(0), ("lists no normal image of cap",)),
        (good(*range(20, 40)), ("and 10 more",)),
    ],
)
def test_rows_that_are_wrong_are_named_with_their_line(root, rows, parts):
    path = write_table(root / "cap.csv", rows)
    with pytest.raises(UserError) as error:
        table_dataset(path)
    for part in parts:
        assert part in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_mask_of_another_shape_is_refused(root):
    draw(root / "masks/0.png", size=(8, 8))
    rows = [*good(0), *bad(0, mask_path="masks/0.png")]
    with pytest.raises(UserError, match=r"cap.csv:3: .*another aspect ratio"):
        table_dataset(write_table(root / "cap.csv", rows))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "its columns are none"),
        (b"path,label\na.png,good\n", "no column image_path; its columns are path, label"),
        (b"\xff\xfe\x00", "is not a table of text"),
        (b'image_path,label\n"a,good\n', "cap.csv:2: the label is ''"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, content, part):
    (tmp_path / "cap.csv").write_bytes(content)
    with pytest.raises(UserError) as error:
        table_dataset(tmp_path / "cap.csv")
    assert part in str(error.value)
    assert len(str(error.value).splitlines()) == 1
