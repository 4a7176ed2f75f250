"""The loss: its value against numpy, and mining, which touches the gradient alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harmoniad_jax.config import LossConfig
from harmoniad_jax.model.harmoniad import Comparison
from harmoniad_jax.steps.losses import (
    HardMining,
    easy_share,
    growth_steps,
    hard_cosine,
    scale_gradient,
    total_loss,
)

SHAPE = (2, 2, 3, 4, 5)


def pair(seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, *SHAPE)).astype(np.float32)


def one_minus_cosine(first, second):
    first, second = first.astype(float), second.astype(float)
    norms = np.sqrt((first**2).sum(-1) * (second**2).sum(-1))
    return 1 - (first * second).sum(-1) / norms


@jax.jit
def value_and_gradient(target, prediction, share, factor):
    return jax.value_and_grad(
        lambda prediction: hard_cosine(
            [Comparison(target, prediction)], HardMining(share, factor)
        )
    )(prediction)


def plain_value_and_gradient(target, prediction):
    return jax.value_and_grad(lambda guess: hard_cosine([Comparison(target, guess)], None))(
        prediction
    )


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_value_is_the_cosine_of_the_flattened_maps(share):
    target, prediction = pair(0)
    flat = (*SHAPE[:2], -1)
    expected = one_minus_cosine(target.reshape(flat), prediction.reshape(flat)).mean()
    assert float(hard_cosine([Comparison(target, prediction)], None)) == pytest.approx(
        expected, rel=1e-5
    )
    mined, _ = value_and_gradient(target, prediction, share, 0.1)
    assert float(mined) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_gradient_of_easy_positions_is_a_tenth(share):
    target, prediction = pair(1)
    # Groups differ in how hard they are; each has its own threshold.
    prediction[:, 1] += 2 * target[:, 1]
    _, plain = plain_value_and_gradient(target, prediction)
    _, mined = value_and_gradient(target, prediction, share, 0.1)
    distance = one_minus_cosine(target, prediction)
    easy = np.zeros(distance.shape, bool)
    for group in range(SHAPE[1]):
        threshold = np.quantile(distance[:, group], share)
        easy[:, group] = distance[:, group] < threshold
        # The share is that of the whole batch, not of every image.
        assert easy[:, group].mean() == pytest.approx(share, abs=1 / 24)
    assert len({image.sum() for image in easy[:, 0]}) == 2
    expected = np.where(easy[..., None], 0.1, 1.0) * plain
    np.testing.assert_allclose(mined, expected, rtol=1e-4, atol=1e-8)


def test_share_zero_leaves_the_gradient_unchanged():
    target, prediction = pair(2)
    _, plain = plain_value_and_gradient(target, prediction)
    _, mined = value_and_gradient(target, prediction, 0.0, 0.1)
    np.testing.assert_allclose(mined, plain, rtol=1e-5, atol=1e-9)


def test_factor_one_leaves_the_gradient_unchanged():
    target, prediction = pair(2)
    _, plain = plain_value_and_gradient(target, prediction)
    _, mined = value_and_gradient(target, prediction, 0.9, 1.0)
    np.testing.assert_allclose(mined, plain, rtol=1e-5, atol=1e-9)


def test_gradient_is_that_of_finite_differences():
    target, prediction = pair(3)
    _, gradient = plain_value_and_gradient(target, prediction)
    direction = np.random.default_rng(4).normal(size=SHAPE)
    flat = (*SHAPE[:2], -1)

    def value(step):
        moved = prediction.astype(float) + step * direction
        return one_minus_cosine(target.reshape(flat), moved.reshape(flat)).mean()

    slope = (value(1e-5) - value(-1e-5)) / 2e-5
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("zero", [0, 1])
def test_blank_maps_give_a_finite_gradient(zero):
    maps = pair(5)
    maps[zero, 0] = 0
    value, gradient = value_and_gradient(*maps, 0.5, 0.1)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_scale_gradient():
    values, factor = jnp.arange(3.0), jnp.array([0.0, 0.5, 2.0])
    np.testing.assert_array_equal(scale_gradient(values, factor), values)

    def total(values, factor):
        return (scale_gradient(values, factor) ** 2).sum()

    by_value, by_factor = jax.grad(total, argnums=(0, 1))(values, factor)
    np.testing.assert_array_equal(by_value, 2 * values * factor)
    np.testing.assert_array_equal(by_factor, 0)


def test_easy_share_grows_linearly_and_stays():
    steps = np.array([0, 1, 250, 500, 1000, 5000])
    shares = [float(easy_share(step, 0.9, 1000)) for step in steps]
    np.testing.assert_allclose(shares, [0, 0.0009, 0.225, 0.45, 0.9, 0.9], rtol=1e-5)
    # No growth: all of it from the first step on, and no division by zero.
    assert float(easy_share(jnp.int32(1), 0.9, 0)) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("num_steps", "within", "expected"),
    [(10_000, 0.2, 1000), (500, 0.2, 100), (4, 0.2, 1), (500, 0.0, 1000), (500, 1.0, 500)],
)
def test_short_runs_mine_too(num_steps, within, expected):
    assert growth_steps(LossConfig(easy_within=within), num_steps) == expected


@pytest.mark.parametrize("mining", [None, HardMining(0.5, 0.1)])
def test_total_loss_is_the_weighted_sum(mining):
    comparisons = {name: Comparison(*pair(seed)) for seed, name in enumerate("abc")}
    weights = {"a": 1.0, "b": 0.5, "c": 0.0, "unused": 9.0}
    total, parts = total_loss([comparisons], weights, mining)
    assert set(parts) == set(comparisons)
    for name, comparison in comparisons.items():
        expected = float(hard_cosine([comparison], None))
        assert float(parts[name]) == pytest.approx(expected, rel=1e-5)
    expected = float(parts["a"]) + 0.5 * float(parts["b"])
    assert float(total) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.7])
def test_a_batch_of_two_shapes_is_one_batch(share):
    """Halves of a batch as if they were of two shapes: the same loss and gradient."""
    target, prediction = pair(6)

    def loss(prediction, parts):
        halves = zip(jnp.split(target, parts), jnp.split(prediction, parts), strict=True)
        comparisons = [Comparison(*half) for half in halves]
        return hard_cosine(comparisons, HardMining(share, 0.1), [1 / parts] * parts)

    value, gradient = jax.value_and_grad(loss)(prediction, 1)
    again, other = jax.value_and_grad(loss)(prediction, 2)
    assert float(value) == pytest.approx(float(again), rel=1e-6)
    np.testing.assert_allclose(gradient, other, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("mining", [None, HardMining(0.7, 0.1)])
def test_rows_that_fill_a_batch_count_nowhere(mining):
    """Neither in the loss nor in its gradient nor among the easiest positions."""
    pairs = [pair(seed) for seed in (8, 9)]

    def loss(predictions, targets, rows):
        comparisons = list(map(Comparison, targets, predictions))
        return hard_cosine(comparisons, mining, [0.25, 0.75], rows)

    targets, predictions = zip(*pairs, strict=True)
    whole = jax.value_and_grad(loss)
    value, gradients = whole(predictions, targets, None)
    filled = [
        [jnp.concatenate([one, one[-1:], -one[:1]]) for one in maps]
        for maps in (predictions, targets)
    ]
    again, others = whole(*filled, tuple(map(len, targets)))
    assert float(again) == float(value)
    for gradient, other in zip(gradients, others, strict=True):
        np.testing.assert_array_equal(other[: len(gradient)], gradient)
        assert not other[len(gradient) :].any()


def test_rows_that_all_count_are_not_cut():
    """The usual case keeps its program."""

    def program(rows):
        def loss(target, prediction):
            one = Comparison(target, prediction)
            return hard_cosine([one], HardMining(0.7, 0.1), rows=rows)

        return str(jax.make_jaxpr(jax.grad(loss, argnums=1))(*pair(10)))

    count = len(pair(10)[0])
    assert program((count,)) == program(None) != program((count - 1,))


def test_shapes_count_by_their_shares():
    """And not by their rows."""
    target, prediction = pair(7)
    wide = Comparison(target.reshape(2, 2, 1, 12, 5), -target.reshape(2, 2, 1, 12, 5))
    square = Comparison(target, prediction)
    both = hard_cosine([square, wide], None, [0.75, 0.25])
    expected = 0.75 * hard_cosine([square], None) + 0.25 * 2
    assert float(both) == pytest.approx(float(expected), rel=1e-6)
