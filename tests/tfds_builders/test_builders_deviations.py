"""Copies that deviate from what was published: in files, counts, masks and splits."""

import logging
import zipfile

import numpy as np
import pytest
from miniatures import (
    MINIATURES,
    assert_prepared,
    btad,
    draw_image,
    drawn_records,
    encode,
    error_of,
    mvtec,
    split_table,
    visa,
    write_folder,
    write_tar,
    write_zip,
)

import tfds_builders
from harmoniad_jax.data.folder import folder_dataset
from harmoniad_jax.data.mask_files import read_mask
from harmoniad_jax.data.prepared import prepared_dataset
from tfds_builders.anomaly_builder import Counts
from tfds_builders.mvtec_ad import mvtec_ad_dataset_builder
from tfds_builders.prepare import prepare


def products_builder(name, counts):
    """A builder of other products in the MVTec layout."""

    class Builder(mvtec_ad_dataset_builder.Builder, skip_registration=True):
        COUNTS = counts
        # TFDS looks for a data set's description in its module.
        __module__ = mvtec_ad_dataset_builder.__name__

    Builder.name = name
    return Builder


def sentences(caplog):
    """The warnings of the builders, not those of TFDS."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith("tfds_builders")
    ]


def drawn_counts(miniature, category):
    drawn = [d for d in miniature.expected if d.category == category]
    train = sum(d.split == "train" for d in drawn)
    good = sum(d.defect == "good" for d in drawn)
    return Counts(train, good - train, len(drawn) - good)


# What is there, and what is not.


@pytest.mark.parametrize(
    ("name", "categories"),
    [
        ("mvtec_ad", ("grid",)),
        ("mvtec_ad", ("bottle", "metal_nut")),
        ("visa", ("pcb1",)),
        ("btad", ("03",)),
        ("btad", ("01", "02")),
    ],
)
@pytest.mark.parametrize("archive", [False, True])
def test_a_partial_copy_is_prepared_and_what_lacks_is_said(
    tmp_path, caplog, name, categories, archive
):
    part = MINIATURES[name]().part(*categories)
    builder = tfds_builders.BUILDERS[name]
    if archive:
        write_tar(part.files, tmp_path / "manual" / f"{builder.ARCHIVES[0]}.tar.gz")
    else:
        write_folder(part.files, tmp_path / "manual" / part.top)
    prepare(name, tmp_path / "manual", tmp_path)
    assert_prepared(part, tmp_path)
    (absent,) = [line for line in sentences(caplog) if "not there" in line]
    named = absent.partition("not there: ")[2].split(", ")
    assert named == [c for c in builder.COUNTS if c not in categories]


@pytest.mark.parametrize("draw", [mvtec, visa, btad])
def test_counts_that_differ_are_a_warning(tmp_path, caplog, monkeypatch, draw):
    """Only of the category that differs: all others are said to be as published."""
    miniature = draw()
    categories = sorted({drawn.category for drawn in miniature.expected})
    counts = {name: drawn_counts(miniature, name) for name in categories}
    builder = tfds_builders.BUILDERS[miniature.name]
    monkeypatch.setattr(builder, "COUNTS", counts)
    write_folder(miniature.files, tmp_path / "manual")
    prepare(miniature.name, tmp_path / "manual", tmp_path / "right")
    assert [line for line in sentences(caplog) if "no mask" not in line] == []

    caplog.clear()
    other = categories[1]
    expected = Counts(counts[other].train + 1, counts[other].good, 77)
    monkeypatch.setattr(builder, "COUNTS", counts | {other: expected})
    prepare(miniature.name, tmp_path / "manual", tmp_path / "wrong")
    (message,) = [line for line in sentences(caplog) if "no mask" not in line]
    assert f" {other}," in message
    for number in (*expected[:3], *counts[other][:3]):
        assert f"{number} " in message
    assert message.index(str(expected)) < message.index(str(counts[other]))


def test_published_counts_add_up_to_the_published_totals():
    totals = {
        name: np.sum(list(tfds_builders.BUILDERS[name].COUNTS.values()), axis=0).tolist()
        for name in MINIATURES
    }
    assert totals == {
        "mvtec_ad": [3629, 467, 1258, 0],
        "visa": [8659, 962, 1200, 0],
        "btad": [1799, 451, 290, 0],
    }


def test_masks_that_are_lost_are_counted_and_the_label_stays(tmp_path, caplog):
    """In BTAD two are lost and two are black; the label is the folder's."""
    write_folder(btad().files, tmp_path / "manual")
    prepare("btad", tmp_path / "manual", tmp_path)
    assert any("2 defective images have no mask" in line for line in sentences(caplog))
    empty = [r for r in drawn_records("btad", tmp_path) if r.defect != "good"]
    assert sum(not record.mask.any() for record in empty) == 4


