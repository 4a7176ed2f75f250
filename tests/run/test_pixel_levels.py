"""Levels of pixels: exact for few, within a bin for many."""

import numpy as np
import pytest

from harmoniad_jax.run import levels
from harmoniad_jax.run.levels import PIXEL_SHARES, PixelLevels


def maps_of(kind, count=40, side=32):
    random = np.random.default_rng(0)
    values = random.standard_normal((count, side, side)).astype(np.float32)
    return {"normal": values, "tails": np.exp(3 * values), "ties": np.round(values)}[kind]


def levels_of(maps):
    collected = PixelLevels()
    for one in maps:
        collected.add(one)
    return np.array(collected.compute())


@pytest.mark.parametrize("kind", ["normal", "tails", "ties"])
def test_few_pixels_have_exact_levels(kind):
    maps = maps_of(kind)
    np.testing.assert_array_equal(levels_of(maps), np.quantile(maps, 1 - PIXEL_SHARES))


@pytest.mark.parametrize("kind", ["normal", "tails", "ties"])
@pytest.mark.parametrize("folded", [1, 5000])
def test_many_pixels_have_levels_within_a_bin(kind, folded, monkeypatch):
    monkeypatch.setattr(levels, "MOST_PIXELS", 3000)
    monkeypatch.setattr(levels, "FOLDED_PIXELS", folded)
    maps = maps_of(kind)
    # The pixels on both sides of the exact level: between two of them any level is right.
    below, above = (
        np.quantile(maps, 1 - PIXEL_SHARES, method=side) for side in ("lower", "higher")
    )
    found = levels_of(maps)
    assert (found >= below - np.abs(below) / 8192 - 2.0**-20).all()
    assert (found <= above + np.abs(above) / 8192 + 2.0**-20).all()
    assert (np.diff(found) >= 0).all()


def test_memory_does_not_grow_with_the_maps(monkeypatch):
    monkeypatch.setattr(levels, "MOST_PIXELS", 3000)
    monkeypatch.setattr(levels, "FOLDED_PIXELS", 2000)
    collected = PixelLevels()
    for one in maps_of("normal"):
        collected.add(one)
        assert sum(map(len, collected._waiting)) <= 3000
