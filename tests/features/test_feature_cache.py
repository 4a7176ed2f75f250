"""The feature cache: what was written is read back, here and in other processes."""

import itertools
import tempfile
import time
import weakref

import numpy as np
import pytest
from feature_cache_helpers import (
    BIG,
    DESCRIPTION,
    SHAPES,
    assert_reads,
    chunks,
    features_of,
    fill,
    image,
    names,
    open_cache,
    spawn,
    unfinished,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from harmoniad_jax.features.store import FeatureCache
from harmoniad_jax.words import gigabytes

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
    values = np.array([0.0, -0.0, np.inf, np.nan, 65504.0, 6e-8], np.float32)
    cache.write([image(0)], [{"class_token": values}])
    read = cache.read(image(0))["class_token"]
    assert read.tobytes() == values.astype(np.float16).tobytes()


def test_rows_are_written_as_they_come(tmp_path):
    """One of them is in memory at a time."""
    cache, alive = open_cache(tmp_path), []

    def rows():
        for index in range(5):
            row = features_of(image(index))
            assert all(reference() is None for reference in alive[:-1])
            alive.append(weakref.ref(row["patches"]))
            yield row
            del row

    cache.write(names(range(5)), rows())
    assert len(alive) == 5
    assert_reads(open_cache(tmp_path), *names(range(5)))


@pytest.mark.parametrize("error", [OSError("the image is gone"), KeyboardInterrupt()])
def test_what_fails_between_rows_stays_what_it_is(tmp_path, error):
    cache = open_cache(tmp_path)

    def rows():
        yield features_of(image(0))
        raise error

    with pytest.raises(type(error)):
        cache.write(names(range(2)), rows())
    assert not chunks(tmp_path) + unfinished(tmp_path)
    assert image(0) not in cache


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


# Hashes of images.
