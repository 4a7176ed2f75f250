"""Training on stored features: each image encoded once, and never a stale one used."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import transformers
from PIL import Image
from run_helpers import assert_bitwise_equal, changed, final_state, overrides

from harmoniad_jax.data.feature_cache import FeatureCache, gigabytes
from harmoniad_jax.data.pipeline import image_loader, training_batches
from harmoniad_jax.errors import UserError
from harmoniad_jax.model.backbone import Encoder, Features
from harmoniad_jax.training import features
from harmoniad_jax.training.checkpoints import Checkpoints
from harmoniad_jax.training.features import training_data
from harmoniad_jax.training.loop import train_and_evaluate
from harmoniad_jax.training.setup import prepare_run
from harmoniad_jax.training.sharding import replicate, shard_batch
from harmoniad_jax.training.state import create_state

ROOT = Path(__file__).parents[2]
IMAGES = 24  # of the drawn products, all different
LOG = re.compile(r"features of (\d+) images, (\S+ GB) in (\S+); (\d+) are to be encoded")


def with_settings(run, section, **values):
    """The same run with other settings of the cache, of the data's order or the length."""
    return dataclasses.replace(run, config=changed(run.config, section, **values))


@pytest.fixture(scope="module")
def plain_config(tiny_config):
    """The smallest network: these tests are about what it is given."""
    return changed(tiny_config, "model", variant="plain", plain_depth=2)


@pytest.fixture(scope="module")
def plain_run(plain_config):
    return prepare_run(plain_config)


@pytest.fixture
def run(plain_run, tmp_path):
    """A run whose cache is empty, float32."""
    folder = str(tmp_path / "cache")
    return with_settings(plain_run, "cache", folder=folder, dtype="float32")


@pytest.fixture
def photos(products, tmp_path):
    """A copy of the images that a test may change."""
    shutil.copytree(products, tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture
def log(caplog):
    """The messages since it was last asked."""
    caplog.set_level(logging.INFO, "harmoniad_jax")
    # The command line's tests, in this process, cut the logger off.
    logger = logging.getLogger("harmoniad_jax")
    propagate, logger.propagate = logger.propagate, True

    def take():
        found = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return found

    yield take
    logger.propagate = propagate


def on_devices(run):
    return replicate(run.mesh, run.encoder.params)


def opened(run):
    return training_data(run, on_devices(run))


@functools.cache
def compiled(function):
    """Once for all tests: the parts of a run stay the same when its settings change."""
    return jax.jit(function)


@functools.cache
def compiled_state(steps, shapes, seed):
    return jax.device_get(
        jax.jit(lambda: create_state(steps.model, steps.optimizer, shapes, seed))()
    )


def initial_state(run):
    """On the host."""
    return compiled_state(run.steps, run.encoder.feature_shapes(1), run.config.train.seed)


def train(run, steps=None):
    """Losses of each step and the final state, on the host; what the loop does."""
    data, encoder_params = opened(run), on_devices(run)
    batches = training_batches(
        data.order,
        data.load,
        batch_size=run.config.train.batch_size,
        threads=run.config.data.threads,
    )
    state = replicate(run.mesh, initial_state(run))
    losses = []
    for _ in range(steps or run.config.train.num_steps):
        batch = shard_batch(run.mesh, next(batches))
        if data.is_encoded:
            state, metrics = compiled(run.steps.update)(state, Features(**batch))
        else:
            state, metrics = compiled(run.steps.train_step)(state, encoder_params, batch)
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state)


def records_of(data, count=IMAGES):
    return [data.order[index] for index in range(count)]


def assert_fresh(run, data, count=IMAGES, tolerance=1e-5):
    """What is read is what the encoder gives for each image as it is now.

    The tolerance is for another batch: its rows may be summed in another order.
    """
    assert data.is_encoded
    records = records_of(data, count)
    load = image_loader(run.encoder.image_side)
    images = np.stack([load(record) for record in records])
    encode = compiled(run.encoder.encode)
    expected = jax.device_get(encode(run.encoder.params, images))
    for row, record in enumerate(records):
        read = data.load(record)
        assert read.keys() == expected._asdict().keys()
        for name, values in expected._asdict().items():
            assert values[row].shape == read[name].shape
            np.testing.assert_allclose(
                read[name], values[row], rtol=tolerance, atol=tolerance
            )


