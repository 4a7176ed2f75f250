"""Batches: every image once an epoch, exactly resumable, in shares, in order."""

import collections
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from harmoniad_jax.data.batches import evaluation_batches
from harmoniad_jax.data.masks import read_masks, resize_mask
from harmoniad_jax.data.order import training_batches, training_order
from harmoniad_jax.data.preprocess import Preprocessor
from harmoniad_jax.data.records import Record
from harmoniad_jax.errors import UserError

COUNT = 10
STEP = 20  # image i has the grey value i * STEP throughout


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Ten images of two categories, the first six of one."""
    folder = tmp_path_factory.mktemp("pipeline")
    made = []
    for index in range(COUNT):
        path = folder / f"{index}.png"
        Image.fromarray(np.full((6, 9, 3), index * STEP, np.uint8)).save(path)
        made.append(Record(path, "bottle" if index < 6 else "grid"))
    return made


def loader(side):
    preprocessor = Preprocessor(side)
    return lambda record: preprocessor.load(record.image)


def iterator(records, **changes):
    settings = {"image_side": 4, "rows": (4,), "seed": 0, "threads": 2} | changes
    order = training_order(records, seed=settings.pop("seed"))
    return training_batches(order, loader(settings.pop("image_side")), **settings)


def indices(images):
    """Which image each row of a batch is."""
    assert (images == images[:, :1, :1, :1]).all()
    return (images[:, 0, 0, 0] // STEP).tolist()


def take(batches, count):
    return [indices(*next(batches)) for _ in range(count)]


def flatten(batches):
    return list(itertools.chain.from_iterable(batches))


# Training.


def test_a_training_batch_is_preprocessed_images(records):
    (images,) = next(iterator(records))
    assert (images.dtype, images.shape) == (np.uint8, (4, 4, 4, 3))


def test_every_image_comes_once_an_epoch_and_reshuffled(records):
    order = flatten(take(iterator(records), 10))
    epochs = [order[first : first + COUNT] for first in range(0, 4 * COUNT, COUNT)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(COUNT))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_order_is_decided_by_the_seed(records):
    orders = [tuple(flatten(take(iterator(records, seed=s), 5))) for s in (0, 1, 2, 0)]
    assert len(set(orders)) == 3
    assert orders[0] == orders[3]


def test_categories_are_mixed(records):
    """Joint training: batches of one category alone would be forgotten by the next."""
    for seed in range(5):
        epoch = flatten(take(iterator(records, seed=seed, rows=(5,)), 2))
        categories = [records[index].category for index in epoch]
        assert categories not in (sorted(categories), sorted(categories, reverse=True))


def test_a_batch_may_be_larger_than_the_data(records):
    (batch,) = take(iterator(records, rows=(25,)), 1)
    assert sorted(batch[:10]) == sorted(batch[10:20]) == list(range(COUNT))
    assert len(set(batch[20:])) == 5


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_threads_change_nothing(records, threads):
    expected = take(iterator(records, threads=2), 8)
    assert take(iterator(records, threads=threads), 8) == expected


@pytest.mark.parametrize("done", [0, 1, 2, 3, 5, 7])
def test_a_fresh_iterator_continues_exactly(records, done):
    """Also in the middle of an epoch: ten images are two and a half batches."""
    uninterrupted = iterator(records)
    take(uninterrupted, done)
    # As a checkpoint stores it.
    state = json.loads(json.dumps(uninterrupted.get_state()))
    expected = take(uninterrupted, 6)
    resumed = iterator(records)
    resumed.set_state(state)
    assert take(resumed, 6) == expected


def test_a_used_iterator_can_be_set_back(records):
    batches = iterator(records)
    take(batches, 2)
    state = batches.get_state()
    expected = take(batches, 4)
    take(batches, 3)
    batches.set_state(state)
    assert take(batches, 4) == expected


def test_reading_the_state_changes_nothing(records):
    watched = iterator(records)
    found = []
    for _ in range(6):
        watched.get_state()
        found += take(watched, 1)
    assert found == take(iterator(records), 6)


@pytest.mark.parametrize("processes", [2, 4])
def test_shares_of_processes_make_up_the_batch_of_one(records, processes):
    whole = take(iterator(records), 6)
    shares = [
        take(iterator(records, process_index=index, process_count=processes), 6)
        for index in range(processes)
    ]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert all(len(part) == 4 // processes for part in parts)
        assert flatten(parts) == batch


def test_shares_continue_exactly_too(records):
    share = {"process_index": 1, "process_count": 2}
    batches = iterator(records, **share)
    take(batches, 3)
    resumed = iterator(records, **share)
    resumed.set_state(batches.get_state())
    assert take(resumed, 4) == take(batches, 4)


def test_another_number_of_processes_continues(records):
    one = iterator(records)
    take(one, 3)
    share = iterator(records, process_index=1, process_count=2)
    share.set_state(one.get_state())
    assert take(share, 4) == [batch[2:] for batch in take(one, 4)]


@pytest.fixture
def with_damaged(records, tmp_path):
    """The records and one more, whose file is cut off."""
    path = tmp_path / "damaged.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:500])
    return [*records, Record(path, "grid")]


def test_a_damaged_training_image_is_named(with_damaged):
    batches = iterator(with_damaged)
    with pytest.raises(UserError, match="damaged.png cannot be read"):
        take(batches, 3)


# The order that training reads in, with and without balance of the categories.


def listed(*sizes):
    """Records without files: so many of each category, in turns of no pattern."""
    records = [
        Record(Path(f"{category}-{index}.png"), f"category {category}")
        for category, size in enumerate(sizes)
        for index in range(size)
    ]
    shuffled = np.random.default_rng(0).permutation(len(records))
    return [records[index] for index in shuffled]


def first(order, count, begin=0):
    return [order[index].key for index in range(begin, begin + count)]


def reader(order, batch_size=6, **share):
    """Batches of the records' keys."""
    load = lambda record: np.array(record.key)  # noqa: E731
    return training_batches(order, load, rows=(batch_size,), threads=2, **share)


