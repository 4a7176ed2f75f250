"""Held-out images, and the thresholds and normalisations that follow from them."""

import dataclasses
import json
from fractions import Fraction
from math import ceil, floor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harmoniad_jax.config import Config, EvaluationConfig
from harmoniad_jax.data.records import Dataset, Record
from harmoniad_jax.run.calibration import (
    Calibration,
    by_category,
    rows_by_category,
    score_settings,
)
from harmoniad_jax.run.normality import PIXEL_SHARES, Normality

SCORES = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=60)
# Rates as people write them, exactly: in thousandths.
RATES = st.integers(1, 400).map(lambda thousandths: Fraction(thousandths, 1000))


def records(category, count):
    return [Record(Path(f"{category}/{i:04}.png"), category) for i in range(count)]


def dataset(*counts):
    """Categories a, b, ... of so many training images, and a test image each."""
    names = [chr(ord("a") + place) for place in range(len(counts))]
    train = [r for n, count in zip(names, counts, strict=True) for r in records(n, count)]
    return Dataset(train=train, test=[Record(Path(f"{n}/test.png"), n) for n in names])


def normality(scores=(0.0, 1.0, 2.0), pixels=None):
    maps = np.linspace(0, 1, 64).reshape(1, 8, 8) if pixels is None else pixels
    return Normality.of(np.float32(maps), np.float32(scores))


# Holding images out.


@given(st.lists(st.integers(1, 60), min_size=1, max_size=4), st.floats(0, 0.99))
def test_every_image_is_trained_on_or_held_out_and_never_both(counts, share):
    before = dataset(*counts)
    after = before.hold_out(share)
    assert set(after.train).isdisjoint(after.held_out)
    # All of them, in the order that they had.
    for part in (after.train, after.held_out):
        assert list(part) == [record for record in before.train if record in set(part)]
    assert len(after.train) + len(after.held_out) == len(before.train)
    assert after.test == before.test
    assert after.categories == before.categories


@given(st.lists(st.integers(1, 400), min_size=1, max_size=3), st.floats(0.001, 0.99))
def test_the_share_is_kept_in_every_category(counts, share):
    held_out = dataset(*counts).hold_out(share).held_out
    for name, count in zip("abc", counts, strict=False):
        held = sum(record.category == name for record in held_out)
        if count == 1:
            assert held == 0
        else:
            assert 1 <= held <= count - 1
            exact = share * count
            assert abs(held - min(max(exact, 1), count - 1)) <= 0.5


@given(st.integers(2, 300), st.floats(0.001, 0.99))
def test_images_are_taken_evenly(count, share):
    """One of each of equal parts, so that no day of production is left out."""
    held_out = dataset(count).hold_out(share).held_out
    places = [int(record.image.stem) for record in held_out]
    for part, place in enumerate(places):
        first, end = (Fraction(edge * count, len(places)) for edge in (part, part + 1))
        assert floor(first) <= place < end


@given(st.integers(2, 300), st.floats(0.001, 0.99))
def test_earlier_versions_took_the_middles(count, share):
    held_out = dataset(count).hold_out(share, at_random=False).held_out
    gaps = np.diff([int(record.image.stem) for record in held_out])
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("stations", [4, 5, 10, 20])
def test_a_cycle_of_stations_is_held_out_of_at_all_of_them(stations):
    held_out = dataset(400).hold_out(0.1).held_out
    seen = {int(record.image.stem) % stations for record in held_out}
    assert len(seen) >= 0.6 * stations
    middles = dataset(400).hold_out(0.1, at_random=False).held_out
    assert len({int(record.image.stem) % 10 for record in middles}) == 1


@pytest.mark.parametrize(
    ("counts", "held"),
    [((1,), 0), ((2,), 1), ((3,), 1), ((14,), 1), ((25,), 2), ((1, 2), 1)],
)
def test_tiny_categories_keep_an_image_to_train_on(counts, held):
    after = dataset(*counts).hold_out(0.1)
    assert len(after.held_out) == held
    assert {record.category for record in after.train} == set("ab"[: len(counts)])


def test_a_share_of_nothing_holds_nothing_out():
    after = dataset(1, 2, 300).hold_out(0.0)
    assert list(after.held_out) == []
    assert after.train == dataset(1, 2, 300).train


