"""What an image looks like: each number follows what it is named after, and no other."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter
from scipy import ndimage

from harmoniad_jax.data.appearance import LUMA, PROPERTIES, measure_appearance


@pytest.fixture
def photo():
    """Coarse coloured noise in mid-greys: no change is cut off at black or white."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(90, 150, (12, 16, 3), np.uint8)
    return Image.fromarray(coarse).resize((64, 48), Image.Resampling.BICUBIC)


def measure(image):
    return measure_appearance(np.asarray(image))


def tinted(image, *factors):
    return (np.asarray(image) * factors).round().astype(np.uint8)


def sloped(image, across, down):
    x, y = np.linspace(-0.5, 0.5, 64), np.linspace(-0.5, 0.5, 48)
    slope = across * x[None, :, None] + down * y[:, None, None]
    return (np.asarray(image) + slope).round().astype(np.uint8)


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        (lambda one: ImageEnhance.Brightness(one).enhance(1.2), {"light": 1}),
        (lambda one: ImageEnhance.Brightness(one).enhance(0.8), {"light": -1}),
        (lambda one: ImageEnhance.Contrast(one).enhance(0.5), {"contrast": -1}),
        (lambda one: tinted(one, 1.2, 1, 1), {"red": 1}),
        (lambda one: tinted(one, 1, 1, 0.8), {"blue": -1}),
        (lambda one: one.filter(ImageFilter.GaussianBlur(2)), {"detail": -1}),
        (lambda one: sloped(one, 40, 0), {"light_across": 1}),
        (lambda one: sloped(one, 0, -40), {"light_down": -1}),
    ],
)
def test_a_change_moves_what_it_is_called(photo, change, moved):
    before, after = measure(photo), measure(change(photo))
    assert set(after) == set(PROPERTIES)
    for name, sign in moved.items():
        assert sign * (after[name] - before[name]) > (0.5 if name == "detail" else 3)
    if {"light_across", "light_down"} & set(moved):
        (name,) = moved
        assert after[name] - before[name] == pytest.approx(40 * moved[name], abs=0.5)
        other = "light_down" if name == "light_across" else "light_across"
        assert after[other] == pytest.approx(before[other], abs=0.5)
        assert after["light"] == pytest.approx(before["light"], abs=0.1)


def test_the_formulas_are_those_that_are_stated(photo):
    pixels = np.asarray(photo)
    found, luma = measure_appearance(pixels), pixels.astype(float) @ LUMA.astype(float)
    laplacian = ndimage.laplace(luma)[1:-1, 1:-1]
    assert found["light"] == pytest.approx(luma.mean(), abs=1e-3)
    assert found["contrast"] == pytest.approx(luma.std(), abs=1e-3)
    assert found["detail"] == pytest.approx(np.log(laplacian.var() + 1 / 12), abs=2e-3)
    assert found["red"] == pytest.approx(pixels[..., 0].mean() - luma.mean(), abs=2e-3)
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, 64), np.linspace(-0.5, 0.5, 48))
    design = np.stack([np.ones(x.size), x.ravel(), y.ravel()], axis=1)
    plane = np.linalg.lstsq(design, luma.ravel(), rcond=None)[0]
    slopes = [found["light_across"], found["light_down"]]
    assert slopes == pytest.approx(list(plane[1:]), abs=2e-3)


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 2, 3), (1, 9, 3), (30, 20, 3)])
def test_blank_and_tiny_images_have_numbers(shape):
    for value in (0, 255):
        found = measure_appearance(np.full(shape, value, np.uint8))
        assert np.isfinite(list(found.values())).all()
        assert found["light"] == pytest.approx(value, abs=0.01)
        assert abs(found["contrast"]) < 0.01 and abs(found["light_across"]) < 0.01
