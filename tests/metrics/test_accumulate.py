"""The seven figures of a category, and the mean over categories."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harmoniad_jax.data.masks import resize_mask
from harmoniad_jax.metrics import (
    METRIC_NAMES,
    aupro,
    category_metrics,
    mean_metrics,
    mean_metrics_per_dataset,
    ranking_metrics,
)


def make_category(seed=0, num_images=6):
    """Noisy maps; every second image has a defect."""
    rng = np.random.default_rng(seed)
    image_labels = np.arange(num_images) % 2 == 1
    masks = np.zeros((num_images, 8, 8), bool)
    masks[image_labels, 2:5, 3:6] = True
    maps = rng.normal(masks, 1.0).astype(np.float32)
    return maps, masks, maps.max(axis=(1, 2)), image_labels


def test_figures_stand_under_their_names():
    maps, masks, scores, labels = make_category()
    result = category_metrics(maps, masks, scores, labels)
    assert tuple(result) == (*METRIC_NAMES, "num_images")
    assert [result[name] for name in METRIC_NAMES] == [
        *ranking_metrics(scores, labels),
        *ranking_metrics(maps, masks),
        aupro(maps, masks),
    ]
    assert all(type(result[name]) is float for name in METRIC_NAMES)
    assert result["num_images"] == 6


def test_perfect_predictions_give_one():
    _, masks, _, labels = make_category()
    maps = masks.astype(np.float32)
    result = category_metrics(maps, masks, labels.astype(np.float32), labels)
    assert [result[name] for name in METRIC_NAMES] == pytest.approx([1.0] * 7)


def test_images_of_unknown_mask_count_in_the_image_figures_only():
    maps, masks, scores, labels = make_category()
    known = np.array([True, True, True, False, False, True])
    result = category_metrics(maps, masks, scores, labels, mask_known=known)
    kept = category_metrics(maps[known], masks[known], scores[known], labels[known])
    everything = category_metrics(maps, masks, scores, labels)
    for name in METRIC_NAMES:
        expected = everything if name.startswith("image") else kept
        assert result[name] == expected[name]
    assert result["num_images"] == 6


def test_a_defective_image_with_an_empty_mask_is_never_defect_free():
    maps, masks, scores, labels = make_category()
    masks[3] = False
    known = np.arange(6) != 3
    expected = category_metrics(maps, masks, scores, labels, mask_known=known)
    assert category_metrics(maps, masks, scores, labels) == expected


def test_without_any_mask_the_image_figures_remain():
    maps, masks, scores, labels = make_category()
    result = category_metrics(maps, masks, scores, labels, mask_known=np.zeros(6, bool))
    assert [math.isnan(result[name]) for name in METRIC_NAMES] == [False] * 3 + [True] * 4


@pytest.mark.parametrize("num_images", [0, 3])
def test_good_images_alone_define_nothing(num_images):
    result = category_metrics(
        np.zeros((num_images, 4, 4), np.float32),
        np.zeros((num_images, 4, 4), bool),
        np.zeros(num_images, np.float32),
        np.zeros(num_images, bool),
    )
    assert all(math.isnan(result[name]) for name in METRIC_NAMES)
    assert result["num_images"] == num_images


def test_defective_images_alone_define_the_pixel_figures():
    maps, masks, scores, labels = (array[1::2] for array in make_category())
    result = category_metrics(maps, masks, scores, labels)
    assert [math.isnan(result[name]) for name in METRIC_NAMES] == [True] * 3 + [False] * 4


def test_images_that_are_defective_everywhere_define_nothing():
    ones = np.ones((3, 4, 4))
    result = category_metrics(ones, ones > 0, np.arange(3.0), np.ones(3, bool))
    assert all(math.isnan(result[name]) for name in METRIC_NAMES)
    assert result["num_images"] == 3


def test_a_defect_smaller_than_a_cell_is_still_a_region():
    small, large = np.zeros((2, 80, 80), bool)
    small[42:44, 13:15] = True  # a fraction of one of the 8 x 8 cells
    large[20:60, 20:60] = True
    masks = np.stack([resize_mask(mask, (8, 8))[0] for mask in (small, large)])
    assert masks.sum(axis=(1, 2)).tolist() == [1, 16]
    maps = masks.astype(np.float32)
    scores, labels = np.ones(2, np.float32), np.ones(2, bool)
    found = category_metrics(maps, masks, scores, labels)
    assert found["pixel_aupro"] == pytest.approx(1.0)
    maps[0] = 1 - maps[0]  # The small one, of two regions, is found last.
    maps[1] *= 2
    missed = category_metrics(maps, masks, scores, labels)
    assert missed["pixel_aupro"] == pytest.approx(0.5)


def test_a_vanished_defect_is_left_out_of_the_pixel_figures():
    """Were its pixels taken for defect-free, finding it would count as a mistake."""
    maps, masks, scores, labels = make_category()
    lost = np.arange(6) == 5
    maps[lost] += 100 * masks[lost]
    masks[lost] = False
    result = category_metrics(maps, masks, scores, labels)
    without = category_metrics(*(array[~lost] for array in (maps, masks, scores, labels)))
    for name in METRIC_NAMES[3:]:
        assert result[name] == without[name]


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_strictly_monotone_transforms_change_nothing(seed):
    maps, masks, scores, labels = make_category(seed)
    maps, scores = maps.astype(np.float64), scores.astype(np.float64)
    expected = category_metrics(maps, masks, scores, labels)
    assert category_metrics(np.exp(maps), masks, scores**3, labels) == expected


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_swapping_polarity_mirrors_auroc_or_leaves_it(seed):
    maps, masks, scores, labels = make_category(seed)
    expected = category_metrics(maps, masks, scores, labels)
    mirrored = category_metrics(-maps, masks, -scores, labels)
    for name in ("image_auroc", "pixel_auroc"):
        assert mirrored[name] == pytest.approx(1 - expected[name], abs=1e-12)
    swapped = ranking_metrics(-scores, ~labels).auroc
    assert swapped == pytest.approx(expected["image_auroc"], abs=1e-12)
    swapped = ranking_metrics(-maps, ~masks).auroc
    assert swapped == pytest.approx(expected["pixel_auroc"], abs=1e-12)


@given(st.integers(0, 2**32 - 1), st.permutations(range(6)))
@settings(deadline=None, max_examples=30)
def test_order_of_images_changes_nothing(seed, order):
    category = make_category(seed)
    reordered = category_metrics(*(array[order] for array in category))
    assert reordered == pytest.approx(category_metrics(*category), abs=1e-12)


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, np.zeros((6, 64), np.float32), r"\(6, 64\).*allowed the same \[N, H, W\]"),
        (1, np.zeros((6, 4, 4), bool), r"received shapes \(6, 8, 8\) and \(6, 4, 4\)"),
        (2, np.zeros(5, np.float32), r"image_scores: received shape \(5,\)"),
        (3, np.zeros((6, 1), bool), r"image_labels: received shape \(6, 1\)"),
        (3, np.zeros(6, np.int64), "dtype int64, allowed bool"),
        (1, np.zeros((6, 8, 8), np.uint8), "dtype uint8, allowed bool"),
        (0, np.full((6, 8, 8), np.nan), "received 384 NaN or infinite"),
        (2, np.full(6, np.inf), "received 6 NaN or infinite"),
    ],
)
def test_bad_input_is_refused(index, value, message):
    category = list(make_category())
    category[index] = value
    with pytest.raises(ValueError, match=message):
        category_metrics(*category)


def test_broken_maps_are_refused_where_the_mask_is_unknown_too():
    maps, masks, scores, labels = make_category()
    known = np.arange(6) != 3
    maps[3, 0, 0] = np.nan
    with pytest.raises(ValueError, match="received 1 NaN or infinite"):
        category_metrics(maps, masks, scores, labels, mask_known=known)


@pytest.mark.parametrize("mask_known", [np.ones(5, bool), np.arange(6)])
def test_bad_mask_known_is_refused(mask_known):
    with pytest.raises(ValueError, match="mask_known: received"):
        category_metrics(*make_category(), mask_known=mask_known)


def test_mean_is_over_the_categories_that_define_a_figure():
    one = {name: 0.5 for name in METRIC_NAMES} | {"num_images": 10}
    two = {name: 1.0 for name in METRIC_NAMES} | {"num_images": 30}
    one |= {"pixel_ap": math.nan, "pixel_aupro": math.nan}
    two |= {"pixel_aupro": math.nan}
    mean = mean_metrics({"bottle": one, "pill": two})
    assert mean.pop("num_images") == 40
    assert math.isnan(mean.pop("pixel_aupro"))
    assert mean.pop("pixel_ap") == 1.0
    # Categories weigh the same, however many images they have.
    assert mean == {name: 0.75 for name in METRIC_NAMES if name in mean}
    assert len(mean) == 5


def test_mean_of_nothing_is_undefined():
    mean = mean_metrics({})
    assert mean.pop("num_images") == 0
    assert tuple(mean) == METRIC_NAMES
    assert all(math.isnan(value) for value in mean.values())


def random_figures(random):
    """A category's figures; a fifth of them undefined."""
    values = random.random(len(METRIC_NAMES))
    values[random.random(len(METRIC_NAMES)) < 0.2] = math.nan
    figures = dict(zip(METRIC_NAMES, values.tolist(), strict=True))
    return figures | {"num_images": int(random.integers(1, 100))}


