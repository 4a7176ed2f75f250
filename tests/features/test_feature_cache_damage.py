"""Damaged and unfinished chunks of the feature cache: left out or named, never read."""

import contextlib
import itertools
import logging
import os
import re
import resource
import tempfile
import time

import numpy as np
import pytest
from feature_cache_helpers import (
    assert_reads,
    chunks,
    fill,
    image,
    names,
    open_cache,
    spawn,
    unfinished,
)

from harmoniad_jax.errors import UserError
from harmoniad_jax.features.store import ABANDONED_SECONDS

# Damage.


@pytest.fixture
def warnings(listen):
    """What was logged as a warning since it was last asked for."""
    return listen(logging.WARNING)


@pytest.fixture
def intact(tmp_path):
    """A cache of two chunks, 0-2 and 3-4, closed; the file of the first and its bytes."""
    cache = open_cache(tmp_path)
    fill(cache, *names(range(3)))
    (path,) = chunks(tmp_path)
    fill(cache, *names([3, 4]))
    return tmp_path, path, path.read_bytes()


def test_a_truncated_chunk_is_left_out(intact, warnings):
    """At any length; its images count as missing, those of others do not."""
    root, path, content = intact
    for length in [*range(0, len(content), 5), len(content) - 1]:
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
    """In any place, image by image: the file is named, the other images are read."""
    root, path, content = intact
    row = open_cache(root).row
    begin = len(content) - 3 * row.itemsize
    places = range(row.fields["checksum"][1], row.itemsize)
    assert row.itemsize - row.fields["checksum"][1] == 4 + 4 * (90 + 5)
    for damaged, place in zip(itertools.cycle(range(3)), places):
        changed = flipped(content, begin + damaged * row.itemsize + place, place % 8)
        path.write_bytes(changed)
        cache = open_cache(root)
        with pytest.raises(UserError, match=re.escape(str(path))) as error:
            cache.read(image(damaged))
        assert "Delete it" in str(error.value)
        assert_reads(cache, *(image(i) for i in range(5) if i != damaged))


def test_a_flipped_bit_anywhere_gives_no_wrong_features(intact):
    """Right ones, or none, or a message that names the file; in the header, more bits."""
    root, path, content = intact
    header = len(content) - 3 * open_cache(root).row.itemsize
    flips = [(place, (place + bit) % 8) for place in range(header) for bit in (0, 4)]
    flips += [(place, place % 8) for place in range(header, len(content), 2)]
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
