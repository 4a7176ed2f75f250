"""A procedural demo data set of three products, in the MVTec folder layout.

Every image has a random generator of its own, so no image depends on another one, and a
defective image equals its clean twin outside the mask, up to the sensor's noise.
Lengths are in units of half the image side; (0, 0) is the middle of the image.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import uuid
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

NOTICEABLE = 0.06  # a pixel whose colour changes by more than this is in the mask
SMALLEST_SIDE = 48  # a smaller image cannot show the threads of the fabric


@dataclasses.dataclass(frozen=True)
class DemoSpec:
    """Image side in pixels, images per category, and seed of the demo data set."""

    side: int = 160
    train_per_category: int = 80
    test_good_per_category: int = 20
    test_per_defect: int = 8
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Product:
    """A clean product in even light.

    surface: float32 [S, S, 3], colours of about [0, 1].
    beneath: float32 [S, S, 3], what shows where a piece of the product is missing.
    body: bool [S, S], where the product is; defects stay on it.
    """

    surface: np.ndarray
    beneath: np.ndarray
    body: np.ndarray


@dataclasses.dataclass(frozen=True)
class Scene:
    """A product and its clean twin in the same light, before the sensor's noise.

    clean, image: float32 [S, S, 3] in [0, 1]; equal outside the mask.
    mask: bool [S, S], the pixels that the defect changed noticeably, with the gaps of
        a few pixels between them filled; empty without a defect.
    body: bool [S, S], where the product is; contains the mask.
    """

    clean: np.ndarray
    image: np.ndarray
    mask: np.ndarray
    body: np.ndarray


# Drawing tools. A shape is a signed distance [S, S]: negative inside, positive outside.


def _grid(side):
    centres = (2 * np.arange(side, dtype=np.float32) + 1) / side - 1
    return np.meshgrid(centres, centres)


def _turned(x, y, angle):
    cosine, sine = np.cos(angle, dtype=np.float32), np.sin(angle, dtype=np.float32)
    return x * cosine + y * sine, y * cosine - x * sine


def _placed_grid(random, side, shift, turn):
    """Coordinates (x, y) of a product that lies slightly shifted and turned."""
    x, y = _grid(side)
    x, y = x - random.uniform(-shift, shift), y - random.uniform(-shift, shift)
    return _turned(x, y, random.uniform(-turn, turn))


def _box(x, y, half_width, half_height, corner=0.0):
    across, along = np.abs(x) - half_width + corner, np.abs(y) - half_height + corner
    outside = np.hypot(np.maximum(across, 0), np.maximum(along, 0))
    return outside + np.minimum(np.maximum(across, along), 0) - corner


def _paint(image, shape, colour, opacity=1.0):
    """The image [S, S, 3] with a shape in a colour ([3] or [S, S, 3]) laid over it."""
    coverage = opacity * np.clip(0.5 - shape * (len(shape) / 2), 0, 1)
    return image + coverage[..., None] * (np.asarray(colour, np.float32) - image)


def _noise(random, side, size):
    """Smooth noise of unit variance, float32 [S, S]; size is one length or (y, x)."""
    noise = random.standard_normal((side, side), np.float32)
    sigma = np.multiply(size, side / 2)
    noise = ndimage.gaussian_filter(noise, sigma, mode="wrap", truncate=3)
    return noise / noise.std()


def _tint(random, colour, amount=0.03):
    return np.float32(colour) + random.uniform(-amount, amount, 3).astype(np.float32)


def _table(random, shape, grey, tint):
    """The plain ground that a product lies on, with the product's soft shadow."""
    side = len(shape)
    shadow = np.roll(shape < 0, side // 40, axis=(0, 1)).astype(np.float32)
    shade = 1 - 0.5 * ndimage.gaussian_filter(shadow, side * 0.015)
    grain = 1 + 0.03 * _noise(random, side, 0.03)
    return (grey * grain * shade)[..., None] * _tint(random, tint)


# Clean products.


def draw_fabric(random, side) -> Product:
    """A plain weave over the whole image; the horizontal threads can come off."""
    x, y = _placed_grid(random, side, shift=0.012, turn=0.01)
    period, width = random.uniform(0.1245, 0.1255), random.uniform(0.86, 0.92)
    column = x / period + 0.04 * _noise(random, side, 0.15)
    row = y / period + 0.04 * _noise(random, side, 0.15)
    warp_on_top = (np.floor(column) + np.floor(row)) % 2 == 0
    in_column, in_row = 2 * (column % 1) - 1, 2 * (row % 1) - 1

    def thread(across, along, on_top):
        height = np.sqrt(np.clip(1 - (across / width) ** 2, 0, 1))
        height = height * np.where(on_top, 0.75 + 0.25 * np.cos(1.4 * along), 0.4)
        return height[..., None]

    warp = thread(in_column, in_row, warp_on_top)
    weft = thread(in_row, in_column, ~warp_on_top)
    alone = 0.8 * thread(in_column, in_row, True)
    upright_fibres = 1 + 0.07 * _noise(random, side, (0.05, 0.006))[..., None]
    level_fibres = 1 + 0.07 * _noise(random, side, (0.006, 0.05))[..., None]
    blue = upright_fibres * _tint(random, [0.17, 0.24, 0.42], 0.01)
    cream = level_fibres * _tint(random, [0.28, 0.34, 0.46], 0.01)
    surface = 0.06 + np.where(warp > weft, warp * blue, weft * cream)
    return Product(surface, 0.75 - alone * blue, np.ones((side, side), bool))


def draw_washer(random, side) -> Product:
    """A turned brass ring with two grooves and a keyway, on a dark table."""
    x, y = _placed_grid(random, side, shift=0.012, turn=0.02)
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    hole = np.minimum(radius - 0.33, _box(x, y + 0.33, 0.07, 0.10))
    shape = np.maximum(radius - 0.80, -hole)

    # Turning marks reflect each lamp as two opposite bright sectors.
    lamp = random.uniform(0.7, 0.9)
    glare = 0.10 * np.cos(angle - lamp) ** 6 + 0.05 * np.cos(angle - lamp - 1.3) ** 10
    marks = np.interp(radius, np.linspace(0, 1, 200), random.standard_normal(200))
    metal = 0.78 + glare + 0.02 * marks + 0.015 * _noise(random, side, 0.02)
    for ring in (0.47, 0.66):
        across = (radius - ring) / 0.02
        metal -= 0.12 * np.exp(-(across**2)) * (1 + across)
    edge = np.exp(-(((shape + 0.03) / 0.02) ** 2))
    metal += 0.2 * edge * np.cos(angle - lamp + np.where(radius < 0.6, 0, np.pi))
    table = _table(random, shape, 0.10, [1.0, 1.05, 1.15])
    brass = metal[..., None] * _tint(random, [1.10, 0.88, 0.45], 0.01)
    return Product(_paint(table, shape, brass), table, shape < 0)


def draw_tablet(random, side) -> Product:
    """An oblong speckled pill with a score line and an embossed H, on a tray."""
    x, y = _placed_grid(random, side, shift=0.012, turn=0.02)
    half_height = random.uniform(0.435, 0.445)
    shape = _box(x, y, 0.80, half_height, corner=half_height - 0.01)
    height = 0.16 * np.sqrt(1 - np.clip(1 + shape / 0.22, 0, 1) ** 2)
    bars = _box(np.abs(x - 0.36) - 0.11, y, 0.028, 0.17)
    letter = np.minimum(bars, _box(x - 0.36, y, 0.11, 0.028))
    groove = np.minimum(letter, np.abs(x + 0.06) - 0.012)
    height -= 0.035 * np.clip(0.5 - groove / 0.04, 0, 1)

    # The lamp is at the upper left: slopes that face it are brighter.
    slope_y, slope_x = np.gradient(ndimage.gaussian_filter(height, side / 200))
    shade = np.clip(0.95 + (0.18 * slope_x + 0.24 * slope_y) * side / 2, 0.35, 1.15)
    specks = np.clip(_noise(random, side, 0.012) - 1.7, 0, 1)
    shade *= 1 - 0.35 * specks + 0.015 * _noise(random, side, 0.015)
    coat = shade[..., None] * _tint(random, [0.95, 0.80, 0.66], 0.01)
    table = _table(random, shape, 0.30, [0.85, 1.0, 1.15])
    crumbs = 0.6 + 0.1 * _noise(random, side, 0.03) + 0.06 * _noise(random, side, 0.01)
    core = crumbs[..., None] * np.float32([0.82, 0.76, 0.66])
    return Product(_paint(table, shape, coat), _paint(table, shape, core), shape < 0)


# Defects. Each takes a clean product and returns its spoilt surface [S, S, 3].


def _around(random, product):
    """Coordinates (x, y) about a random point of the product."""
    x, y = _grid(len(product.body))
    point = random.choice(np.flatnonzero(product.body))
    # Slightly inwards, or the image border would cut many defects of the fabric.
    return x - 0.92 * x.flat[point], y - 0.92 * y.flat[point]


def _size(random, smallest, largest):
    """A random length, uniform in its logarithm: mostly small ones, some large."""
    return smallest * (largest / smallest) ** random.uniform(0, 1)


def _blob(random, product, radius):
    """An irregular round shape somewhere on the product."""
    x, y = _around(random, product)
    angle = np.arctan2(y, x)
    for order in (2, 3, 5, 7):
        depth, phase = random.uniform(0, 0.4) / order, random.uniform(0, 2 * np.pi)
        radius = radius * (1 + depth * np.cos(order * angle + phase))
    return np.hypot(x, y) - radius


def add_scratch(random, product):
    """A thin curved line, dark on a bright product and bright on a dark one."""
    x, y = _around(random, product)
    x, y = _turned(x, y, random.uniform(0, 2 * np.pi))
    step, bend = _size(random, 0.25, 1.3) / 80, random.uniform(-0.015, 0.015)
    thickness = random.uniform(0.015, 0.03)
    shape = np.full_like(x, np.inf)
    for taper in np.sqrt(np.sin(np.linspace(0.1, np.pi - 0.1, 80))):
        shape = np.minimum(shape, np.hypot(x, y) - thickness * taper)
        x, y = _turned(x - step, y, bend)
    shade = 0.04 if product.surface[product.body].mean() > 0.5 else 0.95
    return _paint(product.surface, shape, [shade] * 3, 0.9)


def add_spot(random, product):
    """A blob of rust, oil, dust or ink."""
    rust, oil, dust, ink = [0.4, 0.18, 0.05], [0.04] * 3, [0.92] * 3, [0.1, 0.2, 0.7]
    texture = 1 + 0.12 * _noise(random, len(product.body), 0.02)[..., None]
    dirt = texture * _tint(random, random.choice([rust, oil, dust, ink]))
    shape = _blob(random, product, _size(random, 0.08, 0.25))
    return _paint(product.surface, shape, dirt, random.uniform(0.75, 0.95))


def add_missing(random, product):
    """A piece has broken off: what is beneath shows."""
    shape = _blob(random, product, _size(random, 0.12, 0.30))
    return _paint(product.surface, shape, product.beneath)


def add_misplaced(random, product):
    """A round patch of the surface is twisted and pulled aside."""
    x, y = _around(random, product)
    reach = _size(random, 0.25, 0.5)
    grip = np.clip(2 - 2 * np.hypot(x, y) / reach, 0, 1)  # 1 up to half the reach
    direction, pull = random.uniform(0, 2 * np.pi), random.uniform(0.4, 0.55) * reach
    source_x, source_y = _turned(x, y, random.uniform(-0.7, 0.7) * grip)
    source_x += pull * np.cos(direction) * grip
    source_y += pull * np.sin(direction) * grip
    shift = np.stack([source_y - y, source_x - x]) * (len(x) / 2)
    pixels = np.indices(x.shape) + shift
    read = functools.partial(ndimage.map_coordinates, order=1, mode="nearest")
    return np.dstack([read(product.surface[..., c], pixels) for c in range(3)])


_DRAW = {"fabric": draw_fabric, "washer": draw_washer, "tablet": draw_tablet}
_SPOIL = {"scratch": add_scratch, "spot": add_spot}
_SPOIL |= {"missing": add_missing, "misplaced": add_misplaced}
CATEGORIES: tuple[str, ...] = tuple(_DRAW)
DEFECTS: tuple[str, ...] = tuple(_SPOIL)


# The camera and the data set.


def _light(random, side):
    """Brightness of the uneven light, float32 [S, S, 1], about 1."""
    x, y = _turned(*_grid(side), random.uniform(0, 2 * np.pi))
    gradient, corners = random.uniform(0, 0.08), random.uniform(0, 0.04)
    light = 1 + gradient * x - corners * (x**2 + y**2)
    return (random.uniform(0.94, 1.05) * light)[..., None].astype(np.float32)


def _generators(category, spec, split, index, defect):
    """Two random generators of one image: for the scene and for the sensor."""
    numbers = [spec.seed, index]
    for name, value, allowed in (
        ("category", category, CATEGORIES),
        ("split", split, ("train", "test")),
        ("defect", defect, (None, *DEFECTS) if split == "test" else (None,)),
    ):
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}, but has to be one of {allowed}")
        numbers.append(allowed.index(value))
    if spec.side < SMALLEST_SIDE:
        raise ValueError(f"side is {spec.side}, but has to be at least {SMALLEST_SIDE}")
    return np.random.default_rng(numbers).spawn(2)


