"""How a checkpoint that was damaged on disk is told from what was saved.

A fingerprint of every array is computed where the array lives, so that nothing is copied to
the host, and is the same however the array is split over devices and processes. What a
checkpoint holds besides arrays is JSON, of which SHA-256 hashes are kept.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Elements that the processor's nearest caches hold.
CHUNK = 2**15
# Unsigned integers that hold the bits of an element of so many bytes.
WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


# The JSON item that the others, and arrays, are compared with.
SEAL = "integrity"


class Damaged(Exception):
    """A checkpoint is not what was saved; the message says in few words why."""


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON text of a value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def layout(tree: Any) -> dict[str, str]:
    """Name -> dtype and shape of every array, or what stands for one, in a tree."""
    return {
        name: f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
        for name, leaf in _named_leaves(tree).items()
    }


def fingerprints(tree: Any) -> dict[str, int]:
    """Name -> fingerprint of every array in a tree, see `fingerprint`.

    Every process of a run has to call it, and all get the same.

    Args:
      tree: arrays of any shape and of 8, 16 or 32 bits per element, anywhere.
    """
    leaves = _named_leaves(tree)
    if jax.default_backend() == "cpu" and jax.process_count() == 1:
        # They are in the host's memory, where nothing has to be compiled for it.
        values = [host_fingerprint(np.asarray(leaf)) for leaf in leaves.values()]
    else:
        # One by one: many arrays are alike, and their program is compiled once.
        values = jax.device_get([_fingerprint(leaf) for leaf in leaves.values()])
    return {name: int(value) for name, value in zip(leaves, values, strict=True)}


def fingerprint(array: jax.Array) -> jax.Array:
    """An array -> uint32 scalar that changes with any bit, and with any element's place.

    Each element's bits are mixed with its position, one to one, and the sum of these wraps
    around. So a change in a single element always changes the sum, and other damage goes
    unseen once in 2^32. Unlike a sum weighted with odd numbers, it sees two changed signs:
    their weights, times 2^31, would cancel. Integer sums do not depend on the order, which
    is why the number of devices does not matter.
    """
    bits = _bits(array)
    position = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        # Row-major. A reshape to one axis would gather an array that is split.
        place = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        position = position * jnp.uint32(size) + place
    return jnp.sum(_mix(bits ^ _mix(position)), dtype=jnp.uint32)


def host_fingerprint(array: np.ndarray) -> int:
    """The same of an array in the host's memory."""
    array = np.ascontiguousarray(array).reshape(-1)
    words = array if array.dtype == bool else array.view(f"u{array.dtype.itemsize}")
    total = 0
    for start in range(0, len(words), CHUNK):
        chunk = words[start : start + CHUNK].astype(np.uint32)
        chunk ^= _host_mix(np.arange(start, start + len(chunk)).astype(np.uint32))
        total += int(_host_mix(chunk).sum(dtype=np.uint32))
    return total % 2**32


def seal(state: Any, items: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be stored beside arrays and JSON items for them to be checked later."""
    contents = {
        "layout": layout(state),
        "fingerprints": fingerprints(state),
        "items": {name: digest(item) for name, item in items.items()},
    }
    return {**contents, "sha256": digest(contents)}


def check_items(items: Mapping[str, Any]) -> None:
    """Compares JSON items that were read with the seal, which is one of them.

    Raises:
      Damaged: something differs from what was saved.
    """
    sealed = items[SEAL]
    if not isinstance(sealed, dict):
        raise Damaged(f"{SEAL} differs from what was saved")
    contents = {name: value for name, value in sealed.items() if name != "sha256"}
    if sealed.get("sha256") != digest(contents):
        raise Damaged(f"{SEAL} differs from what was saved")
    for name, expected in sealed["items"].items():
        if digest(items[name]) != expected:
            raise Damaged(f"{name} differs from what was saved")


def layout_difference(sealed: Mapping[str, Any], expected: Any) -> str | None:
    """How arrays that were saved differ in name, dtype or shape from what is expected."""
    stored, wanted = sealed["layout"], layout(expected)
    for name in sorted(stored.keys() | wanted.keys()):
        if stored.get(name) != wanted.get(name):
            return f"{name} is {stored.get(name)}, expected {wanted.get(name)}"
    return None


def verified(sealed: Mapping[str, Any], state: Any) -> Any:
    """Arrays that were read, if they are what was saved; every process has to call it.

    Raises:
      Damaged: naming the first array that differs.
    """
    for name, found in fingerprints(state).items():
        if found != sealed["fingerprints"][name]:
            raise Damaged(f"{name} differs from what was saved")
    return state


_fingerprint = jax.jit(fingerprint)


def _named_leaves(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _bits(array: jax.Array) -> jax.Array:
    """The bits of each element: uint32 of the same shape."""
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    word = WORDS[array.dtype.itemsize]
    return jax.lax.bitcast_convert_type(array, word).astype(jnp.uint32)


def _mix(words: jax.Array) -> jax.Array:
    """Permutes the uint32 numbers: the last step of MurmurHash3 (Appleby, 2011)."""
    words = (words ^ (words >> 16)) * jnp.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * jnp.uint32(0xC2B2AE35)
    return words ^ (words >> 16)


def _host_mix(words: np.ndarray) -> np.ndarray:
    """The same of an array that may be overwritten."""
    words ^= words >> np.uint32(16)
    words *= np.uint32(0x85EBCA6B)
    words ^= words >> np.uint32(13)
    words *= np.uint32(0xC2B2AE35)
    words ^= words >> np.uint32(16)
    return words