def test_categories_do_not_disturb_each_other():
    """Also where their images are mixed, as joined sources may have them."""
    both = dataset(30, 17)
    mixed = dataclasses.replace(both, train=sorted(both.train, key=lambda r: r.image.name))
    held = mixed.hold_out(0.2).held_out
    assert set(held) == set(both.hold_out(0.2).held_out)
    alone = set(dataset(30).hold_out(0.2).held_out)
    assert {record for record in held if record.category == "a"} == alone


def test_the_default_holds_a_tenth_out_and_accepts_one_false_alarm_in_a_hundred():
    calibration = Config().calibration
    assert (calibration.holdout, calibration.false_positive_rate) == (0.1, 0.01)


# Thresholds of scores.


@given(SCORES, RATES)
def test_threshold_has_enough_scores_at_or_below_it(scores, rate):
    threshold = normality(scores).threshold(float(rate))
    below = int((np.float32(scores) <= threshold).sum())
    assert threshold in np.float32(scores)
    assert below >= min(ceil((len(scores) + 1) * (1 - rate)), len(scores))


@given(SCORES, RATES)
def test_threshold_is_no_higher_than_it_has_to_be(scores, rate):
    """The k-th smallest score, and not the one above it."""
    rank = ceil((len(scores) + 1) * (1 - rate))
    expected = np.sort(np.float32(scores))[min(max(rank, 1), len(scores)) - 1]
    assert normality(scores).threshold(float(rate)) == expected


@given(SCORES, RATES, RATES)
def test_fewer_false_alarms_need_a_higher_threshold(scores, first, second):
    low, high = sorted([float(first), float(second)])
    good = normality(scores)
    assert good.threshold(low) >= good.threshold(high)


@pytest.mark.parametrize("count", [1, 5, 98])
def test_too_few_scores_give_the_largest(count):
    good = normality(np.arange(count))
    assert good.threshold(0.01) == count - 1
    assert not good.supports(0.01)


def test_ninety_nine_scores_are_enough_for_one_in_a_hundred():
    assert normality(np.arange(99)).supports(0.01)
    assert normality(np.arange(99)).threshold(0.01) == 98
    assert normality(np.arange(199)).threshold(0.01) == 197


@pytest.mark.parametrize("count", [1, 9, 19, 99, 199, 999])
def test_whether_scores_are_enough_is_whether_one_more_would_be_outside(count):
    good = normality(np.arange(count))
    assert good.supports(1 / (count + 1))
    assert not good.supports(0.99 / (count + 1))


@pytest.mark.parametrize(
    ("count", "rate"), [(19, 0.1), (25, 0.1), (99, 0.01), (49, 0.05), (7, 0.3)]
)
def test_new_good_images_exceed_it_as_often_as_was_asked_for(count, rate):
    """Many draws of held-out and new scores, of one distribution."""
    draws = 20_000
    scores = np.random.default_rng(count).normal(size=(draws, count + 1))
    alarms = sum(
        new > Normality(tuple(np.sort(held)), ()).threshold(rate)
        for *held, new in scores.tolist()
    )
    # The exact rate of this rank, which may be below what was asked for.
    rank = ceil((count + 1) * (1 - Fraction(str(rate))))
    exact = 1 - rank / (count + 1)
    assert exact <= rate + 1e-12
    error = np.sqrt(exact * (1 - exact) / draws)
    assert abs(alarms / draws - exact) <= 4 * error


def test_scores_are_sorted_and_any_order_gives_the_same():
    assert normality([3, 1, 2]) == normality([1, 2, 3])
    assert normality([3, 1, 2]).scores == (1.0, 2.0, 3.0)


# Thresholds of pixels.


@pytest.mark.parametrize("rate", [0.1, 0.05, 0.02, 0.01, 3e-3, 1e-3, 1e-4, 1e-5])
def test_the_level_is_right_on_uniform_pixels(rate):
    pixels = (np.arange(1_000_000) + 0.5) / 1_000_000
    random = np.random.default_rng(0)
    random.shuffle(pixels)
    good = normality([0.0], pixels.reshape(4, 500, 500))
    level = good.pixel_threshold(rate)
    above = (np.float32(pixels) > np.float32(level)).mean()
    assert above == pytest.approx(rate, rel=0.02, abs=1e-6)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.floats(1e-9, 1), st.floats(1e-9, 1))
