"""The feature cache: what was written is read back, or encoded again, but never wrong."""

import contextlib
import errno
import hashlib
import itertools
import logging
import multiprocessing
import os
import re
import resource
import shutil
import tempfile
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harmoniad_jax.data.feature_cache import (
    ABANDONED_SECONDS,
    FeatureCache,
    gigabytes,
    image_hashes,
)
from harmoniad_jax.data.records import EncodedImage, Record
from harmoniad_jax.errors import UserError

SHAPES = {"patches": (2, 3, 3, 5), "class_token": (5,)}
DESCRIPTION = {"weights": "abc", "blocks": ((1,), (2,)), "image_side": 24}
DAY = 24 * 3600
# Processes of their own, which share nothing with this one but the disk.
spawn = multiprocessing.get_context("spawn")


def image(index):
    """The SHA-256 that stands for an image."""
    return hashlib.sha256(b"image %d" % index).hexdigest()


def features_of(name, shapes=SHAPES):
    """What an encoder would give for it: float32, decided by the image alone."""
    random = np.random.default_rng(int(name[:12], 16))
    return {key: random.standard_normal(shape, np.float32) for key, shape in shapes.items()}


def open_cache(root, dtype="float32", shapes=SHAPES, **changes):
    return FeatureCache(Path(root), DESCRIPTION | changes, shapes, dtype)


def fill(cache, *images, shapes=SHAPES):
    """Writes them as one chunk."""
    rows = [features_of(name, shapes) for name in images]
    cache.write(images, {key: np.stack([row[key] for row in rows]) for key in rows[0]})


def assert_reads(cache, *images, dtype="float32", shapes=SHAPES):
    for name in images:
        read, expected = cache.read(name), features_of(name, shapes)
        assert read.keys() == expected.keys()
        for key, values in read.items():
            assert values.dtype == dtype
            np.testing.assert_array_equal(values, expected[key].astype(dtype))


def chunks(root):
    return sorted(Path(root).glob("*/*.npy"))


def unfinished(root):
    return sorted(Path(root).glob("*/*.unfinished"))


def names(indices):
    return [image(index) for index in indices]


# What is written is read.


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_features_are_read_as_they_were_written(tmp_path, dtype):
    """Exactly in float32, rounded to the nearest in float16."""
    cache = open_cache(tmp_path, dtype)
    fill(cache, *names(range(5)))
    fill(cache, *names(range(5, 7)))
    assert_reads(cache, *names(range(7)), dtype=dtype)


shapes_of_features = st.dictionaries(
    st.sampled_from(["patches", "class_token", "other"]),
    st.lists(st.integers(1, 4), max_size=4).map(tuple),
    min_size=1,
)


@given(
    shapes_of_features,
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.sampled_from(["float16", "float32"]),
)
@settings(deadline=None, max_examples=30)
def test_features_of_any_shape_in_chunks_of_any_size(shapes, sizes, dtype):
    counter = itertools.count()
    written = [names(itertools.islice(counter, size)) for size in sizes]
    everything = list(itertools.chain.from_iterable(written))
    with tempfile.TemporaryDirectory() as root:
        cache = open_cache(root, dtype, shapes)
        for chunk in written:
            fill(cache, *chunk, shapes=shapes)
        for reader in (cache, open_cache(root, dtype, shapes)):
            assert_reads(reader, *everything, dtype=dtype, shapes=shapes)
        stored = sum(path.stat().st_size for path in chunks(root))
    assert cache.bytes_for(len(everything)) <= stored
    # The estimate is all but the files' headers.
    assert stored <= cache.bytes_for(len(everything)) + 512 * len(written)


def test_special_numbers_survive(tmp_path):
    cache = open_cache(tmp_path, "float16", {"class_token": (6,)})
    values = np.array([[0.0, -0.0, np.inf, np.nan, 65504.0, 6e-8]], np.float32)
    cache.write([image(0)], {"class_token": values})
    read = cache.read(image(0))["class_token"]
    assert read.tobytes() == values.astype(np.float16)[0].tobytes()


def test_what_is_read_can_be_changed_without_harm(tmp_path):
    cache = open_cache(tmp_path)
    fill(cache, image(0))
    cache.read(image(0))["patches"][:] = 0.0
    assert_reads(cache, image(0))
    assert_reads(open_cache(tmp_path), image(0))


def test_an_image_that_was_not_stored_is_not_there(tmp_path):
    cache = open_cache(tmp_path)
    fill(cache, image(0))
    assert image(0) in cache
    assert image(1) not in cache
    with pytest.raises(KeyError):
        cache.read(image(1))