def same(first, second):
    """Equal figures, undefined ones included."""
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_equal(first[name], second[name])


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 4), max_size=4))
@settings(deadline=None, max_examples=30)
def test_each_data_set_has_the_mean_of_its_own_categories(seed, sizes):
    """As if it had been evaluated alone, whatever order the categories are in."""
    random = np.random.default_rng(seed)
    alone = {
        f"set{index}": {f"{part}": random_figures(random) for part in range(size)}
        for index, size in enumerate(sizes)
    }
    joined = [
        (f"{name}/{category}", figures)
        for name, part in alone.items()
        for category, figures in part.items()
    ]
    joined = {joined[i][0]: joined[i][1] for i in random.permutation(len(joined))}
    found = mean_metrics_per_dataset(joined)
    assert found.keys() == alone.keys()
    for name, part in alone.items():
        same(found[name], mean_metrics(part))


def test_categories_of_one_data_set_have_no_data_set():
    figures = random_figures(np.random.default_rng(0))
    assert mean_metrics_per_dataset({"bottle": figures, "pill": figures}) == {}
    assert mean_metrics_per_dataset({}) == {}


def test_data_sets_whose_names_begin_alike_are_kept_apart():
    one = {name: 0.25 for name in METRIC_NAMES} | {"num_images": 3}
    two = {name: 0.75 for name in METRIC_NAMES} | {"num_images": 5}
    found = mean_metrics_per_dataset({"a/x": one, "ab/x/y": two, "a/y": two})
    assert list(found) == ["a", "ab"]
    assert found["ab"] == two
    assert found["a"] == {name: 0.5 for name in METRIC_NAMES} | {"num_images": 8}


def test_the_mean_over_all_weighs_categories_not_data_sets():
    one = {name: 0.0 for name in METRIC_NAMES} | {"num_images": 1}
    two = {name: 1.0 for name in METRIC_NAMES} | {"num_images": 1}
    joined = {"a/x": one, "a/y": one, "a/z": one, "b/x": two}
    means = [part["image_ap"] for part in mean_metrics_per_dataset(joined).values()]
    assert means == [0.0, 1.0]
    assert mean_metrics(joined)["image_ap"] == 0.25