def test_fewer_pixels_need_a_higher_level(seed, first, second):
    pixels = np.random.default_rng(seed).standard_t(3, (2, 16, 16))
    good = normality([0.0, 1.0], pixels)
    low, high = sorted([first, second])
    assert good.pixel_threshold(low) >= good.pixel_threshold(high)
    assert pixels.min() <= good.pixel_threshold(low) <= np.float32(pixels.max())


def test_levels_that_are_kept_are_quantiles():
    pixels = np.random.default_rng(0).normal(size=(3, 64, 64)).astype(np.float32)
    good = normality([0, 1, 2], pixels)
    for share, level in zip(PIXEL_SHARES, good.pixel_levels, strict=True):
        assert level == pytest.approx(np.quantile(pixels, 1 - share), abs=1e-6)
        assert good.pixel_threshold(share) == pytest.approx(level, abs=1e-6)
    assert good.pixel_levels[0] == pytest.approx(np.median(pixels), abs=1e-6)


def test_rates_outside_of_what_is_kept_give_the_ends():
    good = normality()
    assert good.pixel_threshold(1e-12) == good.pixel_levels[-1]
    assert good.pixel_threshold(0.9) == good.pixel_levels[0]


# Normalisation.


@given(
    st.lists(st.integers(-1000, 1000), min_size=1, max_size=60),
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=20),
)
def test_normalised_scores_keep_their_order_and_are_shares(scores, new):
    good = normality(scores)
    threshold = good.threshold(0.05)
    normalised = np.array([good.normalise_score(s, threshold) for s in sorted(new)])
    assert (np.diff(normalised) >= 0).all()
    assert (normalised >= 0).all()
    assert (normalised < 1).all()


@given(SCORES.filter(lambda scores: max(scores) > np.median(scores) + 1e-3))
def test_zero_at_the_median_and_half_at_the_threshold(scores):
    good = normality(scores)
    threshold = good.threshold(0.001)
    assert good.normalise_score(float(np.median(good.scores)), threshold) == 0.0
    assert good.normalise_score(threshold, threshold) == pytest.approx(0.5)
    assert good.normalise_score(-1e9, threshold) == 0.0
    above = good.normalise_score(threshold + 1.0, threshold)
    assert above > 0.5


def test_a_map_is_normalised_pixel_by_pixel():
    good = normality()
    threshold = good.pixel_threshold(0.01)
    median = good.pixel_levels[0]
    values = np.float32([[median - 5, median], [threshold, 1e6]])
    normalised = good.normalise_map(values, threshold)
    assert normalised.dtype == np.float32
    np.testing.assert_allclose(normalised[0], 0.0)
    assert normalised[1, 0] == pytest.approx(0.5, abs=1e-5)
    assert 0.5 < normalised[1, 1] <= 1.0
    np.testing.assert_array_equal(
        values, np.float32([[median - 5, median], [threshold, 1e6]])
    )


@pytest.mark.parametrize("threshold", [-2.0, 0.5, 1.0, 1.0 + 1e-9, 2.5])
def test_any_threshold_divides_normalised_scores_at_a_half(threshold):
    """Thresholds may be given by hand, below what good images score too; and a single
    held-out image is median and threshold at once."""
    for good in (normality([1.0]), normality([0.0, 1.0, 2.0])):
        for score in (-3.0, 0.4, 0.6, 0.999, 1.0, 1.001, 2.0, 3.0, 100.0):
            normalised = good.normalise_score(score, threshold)
            assert 0 <= normalised < 1, (score, threshold)
            assert (normalised > 0.5) == (score > threshold), (score, threshold)


def test_maps_of_a_featureless_product_can_be_normalised():
    """Whose good pixels are all alike: median and threshold are the same."""
    good = normality([1.0], np.full((1, 8, 8), 2.0))
    threshold = good.pixel_threshold(0.001)
    with np.errstate(all="raise"):
        normalised = good.normalise_map(np.float32([1, 2, 2.001, 100]), threshold)
    assert np.isfinite(normalised).all()
    assert (np.diff(normalised) >= 0).all()
    assert ((normalised >= 0) & (normalised <= 1)).all()
    assert normalised[0] <= 0.5 < normalised[-1]


# A run's calibration.