def stored_bytes(data, count=IMAGES):
    """The features of each image, by its hash."""
    return {
        record.sha256: {k: v.tobytes() for k, v in data.load(record).items()}
        for record in records_of(data, count)
    }


def cache_of(run):
    return Path(run.config.cache.folder)


def chunks(run):
    return sorted(cache_of(run).glob("*/*.npy"))


def encoded(log):
    """How many images the only message says are to be encoded."""
    (match,) = filter(None, map(LOG.fullmatch, log()))
    return int(match[4])


@pytest.fixture
def no_encoder(monkeypatch):
    """From the call on, whoever encodes an image fails."""

    def refuse(*_):
        raise AssertionError("an image is encoded")

    return lambda: monkeypatch.setattr(Encoder, "encode", refuse)


# With and without the cache.


@pytest.fixture(scope="module")
def on_images(plain_run):
    """Losses and final state of training without the cache."""
    return train(with_settings(plain_run, "cache", enabled=False))


def test_training_on_stored_features_is_training_on_images(run, on_images):
    """To float32's rounding: features are computed in batches of their own, which may sum
    in another order than the training step does. On CPU, they were found bit-identical."""
    losses, state = train(run)
    expected_losses, expected = on_images
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert_close(state.params, expected.params, 1e-3, run)


def assert_close(params, expected, tolerance, run):
    """The difference of two runs' parameters, as a share of how far they were trained."""
    start = initial_state(run).params

    def distance(first, second):
        squares = jax.tree.map(lambda a, b: np.sum((a - b) ** 2.0), first, second)
        return np.sqrt(sum(jax.tree.leaves(squares)))

    assert distance(params, expected) <= tolerance * distance(expected, start)


def test_float16_trains_alike(run, on_images):
    """Rounding to 11 bits changes a feature by 2^-12 of its value on average, and the
    first loss by less; a few steps of an optimiser of unit steps enlarge it."""
    half = with_settings(run, "cache", dtype="float16")
    losses, state = train(half)
    expected_losses, expected = on_images
    np.testing.assert_allclose(losses[0], expected_losses[0], rtol=2**-11)
    np.testing.assert_allclose(losses, expected_losses, rtol=0.01)
    assert_close(state.params, expected.params, 0.05, run)
    assert losses != expected_losses


def test_float16_is_float32_rounded(run):
    whole, half = opened(run), opened(with_settings(run, "cache", dtype="float16"))
    for record in records_of(whole):
        exact, rounded = whole.load(record), half.load(record)
        for name, values in exact.items():
            assert (values.dtype, rounded[name].dtype) == (np.float32, np.float16)
            np.testing.assert_array_equal(rounded[name], values.astype(np.float16))


def test_stored_features_are_those_of_each_image(run):
    assert_fresh(run, opened(run))


def test_the_order_is_the_same_with_and_without(run):
    for balanced in (False, True):
        same = with_settings(run, "data", class_balanced=balanced)
        with_cache = records_of(opened(same), 60)
        without = records_of(opened(with_settings(same, "cache", enabled=False)), 60)
        assert [r.key for r in with_cache] == [r.key for r in without]


@pytest.mark.parametrize("enabled", [True, False])
def test_threads_change_no_bit(run, enabled):
    run = with_settings(run, "cache", enabled=enabled)
    first, *others = (
        train(with_settings(run, "data", threads=threads)) for threads in (1, 2, 5)
    )
    for other in others:
        assert_bitwise_equal(other, first)


