"""The data sets with validation images, several masks, several views or several domains."""

import json
import zipfile

import numpy as np
import pytest
from later_miniatures import (
    mpdd,
    mvtec_ad_2,
    mvtec_loco,
    real_iad,
    records_with_extras,
    robust_ad,
)
from miniatures import assert_same, encode, error_of, write_folder, write_tar, write_zip
from test_builders_deviations import sentences

import tfds_builders
from tfds_builders.prepare import prepare

DRAWN = {
    "mpdd": mpdd,
    "mvtec_ad_2": mvtec_ad_2,
    "mvtec_loco": lambda: mvtec_loco()[0],
    "real_iad": lambda: real_iad()[0],
    "robust_ad": robust_ad,
}
ARCHIVES = {
    "mpdd": "MPDD.zip",
    "mvtec_ad_2": "mvtec_ad_2.tar.gz",
    "mvtec_loco": "mvtec_loco_anomaly_detection.tar.xz",
    "robust_ad": "RobustAD.zip",
}


def objects(files, folder, top="", below=""):
    """An archive for each object, as MVTec AD 2 and Real-IAD have."""
    for name in {path.partition("/")[0] for path in files if "/" in path}:
        part = {path: data for path, data in files.items() if path.startswith(f"{name}/")}
        write = write_zip if below else write_tar
        write(part, folder / below / f"{name}{'.zip' if below else '.tar.gz'}", top)


def write(name, form, manual):
    """Writes a miniature into a manual directory."""
    miniature = DRAWN[name]()
    if name == "real_iad":
        split_files = real_iad()[2]
        if form == "archive":
            write_zip(split_files, manual / "realiad_jsons.zip", "realiad_jsons/")
            objects(miniature.files, manual, below="realiad_1024")
        else:
            write_folder(split_files, manual / "Real-IAD")
            write_folder(miniature.files, manual / "Real-IAD/realiad_1024")
    elif form == "folder":
        write_folder(miniature.files, manual / miniature.top)
    elif form == "objects":
        objects(miniature.files, manual, "a/")
    else:
        path = manual / ARCHIVES[name]
        pack = write_zip if path.suffix == ".zip" else write_tar
        pack(miniature.files, path, f"{miniature.top}/")
    return miniature


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, form) for name in DRAWN for form in ("archive", "folder")),
        ("mvtec_ad_2", "objects"),
    ],
)
def test_every_record_is_as_drawn(tmp_path, name, form):
    miniature = write(name, form, tmp_path / "manual")
    assert prepare(name, tmp_path / "manual", tmp_path) == tmp_path / name / "1.0.0"
    records, extras, labels = records_with_extras(name, tmp_path)
    assert_same(records, miniature.expected)
    codes = {"good": 0, "unlabelled": -1}
    assert labels == {d.path: codes.get(d.defect, 1) for d in miniature.expected}
    if name == "mvtec_loco":
        wanted = mvtec_loco()[1]
        assert extras.masks.keys() == wanted.masks.keys()
        for path, masks in wanted.masks.items():
            np.testing.assert_array_equal(extras.masks[path], masks, path)
            assert extras.saturations[path] == pytest.approx(wanted.saturations[path])
    if name == "real_iad":
        assert extras.sample == real_iad()[1].sample


@pytest.mark.parametrize("name", DRAWN)
def test_what_lacks_is_said(tmp_path, caplog, name):
    """Counts that are published, objects, masks, images of a split file."""
    miniature = write(name, "folder", tmp_path / "manual")
    prepare(name, tmp_path / "manual", tmp_path)
    builder, lines = tfds_builders.BUILDERS[name], sentences(caplog)
    there = {d.category for d in miniature.expected}
    (absent,) = [line for line in lines if "not there" in line]
    absent = absent.partition("not there: ")[2].split(", ")
    assert absent == [c for c in builder.COUNTS if c not in there]
    counted = [line for line in lines if "expected" in line]
    assert len(counted) == sum(builder.COUNTS[c] is not None for c in there)
    lost = {"mvtec_loco": 2, "robust_ad": 6}.get(name)
    assert any(f"{lost} defective images have no mask" in x for x in lines) == bool(lost)


def test_the_counts_say_how_many_are_for_validation(tmp_path, caplog):
    write("mvtec_ad_2", "folder", tmp_path / "manual")
    prepare("mvtec_ad_2", tmp_path / "manual", tmp_path)
    assert (
        "mvtec_ad_2: expected 412 training, 46 validation, 72 good and 90 defective images "
        "of can, found 6 training, 3 validation, 2 good and 3 defective"
    ) in sentences(caplog)


# MVTec LOCO AD.


def without(name):
    return lambda files: files.pop(name)


def loco_with(change, tmp_path):
    files = dict(mvtec_loco()[0].files)
    change(files)
    write_folder(files, tmp_path / "manual/loco")
    return error_of("mvtec_loco", tmp_path / "manual", tmp_path / "data")


TRUTH = "pushpins/ground_truth/logical_anomalies/001/000.png"