def test_an_image_may_be_in_two_chunks(tmp_path):
    """Two processes encoded it at the same time, in other company."""
    cache = open_cache(tmp_path)
    fill(cache, *names([0, 1]))
    fill(cache, *names([1, 2]))
    for reader in (cache, open_cache(tmp_path)):
        assert_reads(reader, *names(range(3)))


def test_sizes_are_said_in_gigabytes():
    assert gigabytes(1_234_567_890_123) == "1,234.57 GB"


# Several instances, as in several processes.


def test_another_instance_sees_what_was_written(tmp_path):
    writer, reader = open_cache(tmp_path), open_cache(tmp_path)
    fill(writer, *names([0, 1]))
    assert image(0) not in reader
    reader.refresh()
    assert_reads(reader, *names([0, 1]))
    fill(writer, image(2))
    assert image(2) not in reader
    reader.refresh()
    assert_reads(reader, *names([0, 1, 2]))
    assert_reads(open_cache(tmp_path), *names([0, 1, 2]))


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": "abd"},
        {"blocks": ((1,), (3,))},
        {"blocks": ((1, 2),)},
        {"image_side": 32},
        {"more": None},
        {"dtype": "float16"},
        {"shapes": {**SHAPES, "patches": (2, 3, 5, 3)}},
        {"shapes": {"patches": SHAPES["patches"]}},
    ],
)
def test_what_was_encoded_otherwise_is_never_found(tmp_path, changes):
    cache = open_cache(tmp_path)
    fill(cache, image(0))
    other = open_cache(tmp_path, **changes)
    assert other.folder != cache.folder
    assert image(0) not in other
    # Nor the other way round.
    shapes = changes.get("shapes", SHAPES)
    fill(other, image(1), shapes=shapes)
    cache.refresh()
    assert image(1) not in cache
    again = open_cache(tmp_path, **changes)
    assert_reads(again, image(1), dtype=changes.get("dtype", "float32"), shapes=shapes)


def test_the_order_of_a_description_is_no_difference(tmp_path):
    turned = dict(reversed(DESCRIPTION.items()))
    shapes = dict(reversed(SHAPES.items()))
    fill(open_cache(tmp_path), image(0))
    assert_reads(FeatureCache(tmp_path, turned, shapes, "float32"), image(0))


def test_a_reader_keeps_what_another_removed(tmp_path):
    reader = open_cache(tmp_path)
    fill(reader, *names([0, 1]))
    reader = open_cache(tmp_path)
    open_cache(tmp_path).make_room([], 0)
    assert chunks(tmp_path) == []
    assert_reads(reader, *names([0, 1]))
    assert image(0) not in open_cache(tmp_path)
    fill(reader, image(2))
    assert_reads(reader, *names([0, 1, 2]))


def write_share(root, shared, own, barrier):
    """A process that writes chunks of its own, and chunks that others write too."""
    cache = open_cache(root)
    barrier.wait()
    for pair in zip(shared, own, strict=True):
        for chunk in pair:
            fill(cache, *chunk)


