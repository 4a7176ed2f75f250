"""Maps and masks as pictures."""

import matplotlib
import numpy as np
import pytest
from drawn import draw_category

from harmoniad_jax.report.pictures import (
    THRESHOLD_COLOUR,
    ColourScale,
    colour_bar,
    colour_scale,
    contour,
    heat_colours,
    heat_map,
    overlay,
    resize,
    truth_overlay,
)


@pytest.fixture(scope="module")
def sample():
    return draw_category("bottle", good=1, defective=1, threshold=None).samples[0]


def luminance(picture):
    return picture @ np.array([0.2126, 0.7152, 0.0722])


def test_hotter_is_brighter_and_the_ends_are_kept():
    ramp = np.linspace(-1, 3, 256, dtype=np.float32)[None]
    picture = heat_map(ramp, ColourScale(-1, 3))
    assert picture.shape == (1, 256, 3) and picture.dtype == np.uint8
    assert (np.diff(luminance(picture)[0]) > -1).all()
    beyond = heat_map(np.array([[-100.0, -1, 3, 100]]), ColourScale(-1, 3))[0]
    assert (beyond[0] == beyond[1]).all() and (beyond[2] == beyond[3]).all()


def test_heat_is_close_to_a_uniform_colour_map():
    """matplotlib's "inferno", which overlays do not need."""
    share = np.linspace(0, 1, 256)
    wanted = matplotlib.colormaps["inferno"](share)[:, :3]
    np.testing.assert_allclose(heat_colours(share), wanted, atol=6 / 255)


@pytest.mark.parametrize("width", [1, 7, 300, 1024])
def test_a_colour_bar_runs_from_cold_to_hot(width):
    bar = colour_bar(width, ColourScale(0, 1), 0.5)
    assert bar.dtype == np.uint8
    assert bar.shape[1:] == (width, 3)
    if width >= 300:
        assert (bar[0, width // 2] == THRESHOLD_COLOUR).all()
        row = luminance(bar[0])
        line = np.s_[width // 2 - width // 60 : width // 2 + width // 60]
        colours = np.delete(row, line)
        assert (np.diff(colours) > -1).all()
        labels = (bar[len(bar) // 2 :] != 255).any(axis=(0, 2))
        places = np.flatnonzero(labels) / width
        # 0.2, 0.4, 0.6 and 0.8, and nothing between them.
        for place in (0.2, 0.4, 0.6, 0.8):
            assert (np.abs(places - place) < 0.02).any()
        assert (np.abs(places[:, None] - [0.2, 0.4, 0.6, 0.8]).min(axis=1) < 0.08).all()


def test_one_pixel_does_not_decide_about_the_scale():
    values = np.linspace(0, 1, 10_000, dtype=np.float32)
    low, high = colour_scale([np.append(values, 1e6)])
    assert 0 <= low < 0.02 and 0.99 < high <= 1.0


def test_a_scale_holds_all_maps_and_the_threshold():
    maps = [np.zeros((4, 4), np.float32), np.ones((9, 9), np.float32)]
    assert colour_scale(maps) == pytest.approx((0, 1))
    assert colour_scale(maps, 5.0).high == 5.0
    assert colour_scale(maps, -5.0).low == -5.0


@pytest.mark.parametrize("maps", [[], [np.full((3, 3), 7.0)]])
def test_a_scale_is_never_empty(maps):
    low, high = colour_scale(maps)
    assert low < high


def test_overlay_leaves_what_is_cool_and_covers_what_is_hot(sample):
    scale = ColourScale(0, 1)
    hot = np.zeros(sample.image.shape[:2], np.float32)
    assert (overlay(sample.image, hot, scale) == sample.image).all()
    hot[:50] = 1
    picture = overlay(sample.image, hot, scale)
    assert (picture[50:] == sample.image[50:]).all()
    assert (picture[:50] != sample.image[:50]).any(axis=2).all()


def test_overlay_outlines_what_is_above_the_threshold(sample):
    values = np.full(sample.image.shape[:2], 0.5, np.float32)
    scale = ColourScale(0, 1)
    plain = overlay(sample.image, values, scale)
    assert (overlay(sample.image, values, scale, 0.5) == plain).all()
    values[20:40, 30:60] = 0.6
    picture = overlay(sample.image, values, scale, 0.5)
    line = (picture == THRESHOLD_COLOUR).all(axis=2)
    assert line[20:40, 30:60].any() and line[20, 30:60].all()
    line[20:40, 30:60] = False
    assert not line.any()


def test_overlay_enlarges_a_small_map(sample):
    values = np.zeros((12, 12), np.float32)
    values[:6] = 1
    picture = overlay(sample.image, values, ColourScale(0, 1), 0.5)
    assert picture.shape == sample.image.shape
    assert (picture[60:] == sample.image[60:]).all()


def test_the_border_of_the_image_is_not_outlined():
    image = np.full((40, 40, 3), 128, np.uint8)
    whole = np.ones((40, 40), bool)
    assert (contour(image, whole, THRESHOLD_COLOUR) == image).all()
    assert (contour(image, ~whole, THRESHOLD_COLOUR) == image).all()


def test_truth_has_colour_on_the_defect_alone(sample):
    picture = truth_overlay(sample.image, sample.mask).astype(int)
    coloured = picture.max(axis=2) - picture.min(axis=2) > 20
    assert coloured[~sample.mask].sum() == 0
    assert coloured[sample.mask].mean() > 0.9


def test_arguments_stay_as_they_are(sample):
    before = [a.copy() for a in (sample.image, sample.anomaly_map, sample.mask)]
    overlay(sample.image, sample.anomaly_map, ColourScale(0, 1), 0.5)
    truth_overlay(sample.image, sample.mask)
    after = (sample.image, sample.anomaly_map, sample.mask)
    assert all((a == b).all() for a, b in zip(after, before, strict=True))


def test_resize_is_linear_and_keeps_the_range():
    values = np.array([[0.0, 1.0]], np.float32)
    larger = resize(values, (3, 8))
    assert larger.shape == (3, 8) and larger.dtype == np.float32
    assert (np.diff(larger[0]) >= 0).all() and larger.min() == 0 and larger.max() == 1
