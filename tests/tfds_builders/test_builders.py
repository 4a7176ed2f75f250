"""Every record of every public data set, from a folder and from every archive."""

import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from miniatures import (
    MINIATURES,
    Drawn,
    assert_prepared,
    assert_same,
    drawn_records,
    visa,
    write_folder,
    write_tar,
    write_zip,
)
from PIL import Image

import tfds_builders
from harmoniad_jax.data.images import read_image
from harmoniad_jax.data.mask_files import read_mask
from harmoniad_jax.data.prepared import prepared_dataset
from harmoniad_jax.data.sources import PREPARED
from tfds_builders import anomaly_builder
from tfds_builders.mvtec_ad import mvtec_ad_dataset_builder
from tfds_builders.prepare import prepare

ROOT = Path(__file__).parents[2]
CATEGORIES = ("bottle", "grid", "metal_nut")


def by_category(files):
    """The files of each MVTec category, as its own archive has them."""
    return {
        name: {path: content for path, content in files.items() if path.startswith(name)}
        for name in CATEGORIES
    }


def per_category(suffix, top=""):
    def write(miniature, manual):
        for name, files in by_category(miniature.files).items():
            write_tar(files, manual / f"{name}{suffix}", top)

    return write


def whole_tar(file_name, top="", **options):
    return lambda miniature, manual: write_tar(
        miniature.files, manual / file_name, top, **options
    )


def whole_zip(file_name, top="", **options):
    return lambda miniature, manual: write_zip(
        miniature.files, manual / file_name, top, **options
    )


def extracted(place):
    return lambda miniature, manual: write_folder(miniature.files, manual / place)


def linked(miniature, manual):
    """The data are often on another disk."""
    whole = write_folder(miniature.files, manual.parent / "elsewhere" / miniature.top)
    manual.mkdir()
    (manual / miniature.top).symlink_to(whole)


def folder_and_archive(miniature, manual):
    """A category that was extracted and changed is taken as it is in the folder."""
    write_folder(miniature.part("bottle").files, manual / "products")
    spoilt = {
        name: b"spoilt" if "bottle" in name else c for name, c in miniature.files.items()
    }
    write_tar(spoilt, manual / "mvtec_anomaly_detection.tar.xz")