def measured():
    random = np.random.default_rng(0)
    maps = random.normal(size=(7, 8, 8)).astype(np.float32)
    scores = random.normal(size=7).astype(np.float32)
    categories = ["b", "a", "b", "a", "b", "b", "set/c d"]
    return categories, maps, scores


def test_categories_are_measured_alone_and_together():
    categories, maps, scores = measured()
    images = by_category(categories, maps, scores)
    calibration = Calibration.measure(EvaluationConfig(), images)
    assert list(calibration.per_category) == ["a", "b", "set/c d"]
    assert calibration.overall == Normality.of(maps, scores)
    chosen = [0, 2, 4, 5]
    assert calibration.of("b") == Normality.of(maps[chosen], scores[chosen])
    assert len(calibration.of("set/c d").scores) == 1


def test_a_category_that_is_not_known_is_judged_as_all():
    calibration = Calibration.measure(EvaluationConfig(), by_category(*measured()))
    assert calibration.of(None) is calibration.overall
    assert calibration.of("never held out") is calibration.overall


def test_a_category_that_nothing_was_held_out_of_is_known_and_judged_as_all():
    categories, maps, scores = measured()
    trained = ["single", *categories]
    images = by_category(categories, maps, scores)
    calibration = Calibration.measure(EvaluationConfig(), images, trained)
    assert calibration.others == ("single",)
    assert calibration.of("single") is calibration.overall
    assert calibration.held_out("single") == 0
    assert calibration.held_out("b") == 4


def test_what_was_measured_comes_back_from_json():
    categories, maps, scores = measured()
    trained = ["single", *categories]
    images = by_category(categories, maps, scores)
    calibration = Calibration.measure(EvaluationConfig(), images, trained)
    again = Calibration.from_json(json.loads(json.dumps(calibration.to_json())))
    assert again == calibration
    assert again.fits(EvaluationConfig())
    assert again.of("a").threshold(0.1) == calibration.of("a").threshold(0.1)


def test_each_category_has_an_appearance_of_its_own():
    categories, maps, scores = measured()
    look = {
        name: [{"light": float(row)} for row in rows]
        for name, rows in rows_by_category(categories).items()
    }
    images = by_category(categories, maps, scores)
    calibration = Calibration.measure(EvaluationConfig(), images, appearance=look)
    assert calibration.of("b").appearance == {"light": (0.0, 2.0, 4.0, 5.0)}
    # Several products together look like none of them; one alone is all of them.
    assert calibration.overall.appearance == {}
    look = {"a": [{"light": float(row)} for row in range(7)]}
    images = by_category(["a"] * 7, maps, scores)
    one = Calibration.measure(EvaluationConfig(), images, appearance=look)
    assert one.overall == one.of("a") and len(one.overall.appearance["light"]) == 7
    again = Calibration.from_json(json.loads(json.dumps(calibration.to_json())))
    assert again == calibration


def test_the_look_of_one_product_is_not_that_of_others():
    """Of several products one was measured, in training or by `with_category`."""
    _, maps, scores = measured()
    images = by_category(["a"] * 7, maps, scores)
    look = {"a": [{"light": float(row)} for row in range(7)]}
    one = Calibration.measure(EvaluationConfig(), images, ["a", "b"], look)
    again = one.with_category("a", one.of("a"))
    for calibration in (one, again):
        for name in ("b", None):
            found = calibration.of(name)
            assert found.scores == calibration.of("a").scores and found.appearance == {}
        assert calibration.of("a").appearance["light"]


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(EvaluationConfig)])
def test_it_fits_as_long_as_the_scores_do(name):
    """Every setting of the evaluation changes scores, or is known not to."""
    calibration = Calibration.measure(EvaluationConfig(), by_category(*measured()))
    value = getattr(EvaluationConfig(), name)
    other = "any" if isinstance(value, str) else not value if value is True else value + 1
    changed = dataclasses.replace(EvaluationConfig(), **{name: other})
    # The statistics that `calibration_images` decides on are stored with the weights.
    harmless = {"batch_size", "mask_rule", "calibration_images", "streaming", "report"}
    harmless |= {"fpr_limit"}
    assert set(score_settings(EvaluationConfig())).isdisjoint(harmless)
    assert calibration.fits(changed) == (name in harmless)
