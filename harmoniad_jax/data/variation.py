"""How good images differ from day to day: light, focus, noise, compression, position.

A view is one training image under another light, with another focus and so on. The network
learns that such differences are normal. What happens to a view follows the way of light
through a camera:

    position -> focus -> light on the part -> exposure and colour -> sensor -> curve -> JPEG

Every amount is drawn evenly between nothing and its limit, and each effect is left out of
half of the views, so that most views are mild and few are extreme. Grey images stay grey.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import io
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from harmoniad_jax.config import VariationConfig
from harmoniad_jax.data.records import Record

# The curve between light and pixels, as in sRGB, to a good approximation.
GAMMA = 2.2
# Noise of a black pixel as a share of that of a white one: the readout's.
READOUT = 0.3
BEST_QUALITY = 95
KEPT = 0.5


def view_of(record: Record, view: int, settings: VariationConfig, seed: int) -> Record:
    """A view of an image, known by a hash that decides about everything in it.

    Args:
      record: of an image, hashed.
      view: its number; 0 is the image itself.
      settings: of all views.
      seed: of the run.
    """
    if view == 0:
        return record
    amounts = dataclasses.asdict(settings)
    del amounts["views"]  # more views leave the others as they are
    text = f"{record.sha256} {view} {seed} {sorted(amounts.items())} {_program()}"
    key = hashlib.sha256(text.encode()).hexdigest()
    return dataclasses.replace(record, view=view, sha256=key, source=record.sha256)


@functools.cache
def _program() -> str:
    """What else decides about a view: this file, and the libraries that it calls."""
    source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    versions = [importlib.metadata.version(name) for name in ("numpy", "pillow", "scipy")]
    return " ".join([source, *versions])


def vary(pixels: np.ndarray, key: str, settings: VariationConfig) -> np.ndarray:
    """A view of an image.

    Args:
      pixels: [h, w, 3] uint8, as the encoder would see it.
      key: SHA-256 of the view.
      settings: the limits.

    Returns:
      [h, w, 3] uint8.
    """
    random = np.random.default_rng(list(bytes.fromhex(key)))

    def drawn(limit: float) -> float:
        """An amount of either sign, or 0."""
        amount = random.uniform(-limit, limit) * settings.strength
        return amount if random.random() < KEPT else 0.0

    height, width = pixels.shape[:2]
    is_grey = bool((pixels == pixels[..., :1]).all())
    image = pixels.astype(np.float32) / 255
    side = max(height, width)
    image = _moved(
        image,
        degrees=drawn(settings.rotation),
        offset=(drawn(settings.shift) * side, drawn(settings.shift) * side),
    )
    sigmas = abs(drawn(settings.blur)), abs(drawn(settings.blur))
    if any(sigmas):
        image = ndimage.gaussian_filter(image, (*sigmas, 0), mode="nearest")
    light = image**GAMMA
    light *= _falloff(
        (height, width),
        slope=(drawn(settings.uneven), drawn(settings.uneven)),
        bend=drawn(settings.uneven),
    )
    warmth = 0.0 if is_grey else drawn(settings.temperature)
    light *= 2 ** drawn(settings.exposure)
    light *= np.float32([1 + warmth, 1.0, 1 - warmth])
    image = np.clip(light, 0, None) ** (1 / GAMMA)
    noise = abs(drawn(settings.noise))
    if noise:
        # Light comes in photons: the brighter, the noisier, by the root.
        deviation = noise * np.sqrt(READOUT**2 + (1 - READOUT**2) * np.clip(image, 0, 1))
        channels = 1 if is_grey else 3
        image += deviation * random.standard_normal((height, width, channels), np.float32)
    middle = image.mean()
    image = middle + (1 + drawn(settings.contrast)) * (image - middle)
    image = np.clip(image, 0, 1) ** (2 ** drawn(settings.gamma))
    varied = np.round(255 * image).astype(np.uint8)
    loss = abs(drawn(settings.jpeg))
    return _compressed(varied, loss) if loss else varied


def _moved(image: np.ndarray, degrees: float, offset: tuple[float, float]) -> np.ndarray:
    """Turned around the middle and shifted by pixels; mirrored beyond the border."""
    if not degrees and not any(offset):
        return image
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = (np.array(image.shape[:2]) - 1) / 2
    start = middle - turn @ (middle + offset)
    channels = [
        ndimage.affine_transform(image[..., index], turn, start, order=1, mode="mirror")
        for index in range(image.shape[-1])
    ]
    return np.stack(channels, axis=-1)


def _falloff(shape: tuple[int, int], slope: tuple[float, float], bend: float) -> np.ndarray:
    """How light falls on a part: from side to side, and from the middle to the corners.

    Returns:
      [h, w, 1] float32, 1 on average.
    """
    y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j].astype(np.float32)
    ring = (x**2 + y**2) / 2
    falloff = 1 + slope[0] * y + slope[1] * x + bend * (ring - ring.mean())
    return np.clip(falloff, 0, None)[..., None]


def _compressed(pixels: np.ndarray, loss: float) -> np.ndarray:
    """Saved as JPEG; a loss of 0 is the best quality, of 1 the worst."""
    quality = round(BEST_QUALITY * (1 - loss))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=max(quality, 1))
    return np.asarray(Image.open(file).convert("RGB"))