def keys(batches, count):
    return [next(batches)[0].tolist() for _ in range(count)]


sizes_of_categories = st.lists(st.integers(1, 7), min_size=1, max_size=8)


@given(sizes_of_categories, st.integers(0, 2**31), st.integers(0, 5))
@settings(deadline=None, max_examples=20)
def test_an_epoch_holds_each_record_once(sizes, seed, epoch):
    records = listed(*sizes)
    order = training_order(records, seed=seed)
    found = first(order, len(records), epoch * len(records))
    assert sorted(found) == sorted(record.key for record in records)


def test_epochs_and_seeds_differ_in_order():
    records = listed(9, 7)
    orders = {
        tuple(first(training_order(records, seed=seed), 16, 16 * epoch))
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(orders) == 16


@given(
    sizes_of_categories,
    st.integers(0, 2**31),
    st.one_of(st.integers(0, 100), st.integers(0, 10**9)),
    st.integers(1, 4),
)
@settings(deadline=None, max_examples=30)
def test_every_category_comes_equally_often(sizes, seed, begin, rounds):
    """In any window of as many rows as there are categories, or a multiple of it."""
    records = listed(*sizes)
    order = training_order(records, seed=seed, class_balanced=True)
    window = [order[begin + index].category for index in range(rounds * len(sizes))]
    assert collections.Counter(window) == dict.fromkeys(
        {record.category for record in records}, rounds
    )


@pytest.mark.parametrize("categories", [1, 2, 3, 7, 30, 101])
def test_any_number_of_categories_is_balanced(categories):
    order = training_order(listed(*[2] * categories), seed=3, class_balanced=True)
    window = [order[index].category for index in range(11, 11 + categories)]
    assert set(collections.Counter(window).values()) == {1}
    assert len(set(window)) == categories


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 2**31))
@settings(deadline=None, max_examples=15)
def test_each_image_of_a_category_comes_once_in_its_epoch(sizes, seed):
    records = listed(*sizes)
    order = training_order(records, seed=seed, class_balanced=True)
    found = collections.defaultdict(list)
    for index in range(3 * max(sizes) * len(sizes)):
        found[order[index].category].append(order[index].key)
    for category, images in found.items():
        expected = sorted(r.key for r in records if r.category == category)
        for begin in range(0, len(images) - len(expected) + 1, len(expected)):
            assert sorted(images[begin : begin + len(expected)]) == expected


