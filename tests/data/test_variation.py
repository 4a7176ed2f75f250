"""Views of good images: what decides about them, and what they never do."""

import collections
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harmoniad_jax.config import VariationConfig
from harmoniad_jax.data.order import training_order
from harmoniad_jax.data.records import EncodedImage, Record
from harmoniad_jax.data.variation import vary, view_of

LIMITS = VariationConfig(views=3)
NOTHING = {
    field.name: 0.0
    for field in dataclasses.fields(VariationConfig)
    if field.name not in ("views", "strength")
}
EFFECTS = tuple(NOTHING)


def record(name="a", category="cap"):
    return Record(EncodedImage(f"{name}.png", b""), category, sha256=f"{ord(name):064x}")


def key(view=1, name="a", limits=LIMITS, seed=0):
    return view_of(record(name), view, limits, seed).sha256


def keys(count=16):
    return [key(view) for view in range(1, count + 1)]


def photo(height=24, width=36, channels=3):
    """Smooth, of middle brightness."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    planes = [90 + 60 * x + 30 * np.sin(4 * y + c) for c in range(channels)]
    return np.stack(planes, -1).round().astype(np.uint8)


def only(effect, limit):
    return VariationConfig(views=1, **{**NOTHING, effect: limit})


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 1000), st.integers(1, 30), st.integers(1, 30))
def test_a_view_is_an_image_of_the_same_shape_and_always_the_same(view, height, width):
    image = photo(height, width)
    before = image.copy()
    first = vary(image, key(view), LIMITS)
    assert (first.dtype, first.shape) == (np.uint8, image.shape)
    np.testing.assert_array_equal(first, vary(image, key(view), LIMITS))
    np.testing.assert_array_equal(image, before)


def test_views_differ_by_number_image_seed_and_settings():
    found = {
        *(key(view) for view in range(4)),
        key(name="b"),
        key(seed=1),
        key(limits=dataclasses.replace(LIMITS, noise=0.01)),
    }
    assert len(found) == 7
    # More views leave the others as they are: what is encoded stays of use.
    assert key(limits=dataclasses.replace(LIMITS, views=9)) == key()


def test_no_strength_changes_nothing():
    image = photo()
    for strength, limits in ((0.0, LIMITS), (1.0, VariationConfig(**NOTHING))):
        limits = dataclasses.replace(limits, strength=strength)
        for one in keys():
            np.testing.assert_allclose(vary(image, one, limits), image, atol=1)


@pytest.mark.parametrize("effect", EFFECTS)
def test_every_effect_changes_about_half_of_the_views(effect):
    image = photo()
    limits = dataclasses.replace(only(effect, getattr(LIMITS, effect)), strength=3.0)
    changed = [
        np.abs(vary(image, one, limits) - image.astype(int)).max() > 1 for one in keys(40)
    ]
    # Two or three draws of one effect: one of them is enough.
    assert 10 <= sum(changed) <= 39
    weaker = dataclasses.replace(limits, strength=1.0)

    def mean_change(limits):
        return np.mean([np.abs(vary(image, k, limits) - image.astype(int)) for k in keys()])

    assert mean_change(limits) > mean_change(weaker)


def test_grey_stays_grey():
    grey = np.repeat(photo(channels=1), 3, axis=-1)
    for one in keys(40):
        view = vary(grey, one, LIMITS)
        assert (view == view[..., :1]).all()


def test_exposure_is_in_stops_of_light():
    grey = np.full((8, 8, 3), 100, np.uint8)
    ratios = [
        (vary(grey, one, only("exposure", 1.0)).mean() / 100) ** 2.2 for one in keys(200)
    ]
    assert 0.49 < min(ratios) < 0.6
    assert 1.7 < max(ratios) < 2.05


def test_a_shift_is_a_share_of_the_longer_side():
    spot = np.zeros((33, 65, 3), np.uint8)
    spot[16, 32] = 255
    places = []
    for one in keys(100):
        view = vary(spot, one, only("shift", 0.1)).astype(float).sum(axis=2)
        rows, columns = np.indices(view.shape)
        places.append([(view * rows).sum() - 16 * view.sum(), (view * columns).sum()])
        places[-1] = [places[-1][0] / view.sum(), places[-1][1] / view.sum() - 32]
    farthest = np.abs(places).max(axis=0)
    assert ((farthest > 5) & (farthest < 6.6)).all()


def order_of(**options):
    records = [record(name) for name in "abcdefgh"]
    return training_order(records, seed=3, **options)


def test_without_views_the_order_is_what_it_was():
    plain = order_of()
    assert [plain[i] for i in range(40)] == [order_of(views=0)[i] for i in range(40)]


@pytest.mark.parametrize("class_balanced", [False, True])
def test_training_draws_every_view_alike(class_balanced):
    def views(one, number):
        return view_of(one, number, LIMITS, 0)

    options = {"class_balanced": class_balanced}
    order = order_of(views=3, view_of=views, **options)
    drawn = [order[i] for i in range(400)]
    counts = collections.Counter(one.view for one in drawn)
    assert all(65 <= counts[view] <= 135 for view in range(4))
    # By place alone, so that a killed run goes on with the same views.
    assert order[377] == drawn[377]
    # The images come in the order that they come in without views.
    plain = order_of(**options)
    images = [one.source or one.sha256 for one in drawn]
    assert images == [plain[i].sha256 for i in range(400)]