FORMS = {
    "mvtec_ad": {
        "folder": extracted("mvtec_anomaly_detection"),
        "folder of any name": extracted("my products"),
        "manual folder itself": extracted("."),
        "folder by link": linked,
        "tar.xz with top": whole_tar(
            "mvtec_anomaly_detection.tar.xz", "mvtec_anomaly_detection/"
        ),
        "tar.xz": whole_tar("mvtec_anomaly_detection.tar.xz"),
        "tar.xz with dots": whole_tar("mvtec_anomaly_detection.tar.xz", "./"),
        "tar.xz in a folder": whole_tar("mvtec_ad/mvtec_anomaly_detection.tar.xz"),
        "tar of pax": whole_tar(
            "mvtec_anomaly_detection.tar", "é" * 150 + "/", format=tarfile.PAX_FORMAT
        ),
        "tar of gnu": whole_tar(
            "mvtec_anomaly_detection.tar", "é" * 150 + "/", format=tarfile.GNU_FORMAT
        ),
        "tar of ustar": whole_tar(
            "mvtec_anomaly_detection.tar", "a" * 100 + "/", format=tarfile.USTAR_FORMAT
        ),
        "tar.bz2": whole_tar("mvtec_anomaly_detection.tar.bz2"),
        "TAR.GZ": whole_tar("MVTec_Anomaly_Detection.TAR.GZ"),
        "zip": whole_zip("mvtec_anomaly_detection.zip"),
        "class tar.xz": per_category(".tar.xz"),
        "class tar.xz with top": per_category(".tar.xz", "mvtec/"),
        "class tar": per_category(".tar"),
        "class tar.gz": per_category(".tar.gz"),
        "class txz": per_category(".txz"),
        "folder and archive": folder_and_archive,
    },
    "visa": {
        "folder": extracted("VisA"),
        "manual folder itself": extracted("."),
        "folder by link": linked,
        "tar": whole_tar("VisA_20220922.tar"),
        "tar with top": whole_tar("VisA_20220922.tar", "VisA_20220922/"),
        "tar.gz": whole_tar("VisA.tar.gz", "VisA/"),
        "zip": whole_zip("visa.zip", "a/b/"),
    },
    "btad": {
        "folder": extracted("BTech_Dataset_transformed"),
        "manual folder itself": extracted("."),
        "folder by link": linked,
        "zip": whole_zip("btad.zip", "BTech_Dataset_transformed/"),
        "stored zip": whole_zip("btad.zip", compression=zipfile.ZIP_STORED),
        "lzma zip": whole_zip(
            "BTech_Dataset_transformed.zip", compression=zipfile.ZIP_LZMA
        ),
        "tar.xz": whole_tar("btad.tar.xz", "BTech_Dataset_transformed/"),
        "tgz": whole_tar("BTech_Dataset_transformed.tgz"),
    },
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The three miniatures, prepared from folders; for tests that only read."""
    data_dir = tmp_path_factory.mktemp("prepared")
    for name, draw in MINIATURES.items():
        manual = tmp_path_factory.mktemp("manual")
        write_folder(draw().files, manual / draw().top)
        prepare(name, manual, data_dir)
    return data_dir


# What comes out is what was put in.


@pytest.mark.parametrize(
    ("name", "form"), [(name, form) for name, forms in FORMS.items() for form in forms]
)
def test_every_record_is_as_drawn(tmp_path, name, form):
    miniature = MINIATURES[name]()
    FORMS[name][form](miniature, tmp_path / "manual")
    assert prepare(name, tmp_path / "manual", tmp_path) == tmp_path / name / "1.0.0"
    assert_prepared(miniature, tmp_path)


def test_all_builders_are_known_without_tfds():
    assert tuple(tfds_builders.BUILDERS) == PREPARED


@pytest.mark.parametrize("name", MINIATURES)
def test_features_are_declared(prepared, name):
    info = tfds.builder(name, data_dir=prepared).info
    assert info.file_format.value == "array_record"
    assert info.features["category"].names == list(tfds_builders.BUILDERS[name].COUNTS)
    assert info.features["label"].names == ["good", "anomalous"]
    assert sorted(info.features) == sorted(
        ["image", "mask", "category", "label", "defect", "path"]
    )
    assert set(info.splits) == {"train", "test"}
    assert info.supervised_keys == ("image", "label")
    assert info.homepage.startswith("https://")
    assert "CC BY" in info.redistribution_info.license


@pytest.mark.parametrize("name", MINIATURES)
def test_plain_tfds_decodes_what_our_own_reader_decodes(prepared, name):
    """Greyscale, too, has the three channels that the features declare."""
    builder = tfds.builder(name, data_dir=prepared)
    for split in ("train", "test"):
        source = builder.as_data_source(split)
        drawn = [d for d in MINIATURES[name]().expected if d.split == split]
        assert len(source) == len(drawn)
        for row, (*_, image, mask) in zip(source, drawn, strict=True):
            with Image.open(io.BytesIO(image)) as original:
                pixels = np.asarray(original.convert("RGB"))
            np.testing.assert_array_equal(row["image"], pixels)
            np.testing.assert_array_equal(row["mask"], mask[..., None] * np.uint8(255))


@pytest.mark.parametrize("name", MINIATURES)
def test_the_records_of_training_are_those_that_were_drawn(prepared, name):
    dataset = prepared_dataset(prepared / name / "1.0.0")
    records = [("train", r) for r in dataset.train] + [("test", r) for r in dataset.test]
    assert_same(
        [
            Drawn(
                split,
                record.category,
                record.defect,
                record.image.path,
                record.image.read_bytes(),
                np.zeros(read_image(record.image).shape[:2], bool)
                if record.mask is None
                else read_mask(record.mask),
            )
            for split, record in records
        ],
        MINIATURES[name]().expected,
    )
    for _, record in records:
        assert record.is_anomalous == (record.defect != "good")
        assert record.image.name == Path(record.image.path).name


@pytest.mark.parametrize("shard_bytes", [1, 3000, 9000, 1 << 40])
@pytest.mark.parametrize("name", ["mvtec_ad", "btad"])
def test_order_and_index_stay_right_in_many_shards(
    tmp_path, monkeypatch, name, shard_bytes
):
    monkeypatch.setattr(anomaly_builder, "SHARD_BYTES", shard_bytes)
    miniature = MINIATURES[name]()
    write_folder(miniature.files, tmp_path / "manual")
    folder = prepare(name, tmp_path / "manual", tmp_path)
    assert_prepared(miniature, tmp_path)
    dataset = prepared_dataset(folder)
    for split, records in (("train", dataset.train), ("test", dataset.test)):
        drawn = [d for d in miniature.expected if d.split == split]
        assert [r.image.path for r in records] == [d.path for d in drawn]
        assert [r.image.read_bytes() for r in records] == [d.image for d in drawn]
        # Backwards: every record finds its own.
        for record, d in reversed(list(zip(records, drawn, strict=True))):
            assert record.image.read_bytes() == d.image
        lengths = tfds.builder(name, data_dir=tmp_path).info.splits[split].shard_lengths
        start = 0
        for length in lengths:
            sizes = [len(d.image) for d in drawn[start : start + length]]
            assert length == 1 or sum(sizes) <= shard_bytes
            start += length
        assert (len(lengths) == 1) == (sum(len(d.image) for d in drawn) <= shard_bytes)
        assert len(lengths) == len(drawn) or shard_bytes > 1


def test_formats_other_than_array_record_can_be_asked_for():
    builder = mvtec_ad_dataset_builder.Builder(file_format="riegeli")
    assert builder.info.file_format.value == "riegeli"


def test_the_builder_alone_prepares_as_tfds_documents_it(tmp_path):
    write_folder(visa().files, tmp_path / "manual")
    builder = tfds.builder("visa", data_dir=tmp_path / "data")
    config = tfds.download.DownloadConfig(manual_dir=tmp_path / "manual")
    builder.download_and_prepare(download_config=config)
    assert_same(drawn_records("visa", tmp_path / "data"), visa().expected)


NO_TENSORFLOW = """
import sys
import tfds_builders.prepare as command
command.main(["visa", "--manual_dir", sys.argv[1], "--data_dir", sys.argv[2]])
import tensorflow_datasets as tfds
for split in ("train", "test"):
    rows = list(tfds.builder("visa", data_dir=sys.argv[2]).as_data_source(split))
from harmoniad_jax.data.prepared import prepared_dataset
dataset = prepared_dataset(sys.argv[2] + "/visa/1.0.0")
print(len(rows), len(dataset.test), len(dataset.test[0].image.read_bytes()))
assert not {"tensorflow", "apache_beam"} & set(sys.modules)
"""


def test_tensorflow_is_never_imported(tmp_path):
    """Even where there is one: this one ends the process that imports it."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow/__init__.py").write_text("import os\nos._exit(97)\n")
    write_folder(visa().files, tmp_path / "manual")
    done = subprocess.run(
        [sys.executable, "-c", NO_TENSORFLOW, tmp_path / "manual", tmp_path / "data"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    test = [d for d in visa().expected if d.split == "test"]
    counted = f"{len(test)} {len(test)} {len(test[0].image)}"
    assert done.stdout.splitlines()[-1] == counted