def test_masks_of_good_images_are_not_used(tmp_path):
    files = dict(mvtec().files)
    mask = np.full((16, 20), 255, np.uint8)
    files["bottle/ground_truth/good/000_mask.png"] = encode(mask, "PNG")
    write_folder(files, tmp_path / "manual")
    prepare("mvtec_ad", tmp_path / "manual", tmp_path)
    assert_prepared(mvtec(), tmp_path)


def test_defective_images_are_never_trained_on(tmp_path):
    """Someone may have put a folder of them beside the good ones."""
    files = dict(mvtec().files)
    files["bottle/train/cut/000.png"] = draw_image("any.png", (20, 16))
    write_folder(files, tmp_path / "manual")
    prepare("mvtec_ad", tmp_path / "manual", tmp_path)
    assert_prepared(mvtec(), tmp_path)


@pytest.mark.parametrize("stem", ["a b", "0.5", "ß", "000_masked", "mask", "100%s", "a\nb"])
def test_a_mask_is_paired_by_stem(tmp_path, stem):
    good = draw_image("good.png", (16, 16))
    files = {
        "01/train/ok/0.bmp": good,
        f"01/test/ko/{stem}.bmp": good,
        f"01/ground_truth/ko/{stem}.PNG": encode(np.eye(16, dtype=bool), "PNG"),
        "01/ground_truth/ko/other.png": encode(np.ones((16, 16), bool), "PNG"),
    }
    write_zip(files, tmp_path / "btad.zip")
    prepare("btad", tmp_path, tmp_path)
    record = drawn_records("btad", tmp_path)[-1]
    assert record.path == f"01/test/ko/{stem}.bmp"
    np.testing.assert_array_equal(record.mask, np.eye(16, dtype=bool))


def test_other_data_sets_in_the_same_manual_folder_are_left_alone(tmp_path):
    for name, draw in MINIATURES.items():
        manual = tmp_path / "manual"
        write_folder(draw().files, manual / draw().top)
        write_tar({"a": b"spoilt"}, manual / f"unrelated_{name}.tar")
    (manual / "unrelated.tar.xz").write_bytes(b"spoilt")
    for name, draw in MINIATURES.items():
        prepare(name, manual, tmp_path)
        assert_prepared(draw(), tmp_path)


MASK = "bottle/ground_truth/cut/000"


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize(
    ("added", "named"),
    [
        (f"{MASK}.png", (f"{MASK}.png", f"{MASK}_mask.png")),
        ("bottle/test/cut/000.jpg", (f"{MASK}_mask.png", "cut/000.jpg", "cut/000.png")),
    ],
)
def test_what_cannot_be_paired_is_refused(tmp_path, archive, added, named):
    """Two masks of one image, and two images of one mask."""
    files = {**mvtec().files, added: draw_image(added, (20, 16), "L")}
    if archive:
        write_zip(files, tmp_path / "manual/mvtec_anomaly_detection.zip")
    else:
        write_folder(files, tmp_path / "manual")
    message = error_of("mvtec_ad", tmp_path / "manual", tmp_path / "data")
    assert all(name in message for name in named)


def test_a_mask_of_another_shape_than_its_image_is_refused(tmp_path):
    name = f"{MASK}_mask.png"
    files = {**mvtec().files, name: encode(np.eye(20, 16, dtype=bool), "PNG")}
    write_zip(files, tmp_path / "manual/mvtec_anomaly_detection.zip")
    message = error_of("mvtec_ad", tmp_path / "manual", tmp_path / "data")
    assert name in message and "bottle/test/cut/000.png" in message
    assert "16 x 20 px" in message and "20 x 16 px" in message