def test_epochs_and_seeds_differ_in_order_when_balanced():
    """Of each category by itself: to change places with another would not be enough."""
    records = listed(9, 9, 9)
    orders = set()
    for seed, epoch in itertools.product(range(3), range(3)):
        order = training_order(records, seed=seed, class_balanced=True)
        part = first(order, 27, 27 * epoch)
        orders |= {
            tuple(key for key in part if key.startswith(f"category {category}/"))
            for category in range(3)
        }
    assert len(orders) == 3 * 3 * 3


def test_categories_of_one_size_are_not_read_in_step():
    """Whatever the seed: no two categories are in the same order, for no two seeds."""
    records = listed(9, 9, 9)
    orders = collections.Counter()
    for seed in range(4):
        order = training_order(records, seed=seed, class_balanced=True)
        found = first(order, 27)
        for category in range(3):
            numbers = [k.split("-")[1] for k in found if f" {category}/" in k]
            orders[tuple(numbers)] += 1
    assert len(orders) == 4 * 3


@pytest.mark.parametrize("balanced", [False, True])
def test_an_order_is_decided_by_its_seed(balanced):
    def order(seed):
        records = listed(5, 3, 1)
        return first(training_order(records, seed=seed, class_balanced=balanced), 60)

    assert order(4) == order(4)
    assert order(4) != order(5)


@pytest.mark.parametrize("balanced", [False, True])
def test_access_at_random_equals_reading_in_turn(balanced):
    order = training_order(listed(5, 3, 1), seed=1, class_balanced=balanced)
    in_turn = flatten(keys(reader(order), 12))
    places = np.random.default_rng(0).permutation(len(in_turn))
    assert [order[int(i)].key for i in places] == [in_turn[i] for i in places]


def test_balance_holds_in_batches():
    """Also where the categories do not divide the batch: none is ahead by more than one."""
    order = training_order(listed(7, 2, 1, 4), seed=0, class_balanced=True)
    for batch in keys(reader(order, batch_size=6), 10):
        counts = collections.Counter(key.split("/")[0] for key in batch)
        assert sorted(counts.values()) == [1, 1, 2, 2]


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("processes", [2, 3])
def test_shares_are_disjoint_and_complete(balanced, processes):
    order = training_order(listed(5, 3, 1), seed=1, class_balanced=balanced)
    whole = keys(reader(order), 9)
    shares = [
        keys(reader(order, process_index=index, process_count=processes), 9)
        for index in range(processes)
    ]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert flatten(parts) == batch


@pytest.mark.parametrize("done", [0, 1, 4])
@pytest.mark.parametrize("share", [{}, {"process_index": 1, "process_count": 2}])
def test_a_balanced_order_continues_exactly(done, share):
    order = training_order(listed(5, 3, 1), seed=1, class_balanced=True)
    uninterrupted = reader(order, **share)
    keys(uninterrupted, done)
    state = json.loads(json.dumps(uninterrupted.get_state()))
    expected = keys(uninterrupted, 8)
    order = training_order(listed(5, 3, 1), seed=1, class_balanced=True)
    resumed = reader(order, **share)
    resumed.set_state(state)
    assert keys(resumed, 8) == expected


@pytest.mark.parametrize("balanced", [False, True])
def test_what_is_loaded_of_a_record_changes_nothing_of_the_order(balanced):
    """A state that was saved while images were read continues with features."""
    records = listed(5, 3, 1)
    order = training_order(records, seed=1, class_balanced=balanced)
    batches = reader(order)
    keys(batches, 3)
    known = [Record(r.image, r.category, sha256=r.key) for r in records]
    order = training_order(known, seed=1, class_balanced=balanced)

    def load(record):
        return {"a": np.array(record.sha256), "b": np.zeros((2, 3), np.float16)}

    others = training_batches(order, load, rows=(6,), threads=3)
    others.set_state(batches.get_state())
    for expected in keys(batches, 5):
        (batch,) = next(others)
        assert batch["a"].tolist() == expected
        assert (batch["b"].dtype, batch["b"].shape) == (np.float16, (6, 2, 3))