def compose(category, spec, split, index, defect=None) -> Scene:
    """Draws a product and its defect (None for a normal one), without sensor noise.

    Raises:
        ValueError: an unknown name, a defect in the train split, or too small a side.
    """
    random, _ = _generators(category, spec, split, index, defect)
    product, light = _DRAW[category](random, spec.side), _light(random, spec.side)
    body, clean = product.body, np.clip(product.surface * light, 0, 1)
    if defect is None:
        return Scene(clean, clean, np.zeros_like(body), body)
    while True:  # until the defect is large and strong enough to be seen
        spoilt = np.clip(_SPOIL[defect](random, product) * light, 0, 1)
        change = np.abs(spoilt - clean).max(axis=-1) * body
        mask = change > NOTICEABLE
        mask |= ndimage.binary_closing(mask, iterations=spec.side // 80 + 1) & body
        pieces, count = ndimage.label(mask, np.ones((3, 3)))
        areas = ndimage.sum_labels(mask, pieces, np.arange(count + 1))
        mask = (areas > 0.1 * areas.max())[pieces]  # stray specks stay as they were
        if mask.mean() > 0.001 and change[mask].mean() > 2 * NOTICEABLE:
            image = np.where(mask[..., None], spoilt, clean).astype(np.float32)
            return Scene(clean, image, mask, body)


def render(category, spec, split, index, defect=None) -> tuple[np.ndarray, np.ndarray]:
    """One image as the camera sees it, uint8 [S, S, 3], and its mask, bool [S, S].

    Raises:
        ValueError: see `compose`.
    """
    scene = compose(category, spec, split, index, defect)
    _, sensor = _generators(category, spec, split, index, defect)
    noise = sensor.standard_normal(scene.image.shape, np.float32)
    image = scene.image + sensor.uniform(0.008, 0.018) * noise
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8), scene.mask


