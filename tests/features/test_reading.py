"""Images are read once: hashed, decoded and scaled in one go, and kept for the encoder."""

import collections
import dataclasses
import hashlib
import logging
import os

import numpy as np
import pytest
from PIL import Image
from run_helpers import changed, shallow

from harmoniad_jax.data import images as image_files
from harmoniad_jax.data import preprocess
from harmoniad_jax.data.preprocess import Preprocessor
from harmoniad_jax.data.records import EncodedImage, Record
from harmoniad_jax.errors import UserError
from harmoniad_jax.features import reading
from harmoniad_jax.features.reading import ImageReader
from harmoniad_jax.run.run import prepare_run
from harmoniad_jax.training.loop import train_and_evaluate

PREPROCESSOR = Preprocessor(16)


def drawn(folder, count=6):
    """Records of images that all differ."""
    rng = np.random.default_rng(0)
    records = []
    for index in range(count):
        path = folder / f"{index}.png"
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(path)
        records.append(Record(path, "any"))
    return records


def hash_of(record):
    return hashlib.sha256(record.image.read_bytes()).hexdigest()


@pytest.mark.parametrize("threads", [1, 5])
def test_hashes_are_of_the_files_in_order(tmp_path, threads):
    records = drawn(tmp_path)
    found = ImageReader(PREPROCESSOR, threads).hashed(records)
    assert [record.sha256 for record in found] == [hash_of(record) for record in records]
    assert [record.image for record in found] == [record.image for record in records]


def test_no_images_have_no_hashes():
    assert ImageReader(PREPROCESSOR, 2).hashed([]) == []


def test_a_known_hash_is_used_without_reading(tmp_path):
    known = Record(tmp_path / "absent.png", "any", sha256="7" * 64)
    assert ImageReader(PREPROCESSOR, 2).hashed([known]) == [known]


def test_a_changed_image_has_another_hash_whatever_its_name_and_date(tmp_path):
    (record,) = drawn(tmp_path, 1)
    status = record.image.stat()
    (before,) = ImageReader(PREPROCESSOR, 1).hashed([record])
    pixels = 255 - np.asarray(Image.open(record.image))
    Image.fromarray(pixels).save(record.image)
    os.utime(record.image, ns=(status.st_atime_ns, status.st_mtime_ns))
    (after,) = ImageReader(PREPROCESSOR, 1).hashed([record])
    assert before.sha256 != after.sha256


def test_every_file_that_cannot_be_read_is_named(tmp_path):
    records = drawn(tmp_path, 2)
    absent = Record(tmp_path / "absent.png", "any")
    (tmp_path / "broken.png").write_bytes(b"no image")
    broken = Record(tmp_path / "broken.png", "any")
    (tmp_path / "mask.png").write_bytes(b"")
    reader = ImageReader(PREPROCESSOR, 2)
    with pytest.raises(UserError) as error:
        reader.read([*records, absent], [broken.image], [tmp_path / "mask.png"])
    for name in ("absent.png", "broken.png", "mask.png"):
        assert name in str(error.value)
    # What was good is not lost, and what was mended is read.
    reader.read(records)


def test_what_waits_is_what_the_preprocessor_gives(tmp_path, monkeypatch):
    """Whether it waited in memory, or there was no room and it is read again."""
    records = drawn(tmp_path)
    monkeypatch.setattr(reading, "WAITING_BYTES", 3 * 16 * 16 * 3)
    reader = ImageReader(PREPROCESSOR, 1)
    found = reader.hashed(records)
    for record in records[:3]:
        record.image.rename(record.image.with_suffix(".away"))
    for record, original in zip(found, records, strict=True):
        expected = original.image
        if not expected.exists():
            expected = expected.with_suffix(".away")
        np.testing.assert_array_equal(reader.take(record), PREPROCESSOR.load(expected))
    # Taken, it waits no more; the file is gone too.
    with pytest.raises(UserError, match="cannot be read"):
        reader.take(found[0])


def test_an_image_that_changed_since_it_was_hashed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "WAITING_BYTES", 0)
    (record,) = drawn(tmp_path, 1)
    reader = ImageReader(PREPROCESSOR, 1)
    (found,) = reader.hashed([record])
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(record.image)
    with pytest.raises(UserError, match="changed while the program ran"):
        reader.take(found)


def test_an_image_whose_features_are_stored_is_not_decoded():
    content = b"not an image, but known"
    record = Record(EncodedImage("name", content), "any")
    known = dataclasses.replace(record, sha256=hashlib.sha256(content).hexdigest())
    (found,) = ImageReader(PREPROCESSOR, 1, {known}).hashed([record])
    assert found == known


def test_a_run_reads_and_decodes_each_training_image_once(
    tiny_config, tmp_path, monkeypatch
):
    """And with stored evaluation features every other image as well.

    Held-out images are decoded once more in the end, for what good images look like.
    """
    opened, decoded = collections.Counter(), collections.Counter()
    read_bytes, decode = type(tmp_path).read_bytes, image_files.decode

    def counting_read(path):
        opened[path] += 1
        return read_bytes(path)

    def counting_decode(file, *settings):
        decoded[str(file)] += 1
        return decode(file, *settings)

    monkeypatch.setattr(type(tmp_path), "read_bytes", counting_read)
    for module in (image_files, preprocess):
        monkeypatch.setattr(module, "decode", counting_decode)
    config = changed(shallow(tiny_config), "model", variant="plain")
    config = changed(config, "calibration", holdout=0.4)
    folder = str(tmp_path / "cache")
    config = changed(config, "cache", folder=folder, evaluation=True)
    held_out = {record.image for record in prepare_run(config).dataset.held_out}
    opened.clear(), decoded.clear()
    train_and_evaluate(config, tmp_path / "run")
    images = {p: n for p, n in opened.items() if p.parent.parent.name in ("train", "test")}
    assert len(images) == 3 * (8 + 6)
    assert len(held_out) == 3 * 3
    for path, count in images.items():
        assert count == decoded[str(path)] == 1 + (path in held_out)

    # Again, from what is stored: read for its hash, and not decoded for the network.
    opened.clear(), decoded.clear()
    train_and_evaluate(config, tmp_path / "again")
    for path in images:
        assert opened[path] == 1 + (path in held_out)
    assert decoded == {str(path): 1 for path in held_out}


def test_photos_of_one_part_are_counted(tmp_path, listen):
    take = listen(logging.WARNING)
    records = drawn(tmp_path, 3)
    path = tmp_path / "again.png"
    again = np.array(Image.open(records[1].image))
    again[0, 0] ^= 1
    Image.fromarray(again).save(path)
    for other in (Record(path, "another"), Record(path, records[1].category, "hole")):
        ImageReader(PREPROCESSOR, 2).read([*records, other])
        assert take() == []
    ImageReader(PREPROCESSOR, 2).read([*records, Record(path, records[1].category)])
    (message,) = take()
    assert message.startswith("2 good images are nearly like another one")
    assert records[1].key in message
    assert "again.png" in message
