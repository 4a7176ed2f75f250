"""Room for the feature cache: what goes, what stays, and trouble with the disk."""

import contextlib
import errno
import os
import resource
import shutil
import tempfile
import time
from collections import namedtuple
from pathlib import Path

import pytest
from feature_cache_helpers import (
    BIG,
    assert_reads,
    chunks,
    fill,
    image,
    names,
    open_cache,
    unfinished,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from harmoniad_jax.errors import UserError
from harmoniad_jax.words import gigabytes

DAY = 24 * 3600


# Room.


def used(path, days):
    """Makes a chunk seem last used so many days ago."""
    os.utime(path, 2 * (time.time() - days * DAY,))


def size_of(paths):
    return sum(path.stat().st_size for path in paths)


# The days since each of four chunks was used, by its first image.
DAYS = {0: 3, 2: 4, 4: 2, 6: 1}


@pytest.fixture
def four(tmp_path):
    """The folder of a cache that has chunks of two images each, and their files."""
    cache = open_cache(tmp_path)
    paths = {}
    for first, days in DAYS.items():
        before = chunks(tmp_path)
        fill(cache, *names([first, first + 1]))
        (paths[first],) = set(chunks(tmp_path)) - set(before)
        used(paths[first], days)
    return tmp_path, paths


def kept(four):
    _, paths = four
    return [first for first, path in paths.items() if path.exists()]


def test_nothing_is_removed_while_all_fits(four):
    root, paths = four
    cache = open_cache(root)
    limit = size_of(paths.values()) + cache.bytes_for(3)
    cache.make_room(names([0, 100, 101, 102]), limit)
    assert kept(four) == [0, 2, 4, 6]


def test_what_was_not_used_for_longest_goes_first(four):
    root, paths = four
    cache = open_cache(root)
    limit = size_of(paths.values()) + cache.bytes_for(3)
    cache.make_room(names([0, 100, 101, 102]), limit - 1)
    assert kept(four) == [0, 4, 6]


def test_no_more_is_removed_than_needed(four):
    root, paths = four
    one = paths[0].stat().st_size
    cache = open_cache(root)
    cache.make_room(names([100]), 2 * one + cache.bytes_for(1))
    assert kept(four) == [4, 6]


def test_what_is_wanted_stays_however_old(four):
    root, paths = four
    cache = open_cache(root)
    # One image of a chunk is enough to keep it.
    cache.make_room(names([3]), cache.bytes_for(1))
    assert kept(four) == [2]
    assert_reads(cache, *names([2, 3]))


def test_what_another_process_stored_meanwhile_stays_if_wanted(tmp_path):
    """Two runs that begin at once must not remove each other's features."""
    early = open_cache(tmp_path)
    fill(open_cache(tmp_path), *names([0, 1]))
    early.make_room(names([0, 1]), size_of(chunks(tmp_path)))
    assert len(chunks(tmp_path)) == 1
    early.refresh()
    assert_reads(early, *names([0, 1]))


def test_being_wanted_is_being_used(four):
    root, paths = four
    open_cache(root).make_room(names([2]), 10**9)
    open_cache(root).make_room([], size_of([paths[2]]))
    assert kept(four) == [2]


def test_chunks_of_other_settings_count_and_may_go(four):
    root, paths = four
    other = open_cache(root, "float16")
    fill(other, image(0))
    (path,) = other.folder.glob("*.npy")
    used(path, 10)
    everything = size_of([path, *paths.values()])
    open_cache(root).make_room([], everything)
    assert path.exists()
    open_cache(root).make_room([], everything - 1)
    assert not path.exists()
    assert kept(four) == [0, 2, 4, 6]


def test_only_chunks_of_the_cache_are_removed(four):
    """The folder that was named for the cache may hold other things, arrays too."""
    root, _ = four
    folder = open_cache(root).folder
    mine = [
        root / "notes.txt",
        root / "array.npy",
        root / "project" / "embeddings.npy",
        root / "project" / "more" / "embeddings.npy",
        root / "project" / "download.unfinished",
        folder / "notes.txt",
    ]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"mine")
        os.utime(path, (0, 0))
    open_cache(root).make_room([], 0)
    assert kept(four) == []
    assert [path for path in mine if not path.exists()] == []
    assert (folder / "features.json").exists()