def test_threads_change_no_stored_bit(run):
    found = []
    for threads in (1, 2, 5):
        shutil.rmtree(cache_of(run), ignore_errors=True)
        found.append(stored_bytes(opened(with_settings(run, "data", threads=threads))))
    assert found[0] == found[1] == found[2]


# Each image once.


def test_a_filled_cache_is_trained_from_without_the_encoder(run, log, no_encoder):
    first = train(run)
    assert encoded(log) == IMAGES
    before = {path: path.stat().st_ino for path in chunks(run)}
    no_encoder()
    second = train(run)
    assert encoded(log) == 0
    assert_bitwise_equal(second, first)
    assert {path: path.stat().st_ino for path in chunks(run)} == before


def test_the_size_is_said_before_encoding(run, log):
    opened(run)
    (match,) = filter(None, map(LOG.fullmatch, log()))
    patches, class_token = (np.prod(s.shape) for s in run.encoder.feature_shapes(1))
    size = IMAGES * 4 * (patches + class_token)
    assert int(match[1]) == IMAGES
    stored = sum(path.stat().st_size for path in chunks(run))
    assert size < stored < 1.1 * size
    assert match[2] in (gigabytes(size), gigabytes(stored))
    assert match[3].startswith(str(cache_of(run)))


def test_a_run_of_some_categories_leaves_the_others_to_encode(plain_config, run, log):
    part = prepare_run(changed(plain_config, "data", categories=("tablet",)))
    opened(dataclasses.replace(part, config=changed(run.config, "data")))
    assert encoded(log) == 8
    data = opened(run)
    assert encoded(log) == IMAGES - 8
    assert_fresh(run, data)


def test_images_that_are_the_same_are_encoded_once(plain_config, run, photos, log):
    """Whatever their names are and whatever categories they are in."""
    good = photos / "tablet" / "train" / "good"
    shutil.copyfile(good / "000.png", good / "copy.png")
    shutil.copyfile(good / "001.png", photos / "fabric" / "train" / "good" / "copy.png")
    config = changed(plain_config, "data", root=str(photos))
    copied = dataclasses.replace(run, dataset=prepare_run(config).dataset)
    data = opened(copied)
    assert encoded(log) == IMAGES
    assert_fresh(copied, data, IMAGES + 2)


@pytest.mark.parametrize("balanced", [False, True])
def test_a_run_shorter_than_an_epoch_encodes_what_it_reads(run, log, no_encoder, balanced):
    """Though batches beyond its end are prefetched."""
    run = with_settings(run, "data", threads=5, class_balanced=balanced)
    whole = with_settings(run, "train", num_steps=6)
    short = with_settings(run, "train", num_steps=2)
    found = train(short)
    assert encoded(log) == 16
    no_encoder()
    assert_bitwise_equal(train(short), found)
    assert encoded(log) == 0
    with pytest.raises(AssertionError, match="an image is encoded"):
        opened(whole)
    assert encoded(log) == IMAGES - 16


def test_a_run_that_reads_a_part_of_an_unbalanced_set(plain_config, run, photos, log):
    """Balanced, a small category comes round before a large one was read once."""
    for index in range(2, 8):
        (photos / "tablet" / "train" / "good" / f"{index:03}.png").unlink()
    config = changed(plain_config, "data", root=str(photos), class_balanced=True)
    short = dataclasses.replace(
        run,
        dataset=prepare_run(config).dataset,
        config=changed(changed(run.config, "data", class_balanced=True), "train"),
    )
    short = with_settings(short, "train", num_steps=2)
    losses, _ = train(short)
    # Of 16 rows 5 or 6 are of the tablet, which has 2 images.
    assert encoded(log) in (12, 13)
    assert np.isfinite(losses).all()


