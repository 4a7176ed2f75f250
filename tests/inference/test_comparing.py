"""Comparisons with good images: seldom wrong, and about what has changed."""

import numpy as np
import pytest

from harmoniad_jax.data.appearance import PROPERTIES
from harmoniad_jax.inference.drift import LEVEL, SCORE, compare
from harmoniad_jax.run.normality import GoodImages, Normality, merged


def appearances(rng, count, **moved):
    """Numbers of images; they hang together, as those of real images do."""
    common = rng.normal(size=count)
    columns = {
        name: common + rng.normal(size=count) + moved.get(name, 0.0) for name in PROPERTIES
    }
    return [
        {name: float(values[row]) for name, values in columns.items()}
        for row in range(count)
    ]


def good_images(rng, count, **moved):
    look = appearances(rng, count, **moved)
    return Normality.of([np.ones((1, 1))] * count, rng.normal(size=count), look)


def compared(rng, **moved):
    shift = moved.pop(SCORE, 0.0)
    scores = rng.normal(size=50) + shift
    return compare(good_images(rng, 30), scores, appearances(rng, 50, **moved))


def test_a_change_is_seldom_reported_where_there_is_none():
    """At most one comparison in a hundred, whatever is compared at once."""
    rng = np.random.default_rng(0)
    alarms = [any(one.has_changed for one in compared(rng)) for _ in range(400)]
    assert np.mean(alarms) <= LEVEL + 3 * (LEVEL * (1 - LEVEL) / 400) ** 0.5


@pytest.mark.parametrize(("name", "words"), [("light", "brighter"), ("detail", "sharp")])
@pytest.mark.parametrize("sign", [1, -1])
def test_what_has_changed_is_named(name, words, sign):
    rng = np.random.default_rng(0)
    found = [
        {one.name: one for one in compared(rng, **{name: 3.0 * sign})} for _ in range(40)
    ]
    seen = [one[name] for one in found if one[name].has_changed]
    assert len(seen) > 0.9 * len(found)
    assert all(one.higher == (sign > 0) for one in seen)
    others = [other for one in found for other in one.values() if other.name != name]
    assert np.mean([other.has_changed for other in others]) <= LEVEL
    if name == "light":
        assert {one.in_words for one in seen} == {words if sign > 0 else "darker"}


def test_scores_are_compared_too():
    found = {one.name: one for one in compared(np.random.default_rng(0), score=3.0)}
    assert found[SCORE].has_changed and found[SCORE].in_words == "with higher scores"
    assert len(found) == 1 + len(PROPERTIES)


def test_where_the_appearance_is_not_known_scores_alone_are_compared():
    rng = np.random.default_rng(0)
    new, older = appearances(rng, 50, light=9.0), Normality(tuple(range(30)), (0.0,))
    for good, look in ((older, new), (good_images(rng, 30), [])):
        (one,) = compare(good, list(range(30)), look)
        assert one.name == SCORE
    assert not compare(older, list(range(30)), new)[0].has_changed


def test_the_appearance_is_stored_where_there_is_one():
    rng = np.random.default_rng(0)
    a, b, older = good_images(rng, 5), good_images(rng, 4), Normality((1.0,), (0.0,))
    mixed = merged([a, b])
    assert mixed.appearance == {} and merged([a]) == a
    good = GoodImages({}, mixed, {"a": a, "b": b, "older": older})
    values = good.to_json()
    assert GoodImages.from_json(values) == good
    # What has none is written as before it was known of, so that fingerprints stay.
    assert set(values["overall"]) == set(values["per_category"]["older"])
    assert set(values["overall"]) == {"scores", "pixel_levels"}
