"""Fingerprints see every bit, and are the same wherever an array lives."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from harmoniad_jax.checkpoints import integrity
from harmoniad_jax.checkpoints.integrity import (
    SEAL,
    Damaged,
    check_items,
    digest,
    fingerprint,
    fingerprints,
    host_fingerprint,
    layout,
    layout_difference,
    seal,
    verified,
)

DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16, jnp.int32, jnp.uint32, jnp.int8, bool)
compiled = jax.jit(fingerprint)


def drawn(dtype, shape=(3, 5)):
    """Random bits as an array of that dtype, NaN and infinities not left out."""
    rng = np.random.default_rng(0)
    if dtype is bool:
        return rng.random(shape) < 0.5
    words = np.dtype(f"u{np.dtype(dtype).itemsize}")
    high = np.iinfo(words).max
    return rng.integers(0, high, shape, words, endpoint=True).view(dtype)


def slow_fingerprint(array):
    """Element by element, with Python's integers."""

    def mix(word):
        word ^= word >> 16
        word = word * 0x85EBCA6B % 2**32
        word ^= word >> 13
        word = word * 0xC2B2AE35 % 2**32
        return word ^ word >> 16

    words = array.view(f"u{array.dtype.itemsize}").ravel()
    return sum(mix(int(word) ^ mix(i)) for i, word in enumerate(words)) % 2**32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 4), (0, 3)])
def test_it_is_what_a_slow_reference_computes(dtype, shape):
    array = drawn(dtype, shape)
    assert int(compiled(array)) == slow_fingerprint(array)
    assert host_fingerprint(array) == slow_fingerprint(array)


@pytest.mark.parametrize("dtype", DTYPES)
def test_on_the_host_it_is_the_same(dtype, monkeypatch):
    monkeypatch.setattr(integrity, "CHUNK", 7)
    array = drawn(dtype, (5, 4, 3))
    kept = array.copy()
    # Turned, so that its elements do not lie in order.
    assert host_fingerprint(array.T) == slow_fingerprint(np.ascontiguousarray(array.T))
    assert array.tobytes() == kept.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_flipped_bit_is_seen(dtype):
    array = drawn(dtype)
    before = int(compiled(array))
    flipped = [before]
    words = array.view(f"u{array.dtype.itemsize}")
    for index in np.ndindex(array.shape):
        for bit in range(1 if dtype is bool else 8 * array.dtype.itemsize):
            changed = words.copy()
            changed[index] ^= words.dtype.type(1 << bit)
            flipped.append(int(compiled(changed.view(array.dtype))))
    assert before not in flipped[1:]


def test_what_cancels_in_weaker_sums_is_seen():
    array = np.arange(1.0, 25.0, dtype=np.float32).reshape(4, 6)
    two_signs = array.copy()
    two_signs[0, 0] *= -1
    two_signs[3, 5] *= -1
    others = [
        two_signs,
        -array,
        array[::-1],
        array[:, ::-1],
        np.roll(array, 1),
        np.zeros_like(array),
    ]
    found = {int(compiled(other)) for other in [array, *others]}
    assert len(found) == 1 + len(others)


def shardings():
    """One, two and eight devices, and axes that are split over some of them."""
    devices = jax.devices()
    for count in (1, 2, 8):
        mesh = jax.make_mesh(
            (count,), ("data",), devices=devices[:count], axis_types=(AxisType.Auto,)
        )
        yield NamedSharding(mesh, PartitionSpec())
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=2 * (AxisType.Auto,))
    for axes in [("model",), (None, "model"), ("model", "data"), (("data", "model"),)]:
        yield NamedSharding(mesh, PartitionSpec(*axes))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_does_not_depend_on_where_an_array_lives(dtype):
    array = drawn(dtype, (16, 8))
    tree = {"scalar": jnp.int32(7)}
    expected = {"array": slow_fingerprint(array), "scalar": slow_fingerprint(np.int32(7))}
    for sharding in shardings():
        placed = {**tree, "array": jax.device_put(array, sharding)}
        placed["scalar"] = jax.device_put(7, NamedSharding(sharding.mesh, PartitionSpec()))
        assert fingerprints(placed) == expected
        on_devices = {name: int(compiled(leaf)) for name, leaf in placed.items()}
        assert on_devices == expected


def test_a_split_array_is_not_gathered():
    """Eight devices of an array that is split hand round sums, not elements."""
    *_, sharding = shardings()
    array = jax.ShapeDtypeStruct((64, 8), jnp.float32, sharding=sharding)
    text = jax.jit(fingerprint).lower(array).compile().as_text()
    assert "all-gather" not in text
    assert "all-to-all" not in text
    assert "all-reduce" in text


def test_a_digest_is_that_of_the_values_alone():
    value = {"b": [1, 2.5, None], "a": {"y": "é", "x": 1e-7}}
    assert digest(json.loads(json.dumps(value, indent=3))) == digest(value)
    assert digest(dict(reversed(value.items()))) == digest(value)
    assert digest({**value, "b": [1, 2.5000000000000004, None]}) != digest(value)


STATE = {"kernel": np.ones((2, 3), np.float32), "step": np.int32(4)}
ITEMS = {"iterator": {"next": 3}, "identity": {"name": "x"}}


def sealed():
    """The JSON items of a checkpoint, as they are read."""
    return json.loads(json.dumps({**ITEMS, SEAL: seal(STATE, ITEMS)}))


def test_what_was_saved_is_accepted():
    items = sealed()
    check_items(items)
    assert verified(items[SEAL], STATE) is STATE
    assert layout_difference(items[SEAL], STATE) is None
    assert layout(STATE) == {"kernel": "float32[2, 3]", "step": "int32[]"}


@pytest.mark.parametrize(
    "change",
    [
        lambda items: items["iterator"].update(next=4),
        lambda items: items["identity"].clear(),
        lambda items: items[SEAL]["layout"].update(kernel="float32[2, 4]"),
        lambda items: items[SEAL]["fingerprints"].update(step=0),
        lambda items: items[SEAL]["items"].pop("iterator"),
        lambda items: items[SEAL].clear(),
        lambda items: items.update({SEAL: []}),
    ],
)
def test_changed_items_are_refused(change):
    items = sealed()
    change(items)
    with pytest.raises(Damaged, match="differs from what was saved"):
        check_items(items)


def test_the_changed_array_is_named():
    other = {**STATE, "kernel": STATE["kernel"] * np.float32([1, 1, 1 + 1e-7])}
    with pytest.raises(Damaged, match="^kernel differs"):
        verified(sealed()[SEAL], other)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({**STATE, "step": np.int16(4)}, r"step is int32\[\], expected int16"),
        (
            {**STATE, "kernel": STATE["kernel"].T},
            r"\[2, 3\], expected float32\[3, 2",
        ),
        ({"kernel": STATE["kernel"]}, r"step is int32\[\], expected None"),
        ({**STATE, "new": STATE["step"]}, "new is None, expected int32"),
    ],
)
def test_another_layout_is_described(other, difference):
    assert re.search(difference, layout_difference(sealed()[SEAL], other))