def test_several_processes_write_at_once(tmp_path):
    shared = [names(range(8 * i, 8 * i + 8)) for i in range(20)]
    own = [
        [names(range(first + 3 * i, first + 3 * i + 3)) for i in range(20)]
        for first in (1000, 2000, 3000)
    ]
    barrier = spawn.Barrier(3)
    processes = [
        spawn.Process(target=write_share, args=(tmp_path, shared, part, barrier))
        for part in own
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    everything = [*shared, *itertools.chain.from_iterable(own)]
    assert_reads(open_cache(tmp_path), *itertools.chain.from_iterable(everything))
    # What several wrote alike is there once.
    assert len(chunks(tmp_path)) == len(everything)
    assert unfinished(tmp_path) == []


@pytest.mark.parametrize("count", [2, 3])
def test_shares_of_processes_make_up_the_whole(tmp_path, count):
    missing = names(range(11))
    writers = [open_cache(tmp_path) for _ in range(count)]
    for index, writer in enumerate(writers):
        fill(writer, *missing[index::count])
    for writer in writers:
        writer.refresh()
        assert_reads(writer, *missing)
    assert_reads(open_cache(tmp_path), *missing)


BIG = {"patches": (256, 1024)}  # a megabyte, so that a writer is killed within a file


def write_until_killed(root, first, ready):
    cache = open_cache(root, shapes=BIG)
    for index in itertools.count(first):
        fill(cache, *names(range(4 * index, 4 * index + 4)), shapes=BIG)
        ready.set()


def test_a_killed_writer_leaves_only_complete_chunks(tmp_path):
    written = 0
    for attempt, delay in enumerate((0.0, 0.003, 0.01, 0.03, 0.1)):
        ready = spawn.Event()
        first = 10_000 * attempt
        process = spawn.Process(target=write_until_killed, args=(tmp_path, first, ready))
        process.start()
        assert ready.wait(60)
        time.sleep(delay)
        process.kill()
        process.join()
        paths = chunks(tmp_path)
        assert len(paths) > written
        written = len(paths)
    cache = open_cache(tmp_path, shapes=BIG)
    assert chunks(tmp_path) == paths
    stored = [name for path in paths for name in np.load(path)["image"].astype(str)]
    assert len(stored) == 4 * len(paths)
    assert_reads(cache, *stored, shapes=BIG)


# Damage.


@pytest.fixture
def warnings(caplog):
    """What was logged as a warning since it was last asked for."""
    caplog.set_level(logging.WARNING, "harmoniad_jax")

    def take():
        found = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return found

    # A run of the command line before this test may have cut the logger off.
    logger = logging.getLogger("harmoniad_jax")
    propagate, logger.propagate = logger.propagate, True
    yield take
    logger.propagate = propagate


@pytest.fixture
def intact(tmp_path):
    """A cache of two chunks, 0-2 and 3-4, closed; the file of the first and its bytes."""
    cache = open_cache(tmp_path)
    fill(cache, *names(range(3)))
    (path,) = chunks(tmp_path)
    fill(cache, *names([3, 4]))
    return tmp_path, path, path.read_bytes()


def test_a_truncated_chunk_is_left_out(intact, warnings):
    """At every length; its images count as missing, those of others do not."""
    root, path, content = intact
    for length in range(len(content)):
        path.write_bytes(content[:length])
        cache = open_cache(root)
        assert [image(i) in cache for i in range(5)] == 3 * [False] + 2 * [True], length
        (warning,) = warnings()
        assert str(path) in warning
    fill(cache, *names(range(3)))
    assert_reads(open_cache(root), *names(range(5)))
    assert warnings() == []


def npy(array):
    with tempfile.TemporaryFile() as file:
        np.save(file, array, allow_pickle=array.dtype == object)
        file.seek(0)
        return file.read()


def zipped():
    with tempfile.TemporaryFile() as file:
        np.savez(file, np.zeros(3))
        file.seek(0)
        return file.read()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"not an array",
        b"\x80\x04N.",  # a pickle
        b"PK\x03\x04 but no archive",
        zipped(),
        npy(np.zeros(3)),
        npy(np.zeros((3, 4), np.float16)),
        npy(np.array([None, "text"])),
        npy(np.zeros(3, [("image", "S64"), ("checksum", "<u4")])),
        npy(np.zeros(())),
        b"\x93NUMPY\x01\x00\xff\xff{'descr': '<f8'",
        b"\x93NUMPY\x09\x00\x76\x00{'descr': '<f8'",
        b"\x93NUMPY\x01\x00\x76\x00" + b"\xff" * 200,
    ],
    ids=range(14),
)
def test_what_is_no_chunk_is_left_out(intact, warnings, content):
    root, path, _ = intact
    path.write_bytes(content)
    cache = open_cache(root)
    assert [image(i) in cache for i in range(5)] == 3 * [False] + 2 * [True]
    (warning,) = warnings()
    assert str(path) in warning
    fill(cache, *names(range(3)))
    assert_reads(open_cache(root), *names(range(5)))


def test_chunks_of_other_dimensions_are_left_out(intact, warnings):
    root, path, content = intact
    rows = np.load(path)
    for array in (rows.reshape(3, 1), rows[0]):
        path.write_bytes(npy(array))
        assert image(0) not in open_cache(root)
        assert len(warnings()) == 1


def test_damage_that_came_while_reading_is_left_out_too(intact, warnings):
    root, path, content = intact
    reader = open_cache(root)
    other = path.with_name("0" * 16 + ".npy")
    other.write_bytes(content[:-1])
    reader.refresh()
    assert len(warnings()) == 1
    assert_reads(reader, *names(range(5)))


def flipped(content, place, bit):
    changed = bytearray(content)
    changed[place] ^= 1 << bit
    return bytes(changed)


