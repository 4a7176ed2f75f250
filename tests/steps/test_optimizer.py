"""StableAdamW against an independent numpy implementation and optax's Adam."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from harmoniad_jax.config import OptimizerConfig
from harmoniad_jax.steps.optimizer import (
    learning_rate_schedule,
    make_optimizer,
    scale_by_stable_adam,
)

STEPS, SPIKE = 7, 3


class NumpyStableAdam:
    """The reference, for one tensor, in float64: written from the formula."""

    def __init__(self, b1, b2, epsilon, amsgrad, clip):
        self.b1, self.b2, self.epsilon, self.clip = b1, b2, epsilon, clip
        self.amsgrad = amsgrad
        self.first = self.second = self.largest = 0.0
        self.step = 0
        self.clipped = False

    def update(self, gradient):
        gradient = np.asarray(gradient, np.float64)
        self.step += 1
        self.first = self.b1 * self.first + (1 - self.b1) * gradient
        self.second = self.b2 * self.second + (1 - self.b2) * gradient**2
        self.largest = np.maximum(self.largest, self.second)
        moment = self.largest if self.amsgrad else self.second
        scale = np.sqrt(moment / (1 - self.b2**self.step)) + self.epsilon
        ratio = np.sqrt(np.mean((gradient / scale) ** 2)) / self.clip
        self.clipped = ratio > 1
        return self.first / (1 - self.b1**self.step) / scale / max(1.0, ratio)


def gradients(spike=100.0):
    """A few steps of a pytree's gradients, with a spike in one of its tensors."""
    rng = np.random.default_rng(0)
    for step in range(STEPS):
        factor = spike if step == SPIKE else 1.0
        yield {
            "matrix": factor * rng.normal(size=(3, 4)).astype(np.float32),
            "scalar": np.float32(rng.normal()),
            "nested": (rng.normal(size=5).astype(np.float32), np.zeros(2, np.float32)),
        }


def run(transformation, spike=100.0):
    update = jax.jit(transformation.update)
    state = None
    results = []
    for gradient in gradients(spike):
        gradient = jax.tree.map(jnp.asarray, gradient)
        state = transformation.init(gradient) if state is None else state
        updates, state = update(gradient, state)
        results.append(jax.device_get(updates))
    return results


@pytest.mark.parametrize("amsgrad", [True, False])
@pytest.mark.parametrize("clip", [0.7, 1.0])
def test_equals_numpy(amsgrad, clip):
    settings = {"b1": 0.9, "b2": 0.99, "epsilon": 1e-8}
    transformation = scale_by_stable_adam(**settings, amsgrad=amsgrad, update_clip=clip)
    structure = jax.tree.structure(next(gradients()))
    references = [
        NumpyStableAdam(**settings, amsgrad=amsgrad, clip=clip)
        for _ in range(structure.num_leaves)
    ]
    clipped = np.zeros((STEPS, structure.num_leaves), bool)
    for step, (gradient, updates) in enumerate(
        zip(gradients(), run(transformation), strict=True)
    ):
        assert jax.tree.structure(updates) == structure
        leaves = zip(
            references, jax.tree.leaves(gradient), jax.tree.leaves(updates), strict=True
        )
        for leaf, (reference, wanted, got) in enumerate(leaves):
            expected = reference.update(wanted)
            assert np.shape(got) == np.shape(wanted)
            np.testing.assert_allclose(got, expected, rtol=2e-4, atol=1e-7)
            clipped[step, leaf] = reference.clipped
    # The spike is clipped in its own tensor, the first; tensors of zeros never are.
    assert clipped[SPIKE, 0] and not clipped[:, 2].any()


def test_without_clipping_and_amsgrad_it_is_adam():
    """An epsilon as large as the gradients: where it stands matters."""
    settings = (0.8, 0.95, 0.5)
    stable = run(scale_by_stable_adam(*settings, update_clip=np.inf))
    adam = run(optax.scale_by_adam(*settings))
    for got, expected in zip(stable, adam, strict=True):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, expected
        )


