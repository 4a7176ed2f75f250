"""The shape of each category's input: its aspect, its patches, and how it is found."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from harmoniad_jax.config import Config
from harmoniad_jax.data.order import training_batches, training_order
from harmoniad_jax.data.preprocess import Preprocessor, measure_preprocessor, scale_to
from harmoniad_jax.data.records import EncodedImage, Record
from harmoniad_jax.data.shapes import MOST_ASPECT, input_shape, nearest_shape, share_rows
from harmoniad_jax.errors import UserError
from harmoniad_jax.run.stored import parse_stored

PATCH = 14
SIDE = 16 * PATCH
SHAPES = {"tall": (8, 2), "square": (4, 4), "wide": (2, 8)}


@pytest.mark.parametrize(
    ("aspect", "grid"),
    [(1, (16, 16)), (0.93, (16, 16)), (1.08, (16, 16))]
    + [(2.46, (10, 25)), (1 / 2.46, (25, 10)), (2, (11, 23)), (0.75, (19, 13))]
    + [(8, (6, 45)), (100, (6, 45)), (0.01, (45, 6))],
)
def test_shape_of_an_aspect(aspect, grid):
    assert input_shape(aspect, SIDE, PATCH) == tuple(PATCH * cells for cells in grid)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(aspect=st.floats(0.05, 20), cells=st.integers(12, 40), patch=st.integers(1, 32))
def test_a_shape_has_the_aspect_and_as_many_patches(aspect, cells, patch):
    height, width = input_shape(aspect, cells * patch, patch)
    assert height % patch == width % patch == 0
    assert 0.9 < height * width / (cells * patch) ** 2 < 1.11
    kept = min(max(aspect, 1 / MOST_ASPECT), MOST_ASPECT)
    # Half a step of an eighth of an octave, and half a patch along each axis.
    rounding = 1 + 0.5 * (patch / height + patch / width) + 0.01
    assert 1 / rounding / 1.091 < width / height / kept < 1.091 * rounding
    assert input_shape(1 / aspect, cells * patch, patch) == (width, height)


def test_shapes_are_few():
    """Every one costs a compilation."""
    aspects = np.geomspace(0.01, 100, 5000)
    assert len({input_shape(aspect, SIDE, PATCH) for aspect in aspects}) == 25


def test_the_smallest_input_has_two_patches_a_side():
    assert input_shape(50, 2 * PATCH, PATCH) == (2 * PATCH, 6 * PATCH)


@pytest.mark.parametrize(
    ("aspect", "nearest"), [(0.1, "tall"), (0.6, "square"), (1.9, "square"), (2.1, "wide")]
)
def test_nearest_shape_is_nearest_as_a_ratio(aspect, nearest):
    assert nearest_shape(aspect, SHAPES.values()) == SHAPES[nearest]


def test_of_two_shapes_that_are_as_near_always_the_same_is_taken():
    shapes = [(2, 8), (8, 2)]
    assert nearest_shape(1.0, shapes) == nearest_shape(1.0, shapes[::-1]) == (2, 8)


def records_of(folder, category, sizes):
    records = []
    for index, size in enumerate(sizes):
        path = folder / f"{category}{index}.png"
        Image.new("L", size, index).save(path)
        records.append(Record(path, category))
    return records


def measured(records, **settings):
    return measure_preprocessor(records, side=SIDE, patch=PATCH, **settings)


def test_each_category_has_the_shape_of_its_median_aspect(tmp_path):
    records = [
        *records_of(tmp_path, "rod", [(50, 20), (51, 20), (20, 50)]),
        *records_of(tmp_path, "cap", [(30, 30)]),
    ]
    preprocessor = measured(records)
    assert preprocessor.shapes == {"cap": (SIDE, SIDE), "rod": (10 * PATCH, 25 * PATCH)}
    assert preprocessor.load(records[0].image, "rod").shape == (10 * PATCH, 25 * PATCH, 3)
    # Without a patch there is nothing to keep: everything is squashed.
    squashing = measure_preprocessor(records, side=SIDE)
    assert squashing == Preprocessor(SIDE)
    assert squashing.load(records[0].image, "rod").shape == (SIDE, SIDE, 3)


def test_an_upright_photo_on_its_side_is_measured_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    Image.new("RGB", (60, 30)).save(path, exif=exif)
    (shape,) = measured([Record(path, "a")]).shapes.values()
    assert shape == (23 * PATCH, 11 * PATCH)
    assert measured([Record(EncodedImage("a.jpg", path.read_bytes()), "a")]).shapes == {
        "a": shape
    }


def test_an_image_that_cannot_be_read_is_left_out_of_the_measurement(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    records = [Record(tmp_path / "broken.png", "a")]
    assert measured(records).shapes == {"a": (SIDE, SIDE)}
    records += records_of(tmp_path, "a", [(80, 40)])
    assert measured(records).shapes == {"a": (11 * PATCH, 23 * PATCH)}


@pytest.fixture
def preprocessor():
    return Preprocessor(SIDE, shapes=SHAPES)


def test_shapes_are_stored(preprocessor):
    stored = json.loads(json.dumps(preprocessor.to_json()))
    assert Preprocessor.from_json(stored) == preprocessor
    # A run of an earlier version squashes.
    del stored["shapes"]
    assert Preprocessor.from_json(stored) == Preprocessor(SIDE)


def test_a_run_of_an_earlier_version_squashes():
    values = Config().to_dict()
    del values["data"]["fit"]
    assert parse_stored(values).data.fit == "squash"


def test_an_unknown_product_has_the_nearest_shape_of_training(preprocessor):
    tall = Image.new("L", (10, 70))
    for category in (None, "never trained"):
        assert preprocessor.scale(tall, category).shape == (8, 2, 3)
    assert preprocessor.scale(tall, "wide").shape == (2, 8, 3)
    wide_alone = Preprocessor(SIDE, shapes={"wide": (2, 8)})
    assert wide_alone.scale(tall).shape == (2, 8, 3)


def test_the_image_is_scaled_whole_to_its_shape():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 100), np.uint8))
    expected = image.resize((25, 10), Image.Resampling.BICUBIC).convert("RGB")
    np.testing.assert_array_equal(scale_to(image, (10, 25)), np.asarray(expected))


# The order of training.


def mixed(counts):
    return [
        Record(EncodedImage(f"{name}{index}", b""), name)
        for name, count in counts.items()
        for index in range(count)
    ]


def shape_of(record):
    return SHAPES[record.category]


COUNTS = {"tall": 9, "square": 30, "wide": 12}
ROWS = {SHAPES["square"]: 4, SHAPES["tall"]: 1, SHAPES["wide"]: 3}
B = sum(ROWS.values())


def order_of(records, **settings):
    settings = {"seed": 3, "shape_of": shape_of, "rows": ROWS} | settings
    return training_order(records, **settings)


def batches_of(order, count):
    return [[order[B * batch + row] for row in range(B)] for batch in range(count)]


shape_weights = st.dictionaries(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 1000),
    min_size=1,
    max_size=6,
)


@given(shape_weights, st.integers(6, 64))
@settings(deadline=None, max_examples=50)
def test_rows_are_shared_out_by_images(weights, size):
    rows = share_rows(weights, size)
    assert list(rows) == sorted(weights) and sum(rows.values()) == size
    total = sum(weights.values())
    # One more than its share at most, but for those that would have no row.
    for shape, count in rows.items():
        assert 1 <= count <= max(weights[shape] / total * size + 1, 1)


def test_rows_are_exact_where_they_can_be():
    assert share_rows({(2, 8): 10, (4, 4): 50, (8, 2): 20}, 16) == {
        (2, 8): 2,
        (4, 4): 10,
        (8, 2): 4,
    }


def test_a_batch_needs_a_row_of_every_shape():
    shapes = {(1, n): 5 for n in range(1, 4)}
    with pytest.raises(UserError, match="at least 3, or config.data.fit=squash"):
        share_rows(shapes, 2)


def test_every_batch_has_the_rows_of_every_shape():
    expected = [shape for shape, count in ROWS.items() for _ in range(count)]
    for batch in batches_of(order_of(mixed(COUNTS)), 60):
        assert [shape_of(record) for record in batch] == expected


def test_images_of_a_shape_are_read_equally_often():
    records = mixed(COUNTS)
    read = [r for batch in batches_of(order_of(records), 90) for r in batch]
    for name, count in COUNTS.items():
        epochs = {read.count(record) for record in records if record.category == name}
        whole = 90 * ROWS[SHAPES[name]] / count
        assert epochs <= {int(whole), int(whole) + 1}


@pytest.mark.parametrize("balanced", [False, True])
def test_shapes_are_shuffled_apart(balanced):
    """Or images of two shapes would meet in the same 12 pairs in every epoch."""
    records = mixed({"square": 12, "wide": 12})
    rows = {SHAPES["square"]: 1, SHAPES["wide"]: 1}
    order = order_of(records, rows=rows, class_balanced=balanced)
    met = {(order[2 * batch], order[2 * batch + 1]) for batch in range(60)}
    assert len(met) > 36
    # The first shape is read as it would be alone.
    alone = training_order(records[:12], seed=3, class_balanced=balanced)
    assert [order[2 * row] for row in range(60)] == [alone[row] for row in range(60)]


def test_balanced_categories_are_balanced_in_their_shape():
    records = mixed(COUNTS)
    more = [dataclasses.replace(r, category="cube") for r in mixed({"square": 3})]
    shapes = {**SHAPES, "cube": SHAPES["square"]}
    order = order_of(
        records + more, class_balanced=True, shape_of=lambda record: shapes[record.category]
    )
    read = [r.category for batch in batches_of(order, 60) for r in batch]
    assert read.count("square") == read.count("cube") == 120


def test_one_shape_is_ordered_as_ever():
    records = mixed({"square": 20, "tall": 9})
    for balanced in (False, True):
        plain = training_order(records, seed=3, class_balanced=balanced)
        order = order_of(records, class_balanced=balanced, shape_of=lambda record: (4, 4))
        assert [order[i] for i in range(100)] == [plain[i] for i in range(100)]


@pytest.mark.parametrize("filled", [None, (4, 4, 4), (8, 4, 8)])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_read_the_same_batches_and_continue_after_any(processes, filled):
    """Filled up with the last row of a shape, where its rows do not divide."""
    records = mixed(COUNTS)
    names = {record: index for index, record in enumerate(records)}
    rows = ROWS if filled else {shape: 4 * count for shape, count in ROWS.items()}
    order = order_of(records, rows=rows)
    order = order[: len(order) // 2]
    counts, size = tuple(rows.values()), sum(rows.values())
    expected = []
    for first in range(0, 9 * size, size):
        batch = [names[order[first + row]] for row in range(size)]
        for count, full in zip(counts, filled or counts, strict=True):
            own, batch = batch[:count], batch[count:]
            expected += own + (full - count) * own[-1:]

    def iterators():
        return [
            training_batches(
                order,
                lambda record: np.int32(names[record]),
                rows=counts,
                filled=filled,
                threads=2,
                process_index=index,
                process_count=processes,
            )
            for index in range(processes)
        ]

    def batch(of_processes):
        """What the processes read of one batch, joined shape by shape."""
        parts = zip(*(next(one) for one in of_processes), strict=True)
        return np.concatenate([row for part in parts for row in part]).tolist()

    first = iterators()
    found = [row for _ in range(5) for row in batch(first)]
    second = iterators()
    for one, other in zip(first, second, strict=True):
        other.set_state(one.get_state())
    found += [row for _ in range(4) for row in batch(second)]
    assert found == expected