def test_a_mask_of_another_resolution_is_fine(tmp_path):
    mask = np.zeros((32, 40), bool)
    mask[4:8] = True
    files = {**mvtec().files, f"{MASK}_mask.png": encode(mask, "PNG")}
    write_folder(files, tmp_path / "manual")
    prepare("mvtec_ad", tmp_path / "manual", tmp_path)
    found = {r.path: r.mask for r in drawn_records("mvtec_ad", tmp_path)}
    np.testing.assert_array_equal(found["bottle/test/cut/000.png"], mask)


# Names that browsers, file managers and Windows make.


@pytest.mark.parametrize(
    "name",
    [
        "mvtec_anomaly_detection (1).zip",
        "mvtec_anomaly_detection(2).tar.xz",
        "mvtec_anomaly_detection.tar (1).xz",
        "mvtec_anomaly_detection copy.tar.xz",
        "mvtec_anomaly_detection copy 2.tar",
        "mvtec_anomaly_detection - Copy.tar.gz",
        "mvtec_anomaly_detection.tar - Copy (3).gz",
        "mvtec_anomaly_detection - Kopie.zip",
        "mvtec_anomaly_detection (another copy).zip",
        "mvtec_anomaly_detection[1].zip",
        "Copy of MVTec_anomaly_detection.zip",
    ],
)
def test_a_second_download_or_a_copy_is_read(tmp_path, name):
    write = write_zip if name.endswith("zip") else write_tar
    write(mvtec().files, tmp_path / "manual" / name, top="mvtec_anomaly_detection/")
    prepare("mvtec_ad", tmp_path / "manual", tmp_path)
    assert_prepared(mvtec(), tmp_path)


def test_the_archive_itself_comes_before_its_copies(tmp_path):
    for name in ("mvtec_anomaly_detection (1).zip", "copy of mvtec_anomaly_detection.zip"):
        (tmp_path / name).write_bytes(b"spoilt")
    write_zip(mvtec().files, tmp_path / "mvtec_anomaly_detection.zip")
    prepare("mvtec_ad", tmp_path, tmp_path / "data")
    assert_prepared(mvtec(), tmp_path / "data")


@pytest.mark.parametrize("draw", [mvtec, visa, btad])
def test_a_zip_whose_names_have_backslashes_is_read(tmp_path, draw):
    """Some programs on Windows write them, also for folders."""
    path = tmp_path / f"{tfds_builders.BUILDERS[draw().name].ARCHIVES[0]}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"bottle/": b"", **draw().files}.items():
            entry = zipfile.ZipInfo("x")
            entry.filename = f"{draw().top}/{name}".replace("/", "\\")
            archive.writestr(entry, content)
    prepare(draw().name, tmp_path, tmp_path / "data")
    assert_prepared(draw(), tmp_path / "data")


# Splits of VisA that are not as published.


@pytest.mark.parametrize(
    "table",
    [
        b"",
        b"\n",
        b"object,split,label,image,mask\n",
        b"just text",
        b"object,split,label,image\ncandle,train,normal,candle/Data/Images/Normal/0000.JPG\n",
        b"candle,train,normal,candle/Data/Images/Normal/0000.JPG,\n",
        bytes(range(256)),
        "object,split,label,image,mask\ncandle".encode("utf-16"),
        b"object,split,label,image,mask\n" + b"x" * 200_000 + b",train,normal,a,b\n",
        None,
    ],
    ids=[
        "empty",
        "blank",
        "header alone",
        "text",
        "no mask column",
        "no header",
        "binary",
        "utf-16",
        "long field",
        "missing",
    ],
)
@pytest.mark.parametrize("archive", [False, True])
def test_a_wrong_split_of_visa_is_one_line(tmp_path, table, archive):
    files = {**visa().files, "split_csv/1cls.csv": table}
    if table is None:
        del files["split_csv/1cls.csv"]
    if archive:
        write_tar(files, tmp_path / "manual/VisA_20220922.tar")
    else:
        write_folder(files, tmp_path / "manual/VisA")
    message = error_of("visa", tmp_path / "manual", tmp_path / "data")
    assert "split_csv/1cls.csv" in message
    assert str(tmp_path / "manual") in message


