"""Stacks: nothing is lost, gradients and steps are the same, large arrays stay alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_helpers import assert_bitwise_equal

from harmoniad_jax.steps import stacks as stacks_module
from harmoniad_jax.steps.optimizer import StableAdamState, scale_by_stable_adam
from harmoniad_jax.steps.stacks import Stacks
from harmoniad_jax.steps.state import TrainState


def tree(seed=0):
    """Arrays of three shapes, one of them alone in its shape and one in its dtype."""
    rng = np.random.default_rng(seed)
    return {
        "a": {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)},
        "b": {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)},
        "c": (rng.normal(size=(2, 2)), rng.normal(size=4), np.arange(4)),
    }


def test_arrays_of_one_shape_and_dtype_are_stacked_in_order():
    own = tree()
    stacks = Stacks(own)
    found = stacks.stack(own)
    assert sorted(stack.shape for stack in found) == [(2, 2), (2, 3, 4), (3, 4), (4,)]
    assert stacks.are_stacked == [stack.shape in ((2, 3, 4), (3, 4)) for stack in found]
    expected = np.stack([own["a"]["bias"], own["b"]["bias"], own["c"][1]])
    assert any(np.array_equal(stack, expected) for stack in found)
    assert_bitwise_equal(stacks.unstack(found), own)


def test_large_arrays_stay_alone(monkeypatch):
    monkeypatch.setattr(stacks_module, "LARGE", 12)
    own = tree()
    found = Stacks(own).stack(own)
    assert [stack.shape for stack in found].count((3, 4)) == 3  # two, and one of vectors


def test_traced_stacks_are_taken_apart_with_the_gradient_of_it():
    own = jax.tree.map(np.float32, tree())
    stacks, weights = Stacks(own), jax.tree.map(np.float32, tree(seed=1))

    def value(tree):
        products = jax.tree.map(lambda a, b: (a**2 * b).sum(), tree, weights)
        return sum(jax.tree.leaves(products))

    found = jax.jit(jax.grad(lambda s: value(stacks.unstack(s))))(stacks.stack(own))
    expected = jax.grad(value)(own)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        stacks.unstack(jax.device_get(found)),
        jax.device_get(expected),
    )


def test_a_state_is_stacked_wherever_it_is_like_the_parameters():
    params = tree()
    moments = StableAdamState(np.int32(3), tree(1), tree(2), None)
    state = TrainState(
        step=np.int32(3),
        params=params,
        opt_state=((), moments, ()),
        rng=np.zeros(2, np.uint32),
        skipped=np.int32(0),
        skipped_in_a_row=np.int32(0),
        statistics={"mean": np.zeros(4)},
    )
    stacks = Stacks(params)
    stacked = stacks.stack_state(state)
    assert isinstance(stacked.opt_state[1], StableAdamState)
    assert len(stacked.params) == len(stacked.opt_state[1].mu) == len(stacks.are_stacked)
    assert stacked.opt_state[1].nu_max is None
    assert_bitwise_equal(stacks.unstack_state(stacked), state)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_the_optimizer_clips_each_tensor_of_a_stack_by_itself(amsgrad):
    own = {name: jnp.float32(values) for name, values in zip("abc", spiky(), strict=True)}
    stacks = Stacks(own)
    plain = scale_by_stable_adam(amsgrad=amsgrad)
    stacked = scale_by_stable_adam(amsgrad=amsgrad, stacked=stacks.are_stacked)
    together = stacks.stack(jax.device_get(own))
    states = plain.init(own), stacked.init(together)
    for factor in (1.0, 30.0, 0.1):
        scaled = {name: own[name] * (factor if name == "a" else 1.0) for name in own}
        expected, first = plain.update(scaled, states[0])
        found, second = stacked.update(stacks.stack(jax.device_get(scaled)), states[1])
        states = first, second
        found = stacks.unstack(jax.device_get(found))
        for name in own:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)
    # The strong gradient of one tensor did not enlarge its step.
    assert np.abs(found["a"]).max() < np.abs(found["b"]).max() * 2


def spiky():
    rng = np.random.default_rng(0)
    return rng.normal(size=(3, 5)), rng.normal(size=(3, 5)), rng.normal(size=7)
