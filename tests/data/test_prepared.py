"""A prepared data set is the folder that it was prepared from, read another way."""

import hashlib
import json
import os
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from harmoniad_jax.data.folder import folder_dataset
from harmoniad_jax.data.images import read_image
from harmoniad_jax.data.mask_files import read_mask
from harmoniad_jax.data.prepared import prepared_dataset
from harmoniad_jax.data.records import join
from harmoniad_jax.errors import UserError
from tfds_builders import BUILDERS, anomaly_builder
from tfds_builders.anomaly_builder import Counts
from tfds_builders.mvtec_ad import mvtec_ad_dataset_builder
from tfds_builders.prepare import prepare


def products_builder(root):
    """A builder of the drawn products, which are in the layout of MVTec AD."""
    names = sorted(path.name for path in root.iterdir() if path.is_dir())

    class Builder(mvtec_ad_dataset_builder.Builder, skip_registration=True):
        COUNTS = dict.fromkeys(names, Counts(8, 2, 0))
        # TFDS looks for a data set's description in its module.
        __module__ = mvtec_ad_dataset_builder.__name__

    Builder.name = "products"
    return Builder


@pytest.fixture(scope="module")
def prepared(products, tmp_path_factory):
    """The folder of the drawn products, prepared in several shards; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUILDERS, "products", products_builder(products))
        patch.setattr(anomaly_builder, "SHARD_BYTES", 20_000)
        return prepare("products", products, tmp_path_factory.mktemp("data"))


@pytest.fixture
def copy(prepared, tmp_path):
    """One that may be damaged."""
    return Path(shutil.copytree(prepared, tmp_path / "products/1.0.0"))


def message_of(folder):
    """What is said of a folder that is no prepared data set: one line."""
    with pytest.raises(UserError) as error:
        prepared_dataset(folder)
    message = str(error.value)
    assert len(message.splitlines()) == 1, message
    assert str(folder) in message
    assert "tfds_builders.prepare" in message
    return message


def test_every_record_is_that_of_the_folder(products, prepared):
    ours, theirs = prepared_dataset(prepared), folder_dataset(products)
    assert ours.categories == theirs.categories
    assert ours.train_fingerprint == theirs.train_fingerprint
    for split in ("train", "test"):
        records = list(zip(getattr(ours, split), getattr(theirs, split), strict=True))
        assert len(records) > 10
        for our, their in records:
            assert our.key == their.key
            assert (our.category, our.defect) == (their.category, their.defect)
            assert our.is_anomalous == their.is_anomalous
            assert our.image.name == their.image.name
            content = their.image.read_bytes()
            assert our.image.read_bytes() == content
            assert our.sha256 == hashlib.sha256(content).hexdigest()
            np.testing.assert_array_equal(read_image(our.image), read_image(their.image))
            assert (our.mask is None) == (their.mask is None)
            if our.mask is not None:
                np.testing.assert_array_equal(read_mask(our.mask), read_mask(their.mask))
                assert our.mask.read_bytes() != content


def test_it_is_in_several_shards(prepared):
    assert len(list(prepared.glob("*train*"))) > 2


def test_images_and_masks_say_what_they_are(prepared):
    record = next(r for r in prepared_dataset(prepared).test if r.is_anomalous)
    assert str(record.image) == f"the image of {record.image.path}"
    assert str(record.mask) == f"the mask of {record.image.path}"
    assert record.image.path.startswith(f"{record.category}/test/{record.defect}/")


def test_a_lost_mask_is_black_and_the_label_stays(products, tmp_path, monkeypatch):
    """As in BTAD; in a folder it would be None, which scores as black too."""
    root = tmp_path / "products"
    shutil.copytree(products, root)
    (lost, *_) = sorted(root.glob("*/ground_truth/*/*"))
    lost.unlink()
    monkeypatch.setitem(BUILDERS, "products", products_builder(root))
    dataset = prepared_dataset(prepare("products", root, tmp_path / "data"))
    listed = folder_dataset(root)
    (their,) = [r for r in listed.test if r.is_anomalous and r.mask is None]
    (our,) = [r for r in dataset.test if r.key == their.key]
    assert our.is_anomalous
    assert our.mask is None or not read_mask(our.mask).any()


def test_a_data_set_may_have_no_test_images(products, tmp_path, monkeypatch):
    root = tmp_path / "products"
    for folder in products.glob("*/train"):
        shutil.copytree(folder, root / folder.parent.name / "train")
    monkeypatch.setitem(BUILDERS, "products", products_builder(root))
    dataset = prepared_dataset(prepare("products", root, tmp_path / "data"))
    assert (len(dataset.train), list(dataset.test)) == (24, [])
    assert dataset.train_fingerprint == folder_dataset(products).train_fingerprint


def test_records_are_read_in_any_order_and_by_several_threads(prepared):
    dataset = prepared_dataset(prepared)
    records = random.Random(0).choices([*dataset.train, *dataset.test], k=300)
    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(lambda record: record.image.read_bytes(), records))
    for record, content in zip(records, contents, strict=True):
        assert hashlib.sha256(content).hexdigest() == record.sha256


def test_it_can_be_moved(prepared, copy, monkeypatch):
    before = prepared_dataset(prepared)
    moved = copy.rename(copy.parents[1] / "elsewhere")
    monkeypatch.chdir(moved.parent)
    for folder in (moved, Path("elsewhere")):
        dataset = prepared_dataset(folder)
        assert dataset.train_fingerprint == before.train_fingerprint
        assert dataset.test[3].image.read_bytes() == before.test[3].image.read_bytes()


def test_categories_are_selected_and_data_sets_are_joined(products, prepared):
    dataset = prepared_dataset(prepared)
    name = dataset.categories[1]
    part = dataset.select((name,))
    assert part.categories == (name,)
    assert {record.category for record in part.test} == {name}
    both = join({"drawn": dataset, "folder": folder_dataset(products)})
    assert both.categories == tuple(
        f"{source}/{c}" for source in ("drawn", "folder") for c in dataset.categories
    )
    for record, other in zip(both.train, [*dataset.train, *dataset.train], strict=True):
        assert record.image.read_bytes() == other.image.read_bytes()


def test_two_readings_of_it_are_equal(prepared):
    """Records are compared by what they are, not by who reads them."""
    assert prepared_dataset(prepared) == prepared_dataset(prepared)
    train = prepared_dataset(prepared).train
    assert len({(r.image, r.mask) for r in train}) == len(train)


# What is no prepared data set.


@pytest.mark.parametrize("what", ["nothing", "empty", "file", "images"])
def test_what_was_never_prepared(tmp_path, products, what):
    folder = tmp_path / "1.0.0"
    if what == "empty":
        folder.mkdir()
    elif what == "file":
        folder.write_text("")
    elif what == "images":
        shutil.copytree(products, folder)
    message_of(folder)


def test_the_folder_above_the_version_is_none(copy):
    message_of(copy.parent)


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json", "metadata.json"])
@pytest.mark.parametrize("damage", ["lost", "empty", "cut", "other", "binary", "list"])
def test_a_damaged_description(copy, file, damage):
    path = copy / file
    content = path.read_bytes()
    path.unlink()
    if damage != "lost":
        path.write_bytes(
            {
                "empty": b"",
                "cut": content[: len(content) // 2],
                "other": b'{"other": 1}',
                "binary": bytes(range(256)),
                "list": b"[]",
            }[damage]
        )
    message_of(copy)


@pytest.mark.parametrize("damage", ["row", "column", "split", "ragged"])
def test_a_list_that_is_not_that_of_the_images(copy, damage):
    path = copy / "metadata.json"
    lists = json.loads(path.read_text())
    if damage == "split":
        del lists["test"]
    elif damage == "column":
        del lists["test"]["sha256"]
    elif damage == "ragged":
        lists["train"]["category"].pop()
    else:
        for column in lists["train"].values():
            column.pop()
    path.write_text(json.dumps(lists))
    message_of(copy)


@pytest.mark.parametrize("damage", ["lost", "empty", "cut"])
@pytest.mark.parametrize("number", [0, 1, -1])
def test_a_damaged_shard(copy, damage, number):
    """At once, or when its images are read: never other images, nor a traceback."""
    path = sorted(copy.glob("*-train.array_record*"))[number]
    content = path.read_bytes()
    path.unlink()
    if damage != "lost":
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with pytest.raises(UserError) as error:
        for record in prepared_dataset(copy).train:
            assert hashlib.sha256(record.image.read_bytes()).hexdigest() == record.sha256
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert "--overwrite" in message


def test_spoilt_bytes_of_a_shard_are_noticed(copy):
    path = sorted(copy.glob("*-train.array_record*"))[1]
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(content), 20):
        spoilt = bytearray(content)
        spoilt[position] ^= 0xFF
        path.write_bytes(spoilt)
        try:
            for record in prepared_dataset(copy).train:
                data = record.image.read_bytes()
                assert hashlib.sha256(data).hexdigest() == record.sha256, position
        except UserError as error:
            assert len(str(error).splitlines()) == 1


class Numbers(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set of another kind."""

    name = "numbers"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, **kwargs):
        super().__init__(file_format="array_record", **kwargs)

    def _info(self):
        features = tfds.features.FeaturesDict({"number": tfds.features.Scalar(np.int64)})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": ((i, {"number": i}) for i in range(3))}

    def _generate_examples(self):
        raise NotImplementedError


def test_a_data_set_of_another_kind(tmp_path):
    builder = Numbers(data_dir=str(tmp_path))
    builder.download_and_prepare()
    message_of(Path(builder.data_dir))


def test_a_folder_that_may_not_be_read(copy):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (copy / "metadata.json").chmod(0)
    message_of(copy)
