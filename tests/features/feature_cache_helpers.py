"""What tests of the feature cache share: made-up features, written and compared."""

import hashlib
import multiprocessing
from pathlib import Path

import numpy as np

from harmoniad_jax.features.store import FeatureCache

SHAPES = {"patches": (2, 3, 3, 5), "class_token": (5,)}
DESCRIPTION = {"weights": "abc", "blocks": ((1,), (2,)), "image_side": 24}
BIG = {"patches": (256, 1024)}  # a megabyte, so that a writer is killed within a file
# Processes of their own, which share nothing with this one but the disk.
spawn = multiprocessing.get_context("spawn")


def image(index):
    """The SHA-256 that stands for an image."""
    return hashlib.sha256(b"image %d" % index).hexdigest()


def features_of(name, shapes=SHAPES):
    """What an encoder would give for it: float32, decided by the image alone."""
    random = np.random.default_rng(int(name[:12], 16))
    return {key: random.standard_normal(shape, np.float32) for key, shape in shapes.items()}


def open_cache(root, dtype="float32", shapes=SHAPES, **changes):
    return FeatureCache(Path(root), DESCRIPTION | changes, shapes, dtype)


def fill(cache, *images, shapes=SHAPES):
    """Writes them as one chunk."""
    cache.write(images, (features_of(name, shapes) for name in images))


def assert_reads(cache, *images, dtype="float32", shapes=SHAPES):
    for name in images:
        read, expected = cache.read(name), features_of(name, shapes)
        assert read.keys() == expected.keys()
        for key, values in read.items():
            assert values.dtype == dtype
            np.testing.assert_array_equal(values, expected[key].astype(dtype))


def chunks(root):
    return sorted(Path(root).glob("*/*.npy"))


def unfinished(root):
    return sorted(Path(root).glob("*/*.unfinished"))


def names(indices):
    return [image(index) for index in indices]