def test_a_cache_that_was_removed_is_filled_again(run, log):
    first = train(run)
    shutil.rmtree(cache_of(run))
    log()
    second = train(run)
    assert encoded(log) == IMAGES
    assert_bitwise_equal(second, first)


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
    hashes_of = features.image_hashes

    def hash_then_edit(records, threads):
        hashes = hashes_of(records, threads)
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
        return hashes

    monkeypatch.setattr(features, "image_hashes", hash_then_edit)
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
    monkeypatch.setattr(features, "PROGRAM", features.PROGRAM[::-1])
    opened(run)
    assert encoded(log) == IMAGES


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
    monkeypatch.setattr(features, "CHUNK_IMAGES", chunk)
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
    encode = features._features

    def stop_after(run, params, records):
        for index, row in enumerate(encode(run, params, records)):
            if index == 13:
                raise KeyboardInterrupt
            yield row

    monkeypatch.setattr(features, "CHUNK_IMAGES", 6)
    monkeypatch.setattr(features, "_features", stop_after)
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


# Bounds.


def limited(run, images):
    """With room for so many images, and the headers of their files."""
    patches, class_token = (np.prod(s.shape) for s in run.encoder.feature_shapes(1))
    size = images * (4 * (patches + class_token) + 68) + 200
    return with_settings(run, "cache", max_gigabytes=float(size / 1e9))


def test_what_does_not_fit_is_trained_on_without_the_cache(run, log, on_images):
    small = limited(run, IMAGES - 1)
    found = train(small)
    (warning,) = (text for text in log() if "max_gigabytes" in text)
    assert f"features of {IMAGES} images take " in warning
    assert re.search(r"take \d\.\d\d GB", warning)
    assert "without the cache" in warning
    assert chunks(run) == []
    assert not opened(small).is_encoded
    assert_bitwise_equal(found, on_images)


def test_what_just_fits_is_stored(run):
    data = opened(limited(run, IMAGES))
    assert data.is_encoded
    assert_fresh(run, data)


def test_a_cache_that_is_off_writes_nothing(run):
    off = with_settings(run, "cache", enabled=False)
    assert not opened(off).is_encoded
    train(off, 1)
    assert not cache_of(run).exists()


def test_a_cache_that_is_off_reads_no_image_before_it_is_needed(run, monkeypatch):
    monkeypatch.setattr(Path, "read_bytes", None)
    opened(with_settings(run, "cache", enabled=False))


def test_the_oldest_settings_features_make_room(run, plain_config, log):
    """The folder stays below its bound over many settings."""
    runs = []
    for seed in range(3):
        untrained = dataclasses.replace(plain_config.encoder.untrained, seed=seed)
        part = prepare_run(changed(plain_config, "encoder", untrained=untrained))
        part = with_settings(part, "cache", **dataclasses.asdict(run.config.cache))
        runs.append(limited(part, 2 * IMAGES + 2))
    for seed in (0, 1, 0, 2):
        data = opened(runs[seed])
        assert_fresh(runs[seed], data)
        size = sum(path.stat().st_size for path in chunks(run))
        assert size <= runs[0].config.cache.max_gigabytes * 1e9
        for path in chunks(run):  # an hour passes
            status = path.stat()
            os.utime(path, (status.st_atime, status.st_mtime - 3600))
    log()
    for seed, missing in ((0, 0), (2, 0), (1, IMAGES)):
        opened(runs[seed])
        assert encoded(log) == missing