@given(
    ages=st.lists(st.integers(1, 1000), min_size=1, max_size=6, unique=True),
    data=st.data(),
)
@settings(deadline=None, max_examples=40)
def test_room_is_made_by_age_as_far_as_needed(ages, data):
    """Of all choices: what is wanted stays, and of the rest the newest that fit."""
    sizes = [data.draw(st.integers(1, 3)) for _ in ages]
    wanted = data.draw(st.sets(st.sampled_from(range(len(ages)))))
    new = data.draw(st.integers(0, 3))
    with tempfile.TemporaryDirectory() as root:
        cache = open_cache(root)
        paths = []
        for index, (size, days) in enumerate(zip(sizes, ages, strict=True)):
            before = set(chunks(root))
            fill(cache, *names(range(10 * index, 10 * index + size)))
            paths += set(chunks(root)) - before
            used(paths[-1], days)
        bytes_of = [path.stat().st_size for path in paths]
        limit = data.draw(st.integers(0, sum(bytes_of) + cache.bytes_for(4)))
        images = names([10 * index for index in wanted])
        images += names(range(900, 900 + new))
        cache = open_cache(root)
        cache.make_room(images, limit)
        left = {index for index, path in enumerate(paths) if path.exists()}
    assert wanted <= left
    others = sorted(set(range(len(ages))) - wanted, key=lambda index: ages[index])
    best = others
    while best and (
        sum(bytes_of[i] for i in wanted | set(best)) + cache.bytes_for(new) > limit
    ):
        best = best[:-1]
    assert left == wanted | set(best)


def test_another_process_may_make_room_at_the_same_time(four, monkeypatch):
    """What it removed meanwhile is gone, and no failure."""
    root, paths = four
    cache = open_cache(root)
    removed = Path.unlink

    def unlink_twice(path, missing_ok=False):
        removed(path)
        removed(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink_twice)
    cache.make_room([], 0)
    assert kept(four) == []


# Trouble with the disk.


Usage = namedtuple("Usage", "total used free")


def test_a_disk_that_is_too_full_is_said_before_anything_is_encoded(four, monkeypatch):
    root, _ = four
    cache = open_cache(root)
    needed = cache.bytes_for(2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 0, needed - 1))
    with pytest.raises(UserError) as error:
        cache.make_room(names([0, 100, 101]), 10**9)
    message = str(error.value)
    assert gigabytes(needed) in message
    assert str(cache.folder) in message
    for advice in ("--config.cache.folder=DIR", "--config.cache.enabled=False"):
        assert advice in message
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 0, needed))
    cache.make_room(names([0, 100, 101]), 10**9)


def test_room_on_the_disk_is_counted_after_what_was_removed(four, monkeypatch):
    root, paths = four
    cache = open_cache(root)
    everything = size_of(paths.values())
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: Usage(0, 0, everything - size_of(chunks(root)))
    )
    cache.make_room(names([100]), cache.bytes_for(1))
    assert chunks(root) == []


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="--config.cache.folder=DIR") as error:
            open_cache(root)
        assert str(root) in str(error.value)


def test_a_folder_that_vanished_is_said(tmp_path):
    cache = open_cache(tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(UserError, match="No such file") as error:
        fill(cache, image(0))
    assert "--config.cache.enabled=False" in str(error.value)


@contextlib.contextmanager
def no_file_above(size):
    """As on a disk that is full after so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 64, 1000, 100_000])
def test_a_chunk_that_does_not_fit_is_said_and_leaves_nothing(tmp_path, size):
    cache = open_cache(tmp_path, shapes=BIG)
    with no_file_above(size), pytest.raises(UserError) as error:
        fill(cache, *names(range(4)), shapes=BIG)
    message = str(error.value)
    assert str(cache.folder) in message
    assert "--config.cache.folder=DIR" in message
    assert "None" not in message, "it does not say why"
    assert chunks(tmp_path) == unfinished(tmp_path) == []
    assert image(0) not in cache
    fill(cache, *names(range(4)), shapes=BIG)
    assert_reads(cache, *names(range(4)), shapes=BIG)


def test_a_write_that_the_system_refuses_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    cache = open_cache(tmp_path)

    def refuse(_):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError, match=os.strerror(errno.EDQUOT)):
        fill(cache, image(0))
    assert chunks(tmp_path) == unfinished(tmp_path) == []


def test_a_chunk_that_may_not_be_removed_is_no_failure(four, monkeypatch):
    """Another user's, in a folder that is shared."""
    root, _ = four

    def refuse(self, missing_ok=False):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "unlink", refuse)
    cache = open_cache(root)
    with contextlib.suppress(UserError):
        cache.make_room([], 0)
    assert kept(four) == [0, 2, 4, 6]