def test_a_flipped_bit_in_features_is_found(intact):
    """Any bit of any image's features: the file is named, the other images are read."""
    root, path, content = intact
    row = open_cache(root).row
    begin = len(content) - 3 * row.itemsize
    places = range(row.fields["checksum"][1], row.itemsize)
    assert row.itemsize - row.fields["checksum"][1] == 4 + 4 * (90 + 5)
    for damaged, place in itertools.product(range(3), places):
        changed = flipped(content, begin + damaged * row.itemsize + place, place % 8)
        path.write_bytes(changed)
        cache = open_cache(root)
        with pytest.raises(UserError, match=re.escape(str(path))) as error:
            cache.read(image(damaged))
        assert "Delete it" in str(error.value)
        assert_reads(cache, *(image(i) for i in range(5) if i != damaged))


def test_a_flipped_bit_anywhere_gives_no_wrong_features(intact):
    """Right ones, or none, or a message that names the file; in the header, all bits."""
    root, path, content = intact
    header = len(content) - 3 * open_cache(root).row.itemsize
    flips = [(place, bit) for place in range(header) for bit in range(8)]
    flips += [(place, place % 8) for place in range(header, len(content))]
    # The names' highest bit too: then they are no text any more.
    flips += [(header + place, 7) for place in range(64)]
    for place, bit in flips:
        path.write_bytes(flipped(content, place, bit))
        cache = open_cache(root)
        for index in range(3):
            if image(index) in cache:
                with contextlib.suppress(UserError):
                    assert_reads(cache, image(index))
        assert_reads(cache, *names([3, 4]))


def open_with_few_files(root):
    """A process that cannot have as many files open as there are chunks."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
    with contextlib.suppress(UserError):
        open_cache(root)


def test_too_many_open_files_cost_no_chunk(tmp_path):
    """What cannot be opened now is not damaged: deleted, it would be lost for all."""
    cache = open_cache(tmp_path)
    for index in range(80):
        fill(cache, image(index))
    before = chunks(tmp_path)
    process = spawn.Process(target=open_with_few_files, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert chunks(tmp_path) == before
    assert_reads(open_cache(tmp_path), *names(range(80)))


# Unfinished chunks.


def test_unfinished_chunks_are_ignored_and_abandoned_ones_removed(intact):
    root, path, content = intact
    path.unlink()
    young, old = (
        path.with_name(f"{path.stem}.{name}.unfinished") for name in ("young", "old")
    )
    for file, age in ((young, ABANDONED_SECONDS - 60), (old, ABANDONED_SECONDS + 60)):
        file.write_bytes(content)
        os.utime(file, 2 * (time.time() - age,))
    cache = open_cache(root)
    assert [image(i) in cache for i in range(5)] == 3 * [False] + 2 * [True]
    assert unfinished(root) == sorted([young, old])
    cache.make_room(names([3, 4]), 10**9)
    assert unfinished(root) == [young]
    assert_reads(cache, *names([3, 4]))


def test_abandoned_chunks_of_other_settings_are_removed_too(intact):
    root, *_ = intact
    file = open_cache(root, weights="other").folder / "name.1.unfinished"
    file.write_bytes(b"")
    os.utime(file, (0, 0))
    open_cache(root).make_room([], 10**9)
    assert not file.exists()


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


# Hashes of images.


def records_of(paths):
    return [Record(path, "any") for path in paths]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_image_hashes_are_of_the_files_in_order(tmp_path, threads):
    paths = [tmp_path / f"{index}.png" for index in range(20)]
    for index, path in enumerate(paths):
        path.write_bytes(os.urandom(index * 100))
    expected = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    assert image_hashes(records_of(paths), threads) == expected
    assert image_hashes(iter(records_of(paths)), threads) == expected


def test_a_known_hash_is_used_without_reading(tmp_path):
    known = Record(tmp_path / "absent.png", "any", sha256=image(7))
    encoded = Record(EncodedImage("name", b"content"), "any")
    found = image_hashes([known, encoded], 2)
    assert found == [image(7), hashlib.sha256(b"content").hexdigest()]


def test_no_images_have_no_hashes():
    assert image_hashes([], 2) == []


def test_a_changed_image_has_another_hash_whatever_its_name_and_date(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(b"one")
    status = path.stat()
    before = image_hashes(records_of([path]), 1)
    path.write_bytes(b"two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    assert path.stat().st_size == status.st_size
    assert image_hashes(records_of([path]), 1) != before


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "there.png").write_bytes(b"")
    paths = [tmp_path / "there.png", tmp_path / "absent.png"]
    with pytest.raises(UserError, match="absent.png cannot be read"):
        image_hashes(records_of(paths), 2)
