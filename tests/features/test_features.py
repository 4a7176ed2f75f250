"""Training on stored features: as on images, each encoded once, and within bounds."""

import dataclasses
import os
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from feature_helpers import (
    IMAGES,
    LOG,
    assert_fresh,
    cache_of,
    chunks,
    encoded,
    initial_state,
    opened,
    records_of,
    stored_bytes,
    train,
    with_settings,
)
from run_helpers import assert_bitwise_equal, changed

from harmoniad_jax.errors import UserError
from harmoniad_jax.model.encoders.encoder import Encoder
from harmoniad_jax.run.run import prepare_run
from harmoniad_jax.words import gigabytes


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