def test_a_cache_that_cannot_be_written_is_said(run, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    broken = with_settings(run, "cache", folder=str(tmp_path / "file"))
    with pytest.raises(UserError, match="--config.cache.enabled=False"):
        opened(broken)


def test_the_cache_is_in_the_users_own_folder_unless_named(
    plain_run, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    short = with_settings(plain_run, "train", num_steps=1)
    opened(short)
    assert list((tmp_path / "users" / "harmoniad_jax" / "features").glob("*/*.npy"))
    opened(with_settings(short, "cache", folder="~/named"))
    assert list((tmp_path / "home" / "named").glob("*/*.npy"))


def test_prepared_images_are_not_read_for_their_hashes(run, log, no_encoder, monkeypatch):
    """Their data set lists them: with a filled cache no image is read at all."""
    opened(run)
    known = [
        dataclasses.replace(record, sha256=hashed.sha256)
        for record, hashed in zip(run.dataset.train, hashed_in_order(run), strict=True)
    ]
    dataset = dataclasses.replace(run.dataset, train=known)
    monkeypatch.setattr(Path, "read_bytes", None)
    no_encoder()
    log()
    opened(dataclasses.replace(run, dataset=dataset))
    assert encoded(log) == 0


def hashed_in_order(run):
    by_key = {record.key: record for record in records_of(opened(run))}
    return [by_key[record.key] for record in run.dataset.train]


# Whole runs.


def results_of(workdir):
    return (workdir / "results.json").read_bytes()


def log_lines(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def finished(plain_config, tmp_path_factory):
    """A whole run that filled its own cache: config, workdir, results."""
    folder = tmp_path_factory.mktemp("whole")
    config = changed(plain_config, "cache", folder=str(folder / "cache"), dtype="float32")
    config = changed(config, "train", num_steps=4)
    return config, folder / "run", train_and_evaluate(config, folder / "run")


def test_a_finished_run_needs_no_cache(finished, tmp_path):
    config, workdir, results = finished
    away = tmp_path / "nothing"
    elsewhere = changed(config, "cache", folder=str(away))
    again = train_and_evaluate(elsewhere, workdir)
    assert {**again, "config_hash": results["config_hash"]} == results
    assert not away.exists()


def interrupt_after(step, monkeypatch):
    """Stops a run when the checkpoint of a step is on disk."""
    save = Checkpoints.save

    def save_and_stop(self, state, *arguments):
        save(self, state, *arguments)
        if int(state.step) == step:
            self.wait()
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", save_and_stop)


@pytest.mark.parametrize(
    "first",
    [True, pytest.param(False, marks=pytest.mark.slow)],
    ids=["off", "on"],
)
def test_the_cache_may_be_turned_on_or_off_when_a_run_is_continued(
    finished, tmp_path, monkeypatch, first
):
    """The rest is trained on the same images in the same order."""
    config, workdir, _ = finished
    config = changed(config, "cache", folder=str(tmp_path / "cache"), enabled=first)
    interrupt_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train_and_evaluate(config, tmp_path / "run")
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    train_and_evaluate(changed(config, "cache", enabled=not first), tmp_path / "run")
    assert (tmp_path / "cache").exists() is not first
    lines, expected = log_lines(tmp_path / "run"), log_lines(workdir)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for name in ("loss", "gradient_norm", "learning_rate"):
        np.testing.assert_allclose(
            [line[name] for line in lines], [line[name] for line in expected], rtol=1e-4
        )


@pytest.mark.slow
def test_a_second_whole_run_is_identical_to_the_first(finished, tmp_path):
    config, workdir, _ = finished
    train_and_evaluate(config, tmp_path / "again")
    assert results_of(tmp_path / "again") == results_of(workdir)
    assert_bitwise_equal(
        final_state(config, tmp_path / "again"), final_state(config, workdir)
    )


def start(config, workdir):
    """A run as users start it, in a process of its own."""
    command = [
        *(sys.executable, "-m", "harmoniad_jax.train", "--config", "configs/demo.py"),
        *("--workdir", str(workdir)),
        *overrides(config),
    ]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def ended(process):
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return errors


@pytest.mark.slow
def test_two_runs_at_once_share_a_cache(finished, tmp_path):
    config, workdir, _ = finished
    config = changed(config, "cache", folder=str(tmp_path / "cache"))
    processes = [start(config, tmp_path / name) for name in ("one", "two")]
    for process in processes:
        ended(process)
    for name in ("one", "two"):
        assert json.loads(results_of(tmp_path / name))["per_category"]
        assert_bitwise_equal(
            final_state(config, tmp_path / name), final_state(config, workdir)
        )
    assert results_of(tmp_path / "one") == results_of(tmp_path / "two")


@pytest.mark.slow
def test_runs_that_are_killed_while_encoding_leave_a_sound_cache(
    finished, tmp_path, products
):
    """SIGKILL at moments that no one chose, many images, then an undisturbed end."""
    config, *_ = finished
    root = tmp_path / "photos"
    shutil.copytree(products, root)
    random = np.random.default_rng(0)
    for index in range(600):
        noise = random.integers(0, 256, (40, 40, 3), np.uint8)
        path = root / "tablet" / "train" / "good" / f"noise{index:03}.png"
        Image.fromarray(noise).save(path)
    config = changed(config, "data", root=str(root), check_images=False)
    config = changed(config, "train", num_steps=80, log_every_steps=20)
    config = changed(config, "cache", folder=str(tmp_path / "killed"))
    killed = 0
    for delay in (0.0, 0.02, 0.1):
        process = start(config, tmp_path / "run")
        for line in process.stderr:
            if "are to be encoded" in line:
                break
        time.sleep(delay)
        if delay:
            before = len(list((tmp_path / "killed").glob("*/*.npy")))
            deadline = time.monotonic() + 60
            while (
                len(list((tmp_path / "killed").glob("*/*.npy"))) == before
                and process.poll() is None
                and time.monotonic() < deadline
            ):
                time.sleep(0.001)
            time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    assert killed == 3
    errors = ended(start(config, tmp_path / "run"))
    (match,) = LOG.findall(errors)
    assert 0 < int(match[3]) < int(match[0])
    config = changed(config, "cache", folder=str(tmp_path / "undisturbed"))
    ended(start(config, tmp_path / "other"))
    assert results_of(tmp_path / "run") != b""
    assert_bitwise_equal(
        final_state(config, tmp_path / "run"), final_state(config, tmp_path / "other")
    )


# Several processes of one run.


def encode_share(config, port, index, count, results):
    """One of the processes: encodes its share, then reads all."""
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", count, index)
    run = prepare_run(config)
    written = []
    write = FeatureCache.write

    def note(self, images, arrays):
        written.extend(images)
        write(self, images, arrays)

    FeatureCache.write = note
    data = training_data(run, on_devices(run))
    read = stored_bytes(data)
    losses, _ = train(run, 2)
    results.put((index, written, sorted(read), losses))


@pytest.mark.slow
def test_processes_of_one_run_encode_disjoint_shares(plain_config, tmp_path):
    """Without dropout, whose noise goes by the place of an image in the batch."""
    config = changed(plain_config, "cache", folder=str(tmp_path / "cache"), dtype="float32")
    config = changed(config, "model", dropout=0.0)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    processes = [
        spawn.Process(target=encode_share, args=(config, port, index, 2, results))
        for index in range(2)
    ]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=300) for _ in processes)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    (_, first, read_first, losses), (_, second, read_second, other_losses) = found
    assert len(first) == len(second) == IMAGES // 2
    assert not set(first) & set(second)
    assert read_first == read_second == sorted([*first, *second])
    assert losses == other_losses
    # As one process trains.
    config = changed(config, "cache", folder=str(tmp_path / "alone"))
    alone, _ = train(prepare_run(config), 2)
    np.testing.assert_allclose(losses, alone, rtol=1e-5)


# Real images.


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_real_encoder_trains_alike(
    plain_config, real_encoder, real_products, tmp_path, dtype
):
    config = changed(plain_config, "data", root=str(real_products), image_side=112)
    config = changed(config, "encoder", name=str(real_encoder))
    config = changed(config, "model", head_width=64)
    config = changed(config, "train", num_steps=3)
    config = changed(config, "cache", folder=str(tmp_path), dtype=dtype)
    run = prepare_run(config)
    losses, _ = train(run)
    expected, _ = train(with_settings(run, "cache", enabled=False))
    # Half the last place of the stored format.
    rounding = {"float32": 1e-5, "float16": 2**-11}[dtype]
    np.testing.assert_allclose(losses[0], expected[0], rtol=rounding)
    np.testing.assert_allclose(losses, expected, rtol=20 * rounding)
