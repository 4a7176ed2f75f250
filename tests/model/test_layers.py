"""Dense, attention and read-out against literal implementations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from harmoniad_jax.model import layers
from harmoniad_jax.model.fsam import Fsam
from harmoniad_jax.model.gscm import Gscm
from harmoniad_jax.model.layers import (
    Dense,
    Dropout,
    LayerNorm,
    LinearAttention,
    Mlp,
    bfloat16_product,
    gelu,
    group_outputs,
    over_images,
    positive,
)

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def dense_params(inputs, outputs):
    return {"kernel": normal(inputs, outputs), "bias": normal(outputs)}


def attention_params(width):
    return {
        "query": dense_params(width, width),
        "key_value": dense_params(width, 2 * width),
        "output": dense_params(width, width),
    }


@pytest.mark.parametrize("shape", [(4,), (2, 3, 5, 4)])
def test_dense_is_flax_dense(shape):
    inputs, weights = normal(*shape), normal(*shape[:-1], 6)
    params = dense_params(4, 6)

    def value(layer, params, inputs):
        output = layer(6).apply({"params": params}, inputs)
        return (weights * output).sum(), output

    grad = jax.grad(value, argnums=(1, 2), has_aux=True)
    (got, output), (expected, reference) = (
        grad(layer, params, inputs) for layer in (Dense, nn.Dense)
    )
    assert output.shape == reference.shape
    np.testing.assert_allclose(output, reference, rtol=1e-5, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, expected
    )


def test_dense_has_the_parameters_of_flax_dense():
    shapes = [
        jax.eval_shape(layer(6).init, jax.random.key(0), jnp.zeros((2, 3, 4)))
        for layer in (Dense, nn.Dense)
    ]
    assert shapes[0] == shapes[1]


def rounded(values):
    """As bfloat16, which float64 holds exactly."""
    return np.asarray(jnp.asarray(values).astype(jnp.bfloat16)).astype(np.float64)


def test_a_product_of_rounded_factors_is_summed_in_float32():
    right = normal(300, 4)
    left, weights = (jnp.bfloat16(normal(5, columns)) for columns in (300, 4))
    output, backward = jax.vjp(bfloat16_product, left, right)
    gradients = backward(weights)
    exact = [np.asarray(array, float) for array in (left, weights)]
    # Sums in bfloat16 would be off by more than their last rounding.
    half_a_digit = {"rtol": 2**-8, "atol": 1e-3}
    assert output.dtype == gradients[0].dtype == jnp.bfloat16
    for found, expected in (
        (output, exact[0] @ rounded(right)),
        (gradients[0], exact[1] @ rounded(right).T),
    ):
        np.testing.assert_allclose(np.asarray(found, float), expected, **half_a_digit)
    # The gradient of the weights is not rounded.
    assert gradients[1].dtype == np.float32
    np.testing.assert_allclose(gradients[1], exact[0].T @ exact[1], rtol=1e-4, atol=1e-4)


def test_dense_computes_in_bfloat16_where_it_is_asked_to():
    inputs, params = normal(2, 3, 4), dense_params(4, 6)
    found = Dense(6, dtype="bfloat16").apply({"params": params}, inputs)
    expected = rounded(inputs) @ rounded(params["kernel"]) + params["bias"]
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, float), expected, rtol=2**-6, atol=2**-6)


BRANCHES = pytest.mark.parametrize("branch", [Fsam, Gscm])
KEYS = {"params": jax.random.key(0), "dropout": jax.random.key(1)}


def small(branch, **settings):
    return branch(depth=2, groups=1, heads=2, **settings)


@BRANCHES
def test_bfloat16_is_for_activations_in_training_alone(branch):
    """Parameters and results stay float32, and nothing of a prediction is rounded."""
    plain, fast = small(branch), small(branch, dtype="bfloat16")
    inputs = jnp.zeros((1, 4, 4, 8)), jnp.zeros((1, 8))
    params = jax.eval_shape(plain.init, KEYS, *inputs)
    assert jax.eval_shape(fast.init, KEYS, *inputs) == params

    def program(model, train):
        def call(params, *inputs):
            return model.apply(params, *inputs, train=train, rngs=KEYS)

        closed = jax.make_jaxpr(call)(params, *inputs)
        assert [result.dtype for result in closed.out_avals] == [np.float32]
        return closed

    assert str(program(fast, False)) == str(program(plain, False))
    assert "bf16" not in str(program(plain, True))
    called = list(equations(program(fast, True)))
    products = [one for one in called if one.primitive.name == "dot_general"]
    dtypes = [one.outvars[0].aval.dtype for one in products]
    # Those of dense layers, but for the gate of channels, and three of each attention.
    expected = {Fsam: 2 + 2 * 3 + (3 + 3), Gscm: 2 + 2 + 2 * (3 + 3 + 2)}[branch]
    assert dtypes.count(jnp.bfloat16) == expected


@BRANCHES
@pytest.mark.parametrize(("backend", "remat"), [("cpu", False), ("gpu", True)])
def test_the_gradient_in_bfloat16_is_that_in_float32(monkeypatch, branch, backend, remat):
    """Up to rounding, on every backend; sums and gradients of parameters are float32."""
    draw = np.random.default_rng(1).standard_normal
    shapes = (2, 4, 4, 8), (2, 8), (2, 1, 4, 4, 8)
    *inputs, weights = (draw(shape, np.float32) for shape in shapes)
    params = jax.jit(small(branch).init)(KEYS, *inputs)
    # The gates of FSAM start at zero, and nothing behind them would have a gradient.
    params = jax.tree.map(lambda leaf: leaf + 0.1 * draw(leaf.shape, np.float32), params)
    monkeypatch.setattr(layers.jax, "default_backend", lambda: backend)

    def gradient(dtype):
        model = small(branch, dtype=dtype, remat=remat)

        def total(params):
            return (weights * model.apply(params, *inputs, train=True, rngs=KEYS)).sum()

        for one in equations(jax.make_jaxpr(jax.grad(total))(params)):
            if one.primitive.name == "reduce_sum":
                summed, result = one.invars[0].aval, one.outvars[0].aval
                assert summed.dtype != jnp.bfloat16 or summed.size == result.size
        return jax.jit(jax.grad(total))(params)

    exact, found = gradient("float32"), gradient("bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}
    lengths = [optax.global_norm(tree) for tree in (optax.tree.sub(found, exact), exact)]
    assert lengths[0] < 0.03 * lengths[1]


@BRANCHES
def test_an_accelerator_can_export(monkeypatch, branch):
    """A batch of any size."""
    monkeypatch.setattr(layers.jax, "default_backend", lambda: "gpu")
    model = small(branch)
    params = jax.eval_shape(model.init, KEYS, jnp.zeros((1, 4, 4, 8)), jnp.zeros((1, 8)))
    (batch,) = jax.export.symbolic_shape("b")
    inputs = [
        jax.ShapeDtypeStruct((batch, *shape), np.float32) for shape in ((4, 4, 8), (8,))
    ]
    (result,) = jax.make_jaxpr(model.apply)(params, *inputs).out_avals
    assert result.shape == (batch, 1, 4, 4, 8)


def equations(program):
    """Those of a traced function, and of the functions that it calls."""
    for equation in program.eqns:
        yield equation
        for value in equation.params.values():
            if hasattr(value, "eqns"):
                yield from equations(value)


def test_layer_norm_is_flax_layer_norm():
    inputs, weights = 3 + normal(2, 3, 5, 6), normal(2, 3, 5, 6)
    params = {"scale": normal(6), "bias": normal(6)}

    def value(layer, params, inputs):
        output = layer().apply({"params": params}, inputs)
        return (weights * output).sum(), output

    grad = jax.jit(jax.grad(value, argnums=(1, 2), has_aux=True), static_argnums=0)
    found, expected = (grad(layer, params, inputs) for layer in (LayerNorm, nn.LayerNorm))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected
    )
    shapes = [
        jax.eval_shape(layer().init, jax.random.key(0), inputs)
        for layer in (LayerNorm, nn.LayerNorm)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    "shape", [(2, 4), (2, 1, 1, 4), (3, 5, 4), (1, 2, 5, 4), (0, 5, 4)]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_vector_over_images_is_the_vector(monkeypatch, shape, dtype):
    """As on accelerators: its gradient is the sum over all positions all the same."""
    monkeypatch.setattr(layers.jax, "default_backend", lambda: "gpu")
    maps, vector = jnp.asarray(normal(*shape)).astype(dtype), jnp.float32([1, 2, 3, 4])

    def value(vector):
        return maps * over_images(vector, maps)

    found, backward = jax.vjp(value, vector)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, maps * vector.astype(dtype))
    (gradient,) = backward(jnp.ones_like(maps))
    expected = np.asarray(maps, float).reshape(-1, 4).sum(axis=0)
    assert gradient.dtype == np.float32
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)
    # There is something between the two sums, which XLA would join.
    assert "optimization_barrier" in str(jax.make_jaxpr(jax.vjp(value, vector)[1])(maps))


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 5, 4)])
def test_on_cpu_a_vector_stays_as_it_is(shape):
    vector = normal(4)
    assert over_images(vector, normal(*shape)) is vector


def test_gelu_of_bfloat16_is_rounded_once():
    values = jnp.linspace(-4, 4, 200).astype(jnp.bfloat16)
    found, backward = jax.vjp(gelu, values)
    expected, backward_of_flax = jax.vjp(nn.gelu, values.astype(jnp.float32))
    assert found.dtype == jnp.bfloat16
    ones = jnp.ones_like(values)
    for one, other in (
        (found, expected),
        (backward(ones)[0], backward_of_flax(ones.astype(jnp.float32))[0]),
    ):
        np.testing.assert_array_equal(one, other.astype(jnp.bfloat16))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_positive_is_elu_and_one_and_keeps_nothing_but_its_result(dtype):
    values = jnp.asarray(3 * normal(5, 7)).astype(dtype)
    found, backward = jax.vjp(positive, values)
    exact = np.asarray(values, float)
    close = {"rtol": 2**-7 if dtype == "bfloat16" else 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(np.asarray(found, float), phi(exact), **close)
    (slope,) = backward(jnp.ones_like(values))
    expected = np.where(exact > 0, 1, np.exp(exact))
    np.testing.assert_allclose(np.asarray(slope, float), expected, **close)
    assert found.dtype == slope.dtype == dtype
    (kept,) = jax.tree.leaves(backward)
    np.testing.assert_array_equal(kept, found)


def test_gelu_is_flax_gelu_and_keeps_nothing_but_its_input():
    values, direction = 3 * normal(5, 7), normal(5, 7)
    found, backward = jax.vjp(gelu, values)
    expected, backward_of_flax = jax.vjp(nn.gelu, values)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(
        backward(direction)[0], backward_of_flax(direction)[0], rtol=1e-6, atol=1e-6
    )
    (kept,) = jax.tree.leaves(backward)
    np.testing.assert_array_equal(kept, values)


def test_mlp_oracle():
    tokens = normal(2, 3, 4)
    params = {"Dense_0": dense_params(4, 8), "Dense_1": dense_params(8, 4)}
    got = Mlp(hidden_ratio=2.0).apply({"params": params}, tokens)
    hidden = tokens @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    # GELU in its tanh form.
    hidden *= 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    expected = hidden @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(100_000,), (300, 333), (10, 100, 100)])
def test_dropout_drops_independently_and_keeps_the_mean(shape):
    values, rate = jnp.ones(shape), 0.2
    noise = Dropout(rate).apply({}, values, train=True, rngs={"dropout": jax.random.key(3)})
    noise = np.asarray(noise)
    assert noise.shape == shape
    np.testing.assert_allclose(np.unique(noise), [0, 1 / (1 - rate)], rtol=1e-4)
    # About 100,000 draws: five deviations of a share of 0.2 are 0.006.
    dropped = noise == 0
    assert abs(dropped.mean() - rate) < 0.006
    # Neighbours that share a random word and those that do not: both by chance.
    flat = dropped.reshape(-1, shape[-1])
    even = flat[:, : shape[-1] // 2 * 2].reshape(-1, 2).all(axis=1).mean()
    odd = flat[:, 1 : (shape[-1] - 1) // 2 * 2 + 1].reshape(-1, 2).all(axis=1).mean()
    assert abs(even - rate**2) < 0.006
    assert abs(odd - rate**2) < 0.006


@pytest.mark.parametrize("rate", [0.0, 1e-9])
def test_dropout_of_nothing_needs_no_key(rate):
    values = normal(3, 5)
    np.testing.assert_array_equal(Dropout(rate).apply({}, values, train=True), values)


def test_mlp_drops_in_training_only():
    tokens = normal(4, 50, 4)
    layer = Mlp(hidden_ratio=2.0, dropout=0.5)
    params = {"Dense_0": dense_params(4, 8), "Dense_1": dense_params(8, 4)}
    variables = {"params": params}

    @jax.jit
    def both(key):
        noisy = layer.apply(variables, tokens, train=True, rngs={"dropout": key})
        return layer.apply(variables, tokens), noisy

    still, noisy = both(jax.random.key(1))
    again, other = both(jax.random.key(2))
    np.testing.assert_array_equal(still, again)
    assert not np.array_equal(noisy, other)
    # The last dropout acts on the output: about half of it is exactly zero.
    assert 0.4 < np.mean(np.asarray(noisy) == 0) < 0.6
    assert np.mean(np.asarray(still) == 0) == 0


def phi(values):
    """elu(v) + 1."""
    return np.where(values > 0, values + 1, np.exp(np.minimum(values, 0)))


def quadratic_attention(params, tokens, context, heads, epsilon=1e-6):
    """Attention with the whole matrix of weights, head by head, in float64."""

    def dense(name, inputs):
        return inputs @ params[name]["kernel"].astype(float) + params[name]["bias"]

    sources = tokens if context is None else np.concatenate([tokens, context], axis=1)
    width = tokens.shape[-1]
    query = dense("query", tokens)
    key, value = np.split(dense("key_value", sources), 2, axis=-1)
    mixed = np.zeros_like(query)
    for head in range(heads):
        part = slice(head * width // heads, (head + 1) * width // heads)
        weights = phi(query[..., part]) @ phi(key[..., part]).transpose(0, 2, 1)
        total = weights.sum(-1, keepdims=True) + epsilon
        mixed[..., part] = weights @ value[..., part] / total
    return dense("output", mixed)


@pytest.mark.parametrize(("heads", "extra"), [(1, 0), (3, 2)])
def test_linear_attention_equals_quadratic(heads, extra):
    tokens = normal(2, 5, 6)
    context = normal(2, extra, 6) if extra else None
    params = attention_params(6)
    attend = jax.jit(LinearAttention(heads).apply)
    got = attend({"params": params}, tokens, context)
    expected = quadratic_attention(params, tokens.astype(float), context, heads)
    # Context is read, not returned.
    assert got.shape == tokens.shape
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
    if extra:
        without = attend({"params": params}, tokens)
        assert np.abs(got - without).max() > 1e-2


def test_attention_survives_underflow():
    """Where every weight underflows, the output is its bias and gradients are finite."""
    tokens, params = normal(2, 5, 4), attention_params(4)
    params["query"]["bias"] -= 300
    params["key_value"]["bias"][:4] -= 300

    def total(params, tokens):
        output = LinearAttention(2).apply({"params": params}, tokens)
        return output.sum(), output

    gradient = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
    gradients, output = gradient(params, tokens)
    bias = np.broadcast_to(params["output"]["bias"], tokens.shape)
    np.testing.assert_allclose(output, bias, atol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    # Outlier tokens are no harm either.
    results = gradient(attention_params(4), 1e6 * tokens)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(results))


@pytest.mark.parametrize(
    ("groups", "expected"),
    [(1, [1.5]), (2, [2.5, 0.5]), (4, [3.0, 2.0, 1.0, 0.0])],
)
def test_group_outputs_mirror_the_encoder(groups, expected):
    """The shallowest group comes first and is read from the last blocks."""
    outputs = [jnp.full((2, 3), float(index)) for index in range(4)]
    got = group_outputs(outputs, groups)
    assert got.shape == (2, groups, 3)
    np.testing.assert_array_equal(got[0, :, 0], expected)
