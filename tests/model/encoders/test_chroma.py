"""Colour is smoothed, and brightness is kept."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from harmoniad_jax.model.encoders.chroma import BRIGHTNESS, smooth_chroma

RANDOM = np.random.default_rng(0)
SIGMAS = (0.0, 0.7, 2.0)


def images(batch=2, height=17, width=23):
    return RANDOM.uniform(0, 255, (batch, height, width, 3)).astype(np.float32)


def smoothed(values, sigma):
    return np.asarray(smooth_chroma(jnp.asarray(values), sigma))


@pytest.mark.parametrize("sigma", SIGMAS)
def test_it_is_scipys_gaussian_of_each_channel_less_the_brightness(sigma):
    values = images()
    brightness = (values * BRIGHTNESS).sum(axis=-1, keepdims=True)

    def blur(values):
        reach = math.ceil(3 * sigma)
        return ndimage.gaussian_filter(
            values, (0, sigma, sigma, 0), mode="constant", radius=reach
        )

    expected = brightness + blur(values - brightness) / blur(np.ones_like(values))
    np.testing.assert_allclose(smoothed(values, sigma), expected, atol=1e-3)


def test_brightness_stays():
    values = images()
    np.testing.assert_allclose(
        smoothed(values, 2.0) @ BRIGHTNESS, values @ BRIGHTNESS, atol=1e-3
    )


def test_grey_images_stay_as_they_are():
    grey = np.repeat(images()[..., :1], 3, axis=-1)
    np.testing.assert_allclose(smoothed(grey, 2.0), grey, atol=1e-3)


def test_an_even_colour_stays_up_to_the_border():
    even = np.broadcast_to(np.float32([200, 40, 90]), (1, 9, 8, 3))
    np.testing.assert_allclose(smoothed(even, 2.0), even, atol=1e-3)


def test_of_noise_in_every_colour_that_in_brightness_is_left():
    noise = RANDOM.normal(0, 10, (1, 64, 64, 3)).astype(np.float32)
    left = smoothed(noise, 2.0)
    # The channels are almost alike, with the deviation of the brightness.
    assert left.std(axis=-1).mean() < 1.5
    assert left.std() == pytest.approx(10 * np.linalg.norm(BRIGHTNESS), rel=0.1)


def test_an_image_smaller_than_the_gaussian():
    values = images(1, 2, 3)
    found = smoothed(values, 4.0)
    np.testing.assert_allclose(found @ BRIGHTNESS, values @ BRIGHTNESS, atol=1e-3)
    colour = found - (found @ BRIGHTNESS)[..., None]
    assert np.ptp(colour, axis=(1, 2)).max() < 40 < np.ptp(values)
