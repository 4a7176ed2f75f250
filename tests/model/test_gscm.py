"""GSCM: no positions, a context that matters, and shapes at odd grids."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harmoniad_jax.model.gscm import Gscm, GscmBlock


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def random_params(module, *inputs):
    """Parameters far from their initial values, without compiling an initialisation."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return jax.tree.map(
        lambda leaf: (0.5 * rng.normal(size=leaf.shape)).astype(np.float32), shapes
    )


@functools.cache
def compiled(global_context):
    return jax.jit(GscmBlock(heads=2, global_context=global_context).apply)


@pytest.mark.parametrize("global_context", [True, False])
@pytest.mark.parametrize("with_context", [True, False])
def test_block_knows_no_positions(with_context, global_context):
    tokens, order = normal(2, 9, 8), np.random.default_rng(2).permutation(9)
    context = normal(2, 2, 8, seed=3) if with_context else None
    block = GscmBlock(heads=2, global_context=global_context)
    variables = random_params(block, tokens, context)
    apply = compiled(global_context)
    output = apply(variables, tokens, context)
    permuted = apply(variables, tokens[:, order], context)
    assert output.shape == tokens.shape
    np.testing.assert_allclose(permuted, output[:, order], rtol=1e-4, atol=1e-4)
    assert np.abs(output - tokens).max() > 0.1


def test_block_mixes_tokens_of_one_image_only():
    tokens = normal(2, 9, 8)
    block = GscmBlock(heads=2)
    variables = random_params(block, tokens)
    apply = compiled(global_context=True)
    output = np.asarray(apply(variables, tokens, None))
    changed = tokens.copy()
    # Of one channel: the norm takes out what all of them share.
    changed[0, 0, 0] += 3.0
    other = np.asarray(apply(variables, changed, None))
    assert np.abs(other[0, 8] - output[0, 8]).max() > 1e-3
    np.testing.assert_allclose(other[1], output[1], atol=1e-6)


def test_global_context_changes_the_output_and_adds_no_parameters():
    tokens = normal(2, 9, 8)
    variables = random_params(GscmBlock(heads=2), tokens)
    assert jax.tree.structure(variables) == jax.tree.structure(
        random_params(GscmBlock(heads=2, global_context=False), tokens)
    )
    with_mean = compiled(global_context=True)(variables, tokens, None)
    without = compiled(global_context=False)(variables, tokens, None)
    assert np.abs(with_mean - without).max() > 1e-3


@pytest.mark.parametrize("global_context", [True, False])
def test_class_token_changes_the_output(global_context):
    features, token = normal(2, 3, 5, 8), normal(2, 8, seed=2)
    module = Gscm(depth=1, groups=1, heads=2, global_context=global_context)
    variables = random_params(module, features, token)
    apply = jax.jit(module.apply)
    output = apply(variables, features, token)
    other = apply(variables, features, token + 1.0)
    assert np.abs(output - other).max() > 1e-3
    # Without a class token there is no bottleneck for it.
    params = random_params(module, features)["params"]
    assert set(variables["params"]) - set(params) == {"class_bottleneck"}


@pytest.mark.parametrize("grid", [(4, 4), (5, 7), (3, 6), (1, 1)])
@pytest.mark.parametrize("decimation", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_shape_at_any_grid(grid, decimation, groups):
    features, token = jnp.zeros((2, *grid, 8)), jnp.zeros((2, 8))
    module = Gscm(depth=2, groups=groups, heads=2, decimation=decimation)
    shape, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), features, token)
    assert (shape.shape, shape.dtype) == ((2, groups, *grid, 8), jnp.float32)


@pytest.mark.parametrize("decimation", [1, 2, 3])
def test_neither_attention_nor_resampling_moves_anything(decimation):
    grid = (6, 7)
    features = normal(1, *grid, 8)
    module = Gscm(depth=1, groups=1, heads=2, decimation=decimation)
    variables = random_params(module, features)
    predict = jax.jit(lambda features: module.apply(variables, features))

    # A mirrored map gives a mirrored prediction: the resampling has half-pixel centres.
    output = predict(features)
    flipped = predict(features[:, ::-1, ::-1])
    np.testing.assert_allclose(flipped[:, :, ::-1, ::-1], output, rtol=1e-3, atol=1e-3)

    # A constant one gives a constant prediction.
    output = np.asarray(predict(np.broadcast_to(normal(8), (1, *grid, 8))))
    first = np.broadcast_to(output[:, :, :1, :1], output.shape)
    np.testing.assert_allclose(output, first, rtol=1e-4, atol=1e-4)

    # And a bright corner stays in its corner.
    corner = np.zeros((1, *grid, 8), np.float32)
    corner[:, :3, 4:] = normal(8)
    output = np.asarray(predict(corner))[0, 0]
    others = output[0, 0], output[5, 0], output[5, 6]
    spread = max(np.abs(other - others[0]).max() for other in others)
    assert min(np.abs(output[0, 6] - other).max() for other in others) > 5 * spread


def test_constant_features_give_finite_gradients():
    module = Gscm(depth=1, groups=1, heads=2)
    variables = random_params(module, jnp.zeros((2, 3, 3, 8)), jnp.zeros((2, 8)))

    @jax.jit
    def gradient(variables, *inputs):
        return jax.grad(lambda v, *i: module.apply(v, *i).sum(), argnums=(0, 1, 2))(
            variables, *inputs
        )

    for level in (0.0, 1e4):
        inputs = (np.full((2, 3, 3, 8), level), np.full((2, 8), level))
        gradients = gradient(variables, *map(np.float32, inputs))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