def truth(pixels):
    return lambda files: files.update({TRUTH: encode(np.uint8(pixels), "PNG")})


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (without("pushpins/defects_config.json"), ("pushpins", "defects_config.json")),
        (
            lambda files: files.update({"pushpins/defects_config.json": b"[{]"}),
            ("defects_config.json", "saturation_threshold"),
        ),
        (
            lambda files: files.update({"pushpins/defects_config.json": b"[]"}),
            ("defects_config.json", "saturation_threshold"),
        ),
        (truth(np.eye(14, 22)), (TRUTH, "[1]", "251, 252, 253, 255")),
        (truth(np.tile([251, 252], (14, 11))), (TRUTH, "[251, 252]")),
        (truth(np.full((7, 11), 252)), (TRUTH, "differ in size")),
        (truth(np.full((7, 7), 252)), (TRUTH, "aspect ratio")),
    ],
)
def test_masks_without_a_meaning_are_refused(tmp_path, change, parts):
    message = loco_with(change, tmp_path)
    for part in parts:
        assert part in message


# Real-IAD.


def real_iad_with(change, tmp_path, name="audiojack"):
    miniature, _, split_files = real_iad()
    table = json.loads(split_files[f"realiad_jsons/{name}.json"])
    changed = dict(split_files) | {
        f"realiad_jsons/{name}.json": json.dumps(change(table) or table).encode()
    }
    write_folder(changed, tmp_path / "manual")
    write_folder(miniature.files, tmp_path / "manual/realiad_512")
    return error_of("real_iad", tmp_path / "manual", tmp_path / "data")


def test_sides_of_one_product_are_never_in_train_and_test(tmp_path):
    message = real_iad_with(lambda t: t["test"].append(t["train"].pop()), tmp_path)
    for part in ("'OK/S0004'", "audiojack", "in train and in test"):
        assert part in message


def test_defective_images_are_never_trained_on(tmp_path):
    message = real_iad_with(lambda t: t["train"].append(t["test"].pop()), tmp_path)
    assert "trains on the defective 'NG/HS/S0001/" in message


@pytest.mark.parametrize("table", [{}, [], {"meta": {}, "train": [], "test": []}, "text"])
def test_what_is_no_split_file_is_refused(tmp_path, table):
    message = real_iad_with(lambda _: table or {"a": 1}, tmp_path)
    assert "realiad_jsons/audiojack.json is not a split file" in message


def test_without_a_split_file_nothing_is_prepared(tmp_path):
    miniature, _, split_files = real_iad()
    write_folder(miniature.files, tmp_path / "manual/realiad_256")
    message = error_of("real_iad", tmp_path / "manual", tmp_path / "data")
    assert "realiad_jsons is not there" in message
    one = {name: data for name, data in split_files.items() if "toy_brick" in name}
    write_folder(one, tmp_path / "manual")
    message = error_of("real_iad", tmp_path / "manual", tmp_path / "data")
    assert "there is no realiad_jsons/audiojack.json" in message


def test_a_smaller_copy_of_the_images_is_not_mixed_in(tmp_path):
    """All of an object are of one resolution."""
    miniature, _, split_files = real_iad()
    write_folder(split_files, tmp_path / "manual")
    write_folder(miniature.files, tmp_path / "manual/realiad_1024")
    spoilt = {name: b"spoilt" for name in miniature.files}
    write_folder(spoilt, tmp_path / "manual/realiad_256")
    prepare("real_iad", tmp_path / "manual", tmp_path)
    assert_same(records_with_extras("real_iad", tmp_path)[0], miniature.expected)


def test_images_that_the_split_lists_and_are_not_there_are_counted(tmp_path, caplog):
    miniature, _, split_files = real_iad()
    files = dict(miniature.files)
    del files[miniature.expected[0].path]
    write_folder(split_files, tmp_path / "manual")
    write_folder(files, tmp_path / "manual/realiad_1024")
    prepare("real_iad", tmp_path / "manual", tmp_path)
    (line,) = [line for line in sentences(caplog) if "expected" in line]
    assert line == "real_iad: expected 16 images of audiojack, found 15"


# RobustAD.


@pytest.mark.parametrize(
    "row",
    [
        {"file_name": "normal/0.jpg", "label": 1},
        {"file_name": "strange/0.jpg", "label": 0},
        {"file_name": "normal/0.jpg"},
        ["normal/0.jpg"],
    ],
)
def test_a_label_that_is_not_that_of_the_folder_is_refused(tmp_path, row):
    files = dict(robust_ad().files)
    table = "PCB/pcb_data_dir_test1/metadata.jsonl"
    files[table] += json.dumps(row).encode()
    write_folder(files, tmp_path / "manual/RobustAD")
    message = error_of("robust_ad", tmp_path / "manual", tmp_path / "data")
    assert table in message


def test_published_counts_add_up_to_the_published_totals():
    totals = {
        name: np.sum(list(tfds_builders.BUILDERS[name].COUNTS.values()), axis=0).tolist()
        for name in ("mpdd", "mvtec_ad_2", "mvtec_loco")
    }
    assert totals == {
        "mpdd": [888, 176, 282, 0],
        "mvtec_ad_2": [2528, 379, 705, 302],
        "mvtec_loco": [1778, 575, 993, 305],
    }
    assert len(tfds_builders.BUILDERS["real_iad"].COUNTS) == 30


def test_hidden_and_hostile_names_of_the_new_archives_are_refused(tmp_path):
    """They are read with the same reader as the others."""
    path = tmp_path / "manual" / "MPDD.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../tubes/train/good/000.png", b"")
    assert "is not safe" in error_of("mpdd", path.parent, tmp_path / "data")