def test_no_record_is_read_to_know_the_order():
    """There are no such files: the order of a whole run can be known before it."""
    order = training_order(listed(4, 2), seed=0, class_balanced=True)
    assert len(first(order, 100)) == 100


# Evaluation.


EMPTY = np.zeros((4, 4, 3), np.uint8)


def evaluate(records, batch_size, **share):
    settings = {"batch_size": batch_size, "threads": 2, **share}
    return list(evaluation_batches(records, loader(4), EMPTY, **settings))


@pytest.mark.parametrize("batch_size", [1, 3, 4, 5, 10, 16])
def test_evaluation_is_in_order_and_padded(records, batch_size):
    batches = evaluate(records, batch_size)
    assert len(batches) == -(-COUNT // batch_size)
    for batch in batches:
        assert (batch.rows.dtype, batch.rows.shape) == (
            np.uint8,
            (batch_size, 4, 4, 3),
        )
        assert (batch.valid.dtype, batch.valid.shape) == (bool, (batch_size,))
        assert not batch.rows[~batch.valid].any()
    assert all(batch.valid.all() for batch in batches[:-1])
    found = flatten(indices(batch.rows[batch.valid]) for batch in batches)
    assert found == list(range(COUNT))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_evaluate_their_rows_of_every_batch(records, processes):
    whole = evaluate(records, 8)
    shares = [
        evaluate(records, 8, process_index=index, process_count=processes)
        for index in range(processes)
    ]
    for batch, *parts in zip(whole, *shares, strict=True):
        np.testing.assert_array_equal(
            np.concatenate([part.rows for part in parts]), batch.rows
        )
        assert all((part.valid == batch.valid).all() for part in parts)


def test_an_evaluation_image_is_what_preprocess_gives(products):
    paths = sorted(products.glob("*/test/*/*.png"))[:3]
    records = [Record(path, "any") for path in paths]
    empty = np.zeros((16, 16, 3), np.uint8)
    (batch,) = evaluation_batches(records, loader(16), empty, batch_size=4, threads=1)
    for image, path in zip(batch.rows, paths, strict=False):
        np.testing.assert_array_equal(image, Preprocessor(16).load(path))


def test_no_records_are_no_batches():
    assert evaluate([], 4) == []


def test_a_damaged_test_image_is_named(with_damaged):
    with pytest.raises(UserError, match="damaged.png cannot be read"):
        evaluate(with_damaged, 4)


# Masks.


def test_masks_are_known_where_the_defect_is_marked(tmp_path):
    empty = np.zeros((32, 32), np.uint8)
    marked, small = empty.copy(), empty.copy()
    marked[8:16, 8:24] = 255
    small[5, 5] = small[30, 30] = 1
    for name, pixels in (("empty", empty), ("marked", marked), ("small", small)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    image = tmp_path / "unread.png"
    records = [
        Record(image, "a"),
        Record(image, "a", "hole", tmp_path / "marked.png"),
        Record(image, "a", "hole", None),
        Record(image, "a", "hole", tmp_path / "empty.png"),
        Record(image, "a", "hole", tmp_path / "small.png"),
    ]
    masks, known, rescued = read_masks(records, (8, 8), "half")
    assert (masks.dtype, masks.shape) == (bool, (5, 8, 8))
    assert (known.dtype, known.tolist()) == (bool, [True, True, False, False, True])
    assert rescued == 2
    assert masks.sum(axis=(1, 2)).tolist() == [0, 8, 0, 0, 2]
    np.testing.assert_array_equal(masks[1], resize_mask(marked > 0, (8, 8))[0])


def test_the_rule_for_masks_is_passed_on(tmp_path):
    mask = np.zeros((32, 32), np.uint8)
    mask[6:18, 6:18] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    records = [Record(tmp_path / "unread.png", "a", "hole", tmp_path / "mask.png")]
    half, any_part = (
        read_masks(records, (8, 8), rule)[0].sum() for rule in ("half", "any")
    )
    assert (half, any_part) == (12, 16)


def test_a_damaged_mask_is_named(tmp_path):
    (tmp_path / "mask.png").write_bytes(b"")
    records = [Record(tmp_path / "unread.png", "a", "hole", tmp_path / "mask.png")]
    with pytest.raises(UserError, match="mask.png cannot be read"):
        read_masks(records, (8, 8), "half")