def _files(spec):
    """Yields the path in the data set and the uint8 pixels of every file."""
    kinds = [("train", None, spec.train_per_category)]
    kinds += [("test", None, spec.test_good_per_category)]
    kinds += [("test", defect, spec.test_per_defect) for defect in DEFECTS]
    for category in CATEGORIES:
        for split, defect, count in kinds:
            for index in range(count):
                image, mask = render(category, spec, split, index, defect)
                yield f"{category}/{split}/{defect or 'good'}/{index:03d}.png", image
                if defect:
                    name = f"{category}/ground_truth/{defect}/{index:03d}_mask.png"
                    yield name, np.where(mask, np.uint8(255), np.uint8(0))


def write_demo_dataset(root: Path, spec: DemoSpec = DemoSpec()) -> None:
    """Writes the data set to a new folder; one that exists already is left alone.

    The folder appears complete or not at all: the files are written beside it, and
    renamed at the end. Where two processes write at once, the first to end wins.

    Raises:
        OSError: the folder cannot be written.
        ValueError: too small a side.
    """
    root = Path(root)
    if root.is_dir():
        return
    unfinished = root.with_name(f".{root.name}-{uuid.uuid4().hex}")
    unfinished.mkdir(parents=True)
    try:
        for name, pixels in _files(spec):
            (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(unfinished / name, compress_level=1)
        os.rename(unfinished, root)
    except OSError:
        if not root.is_dir():
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