def test_clipping_shrinks_whole_tensors():
    """It changes a step's length, not its direction, and only where the spike is."""
    free = run(scale_by_stable_adam(update_clip=np.inf))
    clipped = run(scale_by_stable_adam(update_clip=1.0))
    ratio = clipped[SPIKE]["matrix"] / free[SPIKE]["matrix"]
    np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-5)
    assert ratio.flat[0] < 0.9


def test_amsgrad_remembers_the_spike():
    """After it, steps stay shorter than without a memory of the largest moment."""
    settings = {"b1": 0.0, "b2": 0.5, "update_clip": np.inf}
    with_memory = run(scale_by_stable_adam(amsgrad=True, **settings))[-1]["matrix"]
    without = run(scale_by_stable_adam(amsgrad=False, **settings))[-1]["matrix"]
    assert (np.abs(with_memory) < 0.5 * np.abs(without)).all()


def test_state_has_no_more_than_it_needs():
    params = {"matrix": jnp.zeros((3, 4)), "scalar": jnp.zeros(())}
    state = scale_by_stable_adam().init(params)
    assert state.nu_max is None
    state = scale_by_stable_adam(amsgrad=True).init(params)
    for moment in (state.mu, state.nu, state.nu_max):
        assert jax.tree.structure(moment) == jax.tree.structure(params)
    assert state.count.dtype == jnp.int32


@pytest.mark.parametrize("num_steps", [301, 1000])
def test_schedule_endpoints(num_steps):
    config = OptimizerConfig(warmup_steps=100)
    rate = learning_rate_schedule(config, num_steps)
    rates = np.array(jax.vmap(rate)(jnp.arange(num_steps + 1)))
    assert rates[0] == 0
    assert rates[50] == pytest.approx(config.learning_rate / 2, rel=1e-5)
    assert rates[100] == pytest.approx(config.learning_rate, rel=1e-5)
    assert rates[-1] == pytest.approx(config.final_learning_rate, rel=1e-4)
    middle = (config.learning_rate + config.final_learning_rate) / 2
    assert rates[(100 + num_steps) // 2] == pytest.approx(middle, rel=1e-2)
    assert (np.diff(rates[:101]) > 0).all() and (np.diff(rates[100:]) < 0).all()


@pytest.mark.parametrize("num_steps", [1, 2, 3, 9, 30])
@pytest.mark.parametrize("warmup_steps", [0, 100])
def test_warmup_of_short_runs_is_capped(num_steps, warmup_steps):
    config = OptimizerConfig(warmup_steps=warmup_steps)
    rate = learning_rate_schedule(config, num_steps)
    rates = np.array([float(rate(step)) for step in range(num_steps + 1)])
    peak = min(warmup_steps, num_steps // 3)
    assert rates.argmax() == peak
    assert rates[peak] == pytest.approx(config.learning_rate, rel=1e-5)
    assert rates[num_steps] == pytest.approx(config.final_learning_rate, rel=1e-4)


def test_make_optimizer_is_the_whole_recipe():
    """p - rate (update + decay p), behind a clip of the gradient's global norm."""
    config = OptimizerConfig(
        learning_rate=0.1, warmup_steps=2, weight_decay=0.3, gradient_clip=2.0
    )
    optimizer = make_optimizer(config, num_steps=STEPS)
    rate = learning_rate_schedule(config, STEPS)
    params = {"matrix": jnp.ones((3, 4)), "vector": jnp.full((5,), -2.0)}
    expected = jax.device_get(params)
    reference = {
        name: NumpyStableAdam(
            config.b1, config.b2, config.epsilon, config.amsgrad, config.update_clip
        )
        for name in params
    }
    state, step_once = optimizer.init(params), jax.jit(optimizer.update)
    for step, gradient in enumerate(gradients()):
        gradient = {"matrix": gradient["matrix"], "vector": gradient["nested"][0]}
        updates, state = step_once(gradient, state, params)
        params = optax.apply_updates(params, updates)
        norm = np.sqrt(sum(np.square(leaf).sum() for leaf in gradient.values()))
        for name, leaf in gradient.items():
            clipped = leaf * min(1.0, config.gradient_clip / norm)
            move = reference[name].update(clipped) + config.weight_decay * expected[name]
            expected[name] = expected[name] - float(rate(step)) * move
            np.testing.assert_allclose(params[name], expected[name], rtol=1e-3, atol=1e-5)
