"""Features that are stale, half stored or damaged: encoded anew, and never used."""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import transformers
from feature_helpers import (
    IMAGES,
    assert_fresh,
    cache_of,
    chunks,
    encoded,
    opened,
    stored_bytes,
    train,
    with_settings,
)
from PIL import Image
from run_helpers import assert_bitwise_equal, changed

from harmoniad_jax.errors import UserError
from harmoniad_jax.features import encode as encode_module
from harmoniad_jax.features import reading
from harmoniad_jax.features.reading import ImageReader
from harmoniad_jax.features.store import FeatureCache
from harmoniad_jax.run.run import prepare_run

# Never a stale one.


def test_an_image_that_was_edited_is_encoded_anew(run, plain_config, photos, log):
    """In place: its name, size and date are as they were."""
    config = changed(plain_config, "data", root=str(photos))
    run = dataclasses.replace(run, dataset=prepare_run(config).dataset)
    before = stored_bytes(opened(run))
    log()
    path = run.dataset.train[3].image
    status = path.stat()
    pixels = np.asarray(Image.open(path)).copy()
    pixels[:24] = 255 - pixels[:24]
    Image.fromarray(pixels).save(path, compress_level=0)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    data = opened(run)
    assert encoded(log) == 1
    assert_fresh(run, data)
    after = stored_bytes(data)
    assert len(before.keys() & after.keys()) == IMAGES - 1

    # And back again: nothing is lost.
    shutil.copyfile(Path(plain_config.data.root) / path.relative_to(photos), path)
    assert stored_bytes(opened(run)) == before
    assert encoded(log) == 0


def test_an_image_that_changes_before_it_is_encoded_is_not_taken_for_the_old_one(
    run, plain_config, photos, monkeypatch
):
    """Between reading it for its hash and encoding it may lie an hour."""
    config = changed(plain_config, "data", root=str(photos))
    run = dataclasses.replace(run, dataset=prepare_run(config).dataset)
    path = run.dataset.train[3].image
    original = path.read_bytes()
    read = ImageReader.read

    def read_then_edit(reader, *files):
        read(reader, *files)
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)

    monkeypatch.setattr(ImageReader, "read", read_then_edit)
    monkeypatch.setattr(reading, "WAITING_BYTES", 0)
    with contextlib.suppress(UserError):
        opened(run)
    monkeypatch.undo()
    path.write_bytes(original)
    assert_fresh(run, opened(run))


def test_images_that_change_places_are_read_where_they_are(run, plain_config, photos, log):
    config = changed(plain_config, "data", root=str(photos))
    run = dataclasses.replace(run, dataset=prepare_run(config).dataset)
    opened(run)
    log()
    first, second = (record.image for record in run.dataset.train[:2])
    contents = first.read_bytes(), second.read_bytes()
    second.write_bytes(contents[0])
    first.write_bytes(contents[1])
    data = opened(run)
    assert encoded(log) == 0
    assert_fresh(run, data)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("encoder", {"untrained": {"seed": 1}}),
        ("encoder", {"untrained": {"heads": 4}}),
        ("encoder", {"groups": 1}),
        ("encoder", {"dtype": "bfloat16"}),
        ("data", {"image_side": 48}),
    ],
    ids=lambda value: str(value),
)
def test_what_another_encoder_gave_is_never_used(run, plain_config, log, section, values):
    opened(run)
    log()
    if "untrained" in values:
        untrained = dataclasses.replace(
            plain_config.encoder.untrained, **values["untrained"]
        )
        values = {"untrained": untrained}
    other = prepare_run(changed(plain_config, section, **values))
    cache = run.config.cache
    other = with_settings(other, "cache", **dataclasses.asdict(cache))
    data = opened(other)
    assert encoded(log) == IMAGES
    # bfloat16 has 8 bits, and each batch rounds by itself.
    tolerance = 0.1 if other.config.encoder.dtype == "bfloat16" else 1e-5
    assert_fresh(other, data, tolerance=tolerance)
    # Nor did the first one's go.
    assert_fresh(run, opened(run))
    assert encoded(log) == 0


def test_features_of_other_blocks_are_never_used(run, plain_config, log):
    """Though they have the same shape."""
    for taps in ((1,), (2,), (1, 2)):
        part = prepare_run(changed(plain_config, "encoder", taps=taps, groups=1))
        part = with_settings(part, "cache", **dataclasses.asdict(run.config.cache))
        data = opened(part)
        assert encoded(log) == IMAGES
        assert_fresh(part, data)


VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
    "image_size": 32,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small encoder in a folder, as it is downloaded."""
    folder = tmp_path_factory.mktemp("encoder")
    model = transformers.FlaxCLIPVisionModel(transformers.CLIPVisionConfig(**VISION))
    model.save_pretrained(folder)
    settings = {"image_mean": 3 * [0.5], "image_std": 3 * [0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"hidden_act": "relu"}),
        ("config.json", {"num_attention_heads": 4}),
        ("config.json", {"layer_norm_eps": 0.5}),
        ("preprocessor_config.json", {"image_mean": [0.1, 0.2, 0.3]}),
    ],
    ids=lambda value: str(value),
)
def test_a_checkpoint_that_was_set_otherwise_is_another_encoder(
    run, plain_config, checkpoint, tmp_path, log, file, values
):
    """The weights are the same, but not what is done with them."""
    folder = tmp_path / "encoder"
    shutil.copytree(checkpoint, folder)

    def prepared():
        part = prepare_run(changed(plain_config, "encoder", name=str(folder)))
        return with_settings(part, "cache", **dataclasses.asdict(run.config.cache))

    opened(prepared())
    assert encoded(log) == IMAGES
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    other = prepared()
    data = opened(other)
    assert encoded(log) == IMAGES
    assert_fresh(other, data)


def test_another_program_uses_nothing_of_this_one(run, log, monkeypatch):
    """A release that scales images otherwise must not meet features of this one."""
    opened(run)
    log()
    monkeypatch.setattr(encode_module, "PROGRAM", encode_module.PROGRAM[::-1])
    opened(run)
    assert encoded(log) == IMAGES


def test_the_program_is_all_files_that_make_features(tmp_path):
    """Whatever family of encoders comes, and in whatever file."""
    *others, encoders = encode_module.PROGRAM
    assert [path.name for path in others] == [
        "deep.py",
        "images.py",
        "levels.py",
        "preprocess.py",
    ]
    files = {path.name for path in encoders.iterdir()}
    assert {"encoder.py", "clip.py", "dinov2.py", "attention.py"} <= files

    copy = tmp_path / "encoders"
    shutil.copytree(encoders, copy, ignore=shutil.ignore_patterns("__pycache__"))
    hashes = [encode_module._hash_of_program(encode_module.PROGRAM)]
    assert encode_module._hash_of_program((*others, copy)) == hashes[0]
    # What is compiled of the text is not part of it.
    (copy / "__pycache__").mkdir()
    (copy / "__pycache__" / "clip.pyc").write_bytes(b"compiled")
    assert encode_module._hash_of_program((*others, copy)) == hashes[0]
    for path in [*sorted(copy.glob("*.py")), copy / "another.py", copy / "more/deep.py"]:
        path.parent.mkdir(exist_ok=True)
        with path.open("a") as file:
            file.write("# changed\n")
        hashes.append(encode_module._hash_of_program((*others, copy)))
    assert len(set(hashes)) == len(hashes)


def test_the_version_of_a_library_is_part_of_the_setting(run, log, monkeypatch):
    opened(run)
    log()
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata,
        "version",
        lambda name: "4.0.0" if name == "transformers" else version(name),
    )
    opened(run)
    assert encoded(log) == IMAGES


# Interrupted.


@pytest.mark.parametrize(("chunk", "done"), [(8, 2), (3, 1), (5, 3)])
def test_an_interrupted_fill_goes_on_to_the_same_bits(run, log, monkeypatch, chunk, done):
    """Also where the rest is batched otherwise than it would have been."""
    undisturbed = stored_bytes(opened(run))
    shutil.rmtree(cache_of(run))
    monkeypatch.setattr(encode_module, "CHUNK_IMAGES", chunk)
    written = []
    write = FeatureCache.write

    def write_some(self, images, arrays):
        if len(written) == done:
            raise KeyboardInterrupt
        write(self, images, arrays)
        written.append(images)

    monkeypatch.setattr(FeatureCache, "write", write_some)
    with pytest.raises(KeyboardInterrupt):
        opened(run)
    monkeypatch.setattr(FeatureCache, "write", write)
    log()
    assert len(chunks(run)) == done
    data = opened(run)
    assert encoded(log) == IMAGES - done * chunk
    assert stored_bytes(data) == undisturbed


def test_training_after_an_interrupted_fill_is_undisturbed(run, monkeypatch):
    losses, state = train(run)
    shutil.rmtree(cache_of(run))
    encode = encode_module._features

    def stop_after(*arguments):
        for index, row in enumerate(encode(*arguments)):
            if index == 13:
                raise KeyboardInterrupt
            yield row

    monkeypatch.setattr(encode_module, "CHUNK_IMAGES", 6)
    monkeypatch.setattr(encode_module, "_features", stop_after)
    with pytest.raises(KeyboardInterrupt):
        train(run)
    assert len(chunks(run)) == 2
    monkeypatch.undo()
    assert_bitwise_equal(train(run), (losses, state))


def test_a_damaged_chunk_is_encoded_again(run, log):
    before = stored_bytes(opened(run))
    (path,) = chunks(run)
    path.write_bytes(path.read_bytes()[:-1])
    log()
    data = opened(run)
    messages = log()
    assert any("damaged" in message and str(path) in message for message in messages)
    assert any(message.endswith(f"{IMAGES} are to be encoded") for message in messages)
    assert stored_bytes(data) == before


def test_features_that_are_damaged_stop_training_with_the_files_name(run):
    opened(run)
    (path,) = chunks(run)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(path))):
        train(run)
    # As the message says.
    path.unlink()
    train(run)