@pytest.mark.parametrize(
    "spelling", ["utf-8-sig", "unix lines", "short rows", "more columns", "blank lines"]
)
def test_spellings_of_the_split_of_visa_that_say_the_same(tmp_path, spelling):
    files = dict(visa().files)
    table = files["split_csv/1cls.csv"].decode()
    lines = table.splitlines()
    files["split_csv/1cls.csv"] = {
        "utf-8-sig": table.encode("utf-8-sig"),
        "unix lines": "\n".join(lines).encode(),
        "short rows": "\n".join(line.rstrip(",") for line in lines).encode(),
        "more columns": "\n".join(f"0,{line}" for line in lines).encode(),
        "blank lines": "\n\n".join(lines).encode(),
    }[spelling]
    write_folder(files, tmp_path / "manual")
    prepare("visa", tmp_path / "manual", tmp_path)
    assert_prepared(visa(), tmp_path)


def test_the_split_of_visa_names_no_file_outside(tmp_path):
    """What is not in the archive is not there, whatever the table says."""
    (tmp_path / "secret.JPG").write_bytes(draw_image("a.JPG", (16, 16)))
    rows = [line.split(",") for line in visa().files["split_csv/1cls.csv"].decode().split()]
    for path in ("../secret.JPG", "../../secret.JPG", str(tmp_path / "secret.JPG")):
        rows.append(["candle", "test", "normal", path, ""])
    files = {**visa().files, "split_csv/1cls.csv": split_table(rows[1:])}
    write_folder(files, tmp_path / "manual/VisA")
    prepare("visa", tmp_path / "manual", tmp_path)
    assert_prepared(visa(), tmp_path)


def test_the_split_of_visa_decides_what_is_trained_on(tmp_path):
    """Good images that it moves to test are tested on."""
    table = visa().files["split_csv/1cls.csv"]
    path = b"pcb1/Data/Images/Normal/0003.JPG"
    moved = table.replace(b"train,normal," + path, b"test,normal," + path)
    assert moved != table
    write_folder({**visa().files, "split_csv/1cls.csv": moved}, tmp_path / "manual")
    prepare("visa", tmp_path / "manual", tmp_path)
    splits = {r.path: r.split for r in drawn_records("visa", tmp_path)}
    expected = {d.path: d.split for d in visa().expected}
    assert splits == expected | {path.decode(): "test"}


# Real images.


def compare_with_folder(folder, root, categories):
    """Every prepared record against the reader of folders; returns how many."""
    listed, dataset = folder_dataset(root, categories), prepared_dataset(folder)
    assert dataset.train_fingerprint == listed.train_fingerprint
    for ours, theirs in ((dataset.train, listed.train), (dataset.test, listed.test)):
        ours = sorted(ours, key=lambda r: r.image.path)
        theirs = sorted(theirs, key=lambda r: str(r.image))
        assert [r.key for r in ours] == [r.key for r in theirs]
        for ours_, theirs_ in zip(ours, theirs, strict=True):
            assert str(theirs_.image).endswith(ours_.image.path)
            assert ours_.image.read_bytes() == theirs_.image.read_bytes()
            assert ours_.is_anomalous == theirs_.is_anomalous
            if ours_.is_anomalous:
                mask = read_mask(theirs_.mask) if theirs_.mask else False
                np.testing.assert_array_equal(read_mask(ours_.mask) ^ mask, False)
    return len(listed.train) + len(listed.test)


def test_real_products_come_out_as_they_lie_in_their_folder(
    tmp_path, real_products, caplog
):
    (tmp_path / "manual").mkdir()
    for name in ("bottle", "grid", "pill"):
        (tmp_path / "manual" / name).symlink_to(real_products / name)
    folder = prepare("mvtec_ad", tmp_path / "manual", tmp_path)
    (warning,) = [line for line in sentences(caplog) if "expected" in line]
    for words in ("grid", "264 training, 21 good and 57", "240 training, 24 good and 57"):
        assert words in warning
    assert compare_with_folder(folder, real_products, ("bottle", "grid", "pill")) == 1047


@pytest.mark.slow
def test_real_products_of_any_kind_come_out_of_a_builder_of_their_own(
    tmp_path, real_products, caplog, monkeypatch
):
    counts = {
        "bottle": Counts(209, 20, 63),
        "grid": Counts(240, 24, 57),
        "magnetic_tile": Counts(397, 79, 388),
        "pill": Counts(267, 26, 141),
    }
    builder = products_builder("products", counts)
    monkeypatch.setitem(tfds_builders.BUILDERS, "products", builder)
    folder = prepare("products", real_products, tmp_path)
    assert sentences(caplog) == []
    number = compare_with_folder(folder, real_products, tuple(counts))
    assert number == sum(map(sum, counts.values()))
