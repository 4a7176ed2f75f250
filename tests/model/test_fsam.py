"""FSAM: its convolutions against two oracles, its gates, and what it starts as."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from harmoniad_jax.model import fsam
from harmoniad_jax.model.fsam import (
    EDGE_KERNELS,
    IDENTITY,
    LAPLACIAN,
    SOBEL_X,
    ChannelGate,
    Fsam,
    FsamBlock,
    MultiScaleEdges,
    SpatialGate,
    depthwise,
    edge_kernel_init,
    shrink,
)

SWITCHES = ("heads", "edge_kernels", "channel_gate", "spatial_gate", "shrinkage")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def random_params(module, *inputs, scale=0.5):
    """Parameters far from their initial values, without compiling an initialisation."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32), shapes
    )


def grouped_convolution(features, kernel, dilation=1):
    """XLA's own depthwise convolution, zeros beyond the border."""
    width = features.shape[-1]
    return jax.lax.conv_general_dilated(
        features,
        jnp.asarray(kernel)[:, :, None],
        (1, 1),
        "SAME",
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=width,
    )


@pytest.mark.parametrize("grid", [(5, 7), (1, 2)])
@pytest.mark.parametrize("size", [3, 5])
def test_depthwise_equals_both_oracles(size, grid):
    features, kernel = normal(2, *grid, 3), normal(size, size, 3, seed=1)
    got = depthwise(features, kernel)
    expected = grouped_convolution(features, kernel)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    for image in range(2):
        for channel in range(3):
            # Convolution as networks mean it: the kernel is not flipped.
            correlated = scipy.ndimage.correlate(
                features[image, ..., channel], kernel[..., channel], mode="constant"
            )
            np.testing.assert_allclose(got[image, ..., channel], correlated, atol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("grid", [(5, 7), (1, 2)])
@pytest.mark.parametrize("size", [3, 5])
def test_depthwise_has_the_gradients_of_a_grouped_convolution(
    monkeypatch, size, grid, backend
):
    """As it is written for each kind of device; all of them can compute both."""
    monkeypatch.setattr(fsam.jax, "default_backend", lambda: backend)
    features, kernel = normal(2, *grid, 3), normal(size, size, 3, seed=1)
    direction = normal(2, *grid, 3, seed=2)
    _, ours = jax.vjp(depthwise, features, kernel)
    _, theirs = jax.vjp(grouped_convolution, features, kernel)
    for got, expected in zip(ours(direction), theirs(direction), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_depthwise_of_bfloat16_sums_up_in_float32():
    maps, direction = (jnp.bfloat16(normal(2, 6, 5, 3)) for _ in range(2))
    kernel = normal(5, 5, 3)
    found, backward = jax.vjp(depthwise, maps, kernel)
    exact = [jnp.float32(each) for each in (maps, direction)]
    expected, exact_backward = jax.vjp(depthwise, exact[0], kernel)
    of_maps, of_kernel = backward(direction)
    others = exact_backward(exact[1])
    assert found.dtype == of_maps.dtype == jnp.bfloat16
    half_a_digit = {"rtol": 2**-8, "atol": 1e-5}
    np.testing.assert_allclose(np.float32(found), expected, **half_a_digit)
    np.testing.assert_allclose(np.float32(of_maps), others[0], **half_a_digit)
    # That of the weights is not rounded.
    assert of_kernel.dtype == np.float32
    np.testing.assert_allclose(of_kernel, others[1], rtol=1e-4, atol=1e-4)


def test_multi_scale_is_the_sum_of_its_three_filters():
    features = normal(2, 7, 6, 4)
    module = MultiScaleEdges()
    variables = random_params(module, features)
    params = variables["params"]
    assert {name: leaf.shape for name, leaf in params.items()} == {
        "fine": (3, 3, 4),
        "coarse": (5, 5, 4),
        "dilated": (3, 3, 4),
    }
    expected = (
        grouped_convolution(features, params["fine"])
        + grouped_convolution(features, params["coarse"])
        + grouped_convolution(features, params["dilated"], dilation=2)
    )
    np.testing.assert_allclose(module.apply(variables, features), expected, atol=2e-5)


def test_channels_take_the_edge_kernels_in_turn():
    kernels = edge_kernel_init(jax.random.key(0), (3, 3, 6))
    assert kernels.shape == (3, 3, 6) and kernels.dtype == jnp.float32
    for channel, expected in enumerate([*EDGE_KERNELS, *EDGE_KERNELS[:2]]):
        np.testing.assert_array_equal(kernels[..., channel], expected)


def test_only_the_fine_kernels_start_as_edges():
    edges = edge_kernel_init(jax.random.key(0), (3, 3, 8))

    @jax.jit
    def init(key, features):
        return [MultiScaleEdges(edge).init(key, features)["params"] for edge in (1, 0)]

    with_edges, without = init(jax.random.key(0), jnp.zeros((1, 2, 2, 8)))
    np.testing.assert_array_equal(with_edges.pop("fine"), edges)
    for random in (*with_edges.values(), *without.values()):
        assert len(np.unique(random)) == random.size
        assert np.abs(random).max() < 0.2


def test_edge_kernels_find_edges():
    """All but the identity give nothing on a constant, and find what they are named for."""
    features = np.full((1, 5, 5, 4), 2.0, np.float32)
    params = {"fine": edge_kernel_init(jax.random.key(0), (3, 3, 4))}
    response = np.asarray(depthwise(features, params["fine"]))[:, 1:-1, 1:-1]
    np.testing.assert_allclose(response[..., 0], 2.0)
    np.testing.assert_allclose(response[..., 1:], 0, atol=1e-6)

    # A vertical edge excites the filter along x alone, its transpose the one along y.
    edge = np.zeros((1, 5, 5, 4), np.float32)
    edge[:, :, 3:] = 1.0
    for image, along, across in ((edge, 2, 3), (edge.transpose(0, 2, 1, 3), 3, 2)):
        response = np.asarray(depthwise(image, params["fine"]))[0, 2, 2]
        assert response[along] > 0.5
        assert response[across] == 0
    # The Laplacian does not see a slope, only its change.
    slope = np.broadcast_to(np.arange(5.0, dtype=np.float32)[:, None], (5, 5))
    response = depthwise(slope[None, :, :, None], LAPLACIAN[..., None])
    np.testing.assert_allclose(response[0, 1:-1, 1:-1], 0, atol=1e-6)
    assert IDENTITY.sum() == 1 and SOBEL_X.sum() == 0 and LAPLACIAN.sum() == 0


@functools.cache
def block_gradient():
    """(params, features) -> gradients by both of a weighted sum, and the output."""
    weights = normal(2, 4, 4, 32, seed=2)

    def product(params, features):
        output = FsamBlock().apply({"params": params}, features)
        return (weights * output).sum(), output

    # To optimise it would take longer than to run it slowly.
    options = {"xla_backend_optimization_level": 0}
    options["xla_llvm_disable_expensive_passes"] = True
    gradient = jax.grad(product, argnums=(0, 1), has_aux=True)
    return jax.jit(gradient, compiler_options=options)


def test_block_starts_as_the_identity_and_gradient_reaches_all_of_it():
    # Wide enough that the channel gate's few hidden units do not all rest at zero.
    features, block = normal(2, 4, 4, 32), FsamBlock()
    gates = ("structure_gate", "mlp_gate")

    @jax.jit
    def initial_values(key):
        # The other parameters are not computed, and replaced by random ones.
        params = block.init(key, features)["params"]
        return {name: params[name] for name in (*gates, "threshold")}

    params = random_params(block, features)["params"] | initial_values(jax.random.key(0))
    # The shrinkage starts weak against a texture of about one.
    threshold = jax.nn.softplus(params["threshold"])
    assert 0 < threshold.min() and threshold.max() < 0.1
    (first, _), output = block_gradient()(params, features)
    np.testing.assert_array_equal(output, features)
    for gate in gates:
        assert (np.asarray(first[gate]) != 0).all(), gate
        params[gate] = jnp.full_like(params[gate], 0.5)
    (later, _), _ = block_gradient()(params, features)
    for path, leaf in jax.tree_util.tree_leaves_with_path(later):
        assert np.isfinite(leaf).all(), path
        assert np.any(leaf), path


@pytest.mark.parametrize("level", [0.0, 1.0, 1e4])
def test_constant_images_give_no_nan(level):
    features = np.full((2, 4, 4, 32), level, np.float32)
    params = random_params(FsamBlock(), features)["params"]
    results = block_gradient()(params, features)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(results))


@pytest.mark.parametrize("switch", SWITCHES)
def test_switches_remove_their_parts(switch):
    features = normal(1, 4, 4, 8)

    def names(block):
        shapes = jax.eval_shape(block.init, jax.random.key(0), features)["params"]
        return set(shapes)

    removed = names(FsamBlock(2)) - names(FsamBlock(**{"heads": 2, switch: False}))
    assert (
        removed
        == {
            "heads": {"attention", "attention_norm"},
            "edge_kernels": set(),
            "channel_gate": {"ChannelGate_0"},
            "spatial_gate": {"SpatialGate_0"},
            "shrinkage": {"threshold"},
        }[switch]
    )


def test_shrink_oracle():
    values = np.array([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0], np.float32)
    expected = [-2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0]
    np.testing.assert_array_equal(shrink(values, 1.0), expected)
    np.testing.assert_array_equal(shrink(values, 0.0), values)
    # Per channel, and never further from zero or of another sign.
    values, threshold = normal(3, 4), np.array([0.1, 0.5, 1.0, 9.0], np.float32)
    got = np.asarray(shrink(values, threshold))
    expected = np.sign(values) * np.maximum(np.abs(values) - threshold, 0)
    np.testing.assert_allclose(got, expected, atol=1e-7)
    assert not got[:, 3].any()


def test_gates_lie_between_zero_and_one_and_see_their_statistics():
    texture = normal(2, 5, 6, 8)
    channel, spatial = ChannelGate(), SpatialGate()
    channel_variables = random_params(channel, texture)
    spatial_variables = random_params(spatial, texture)
    per_channel = np.asarray(channel.apply(channel_variables, texture))
    per_position = np.asarray(spatial.apply(spatial_variables, texture))
    assert per_channel.shape == (2, 1, 1, 8)
    assert per_position.shape == (2, 5, 6, 1)
    for gate in (per_channel, per_position):
        assert gate.min() > 0 and gate.max() < 1
        assert gate.std() > 1e-3
    # The channel gate sees magnitudes, wherever they lie in the image.
    moved = -texture[:, ::-1, ::-1]
    np.testing.assert_allclose(
        channel.apply(channel_variables, moved), per_channel, atol=1e-6
    )
    # The spatial gate does not tell the order of the channels.
    np.testing.assert_allclose(
        spatial.apply(spatial_variables, texture[..., ::-1]), per_position, atol=1e-6
    )


def test_the_spatial_gate_is_the_same_on_accelerators(monkeypatch):
    texture, gate = normal(2, 5, 7, 3), SpatialGate()
    params = random_params(gate, texture)

    def value(params):
        return (gate.apply(params, texture) * normal(2, 5, 7, 1, seed=3)).sum()

    expected = gate.apply(params, texture), jax.grad(value)(params)
    monkeypatch.setattr(fsam.jax, "default_backend", lambda: "gpu")
    found = gate.apply(params, texture), jax.grad(value)(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, expected)
    assert "conv_general_dilated" not in str(jax.make_jaxpr(value)(params))


def test_block_moves_with_its_input():
    """Away from borders, a shifted input gives a shifted output."""
    features = normal(1, 12, 12, 4)
    # The channel gate pools over the whole image, so it is left out.
    block = FsamBlock(channel_gate=False)
    variables = random_params(block, features)
    # Else little is left behind the shrinkage that could move.
    variables["params"]["threshold"] -= 4.0
    apply = jax.jit(block.apply)
    output = apply(variables, features)
    shifted = apply(variables, np.roll(features, (1, 2), (1, 2)))
    expected = np.roll(output, (1, 2), (1, 2))
    # Reach of the filters and the gate behind them: 2 + 1, and the shift itself.
    inner = np.s_[:, 5:-5, 5:-5]
    np.testing.assert_allclose(shifted[inner], expected[inner], atol=1e-5)
    assert np.abs(output - features).max() > 0.1


@pytest.mark.parametrize(("heads", "sees"), [(0, False), (2, True)])
def test_only_attention_sees_the_whole_image(heads, sees):
    # The channel gate sees one mean of each channel of the whole image.
    block = FsamBlock(heads, channel_gate=False)
    features = normal(1, 12, 12, 4)
    variables, apply = random_params(block, features), jax.jit(block.apply)
    elsewhere = features.copy()
    elsewhere[:, :2, :2] *= -1.0
    difference = np.abs(apply(variables, elsewhere) - apply(variables, features))
    assert (difference[:, 8:, 8:].max() > 1e-3) == sees
    assert difference[:, :2, :2].max() > 1e-3


def test_attention_starts_weak():
    """A block with it starts close to the identity."""
    features, block = normal(1, 4, 4, 32), FsamBlock(2)
    output, _ = jax.jit(block.init_with_output)(jax.random.key(0), features)
    assert 0 < np.abs(output - features).max() < 0.05


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_reads_out_one_prediction_a_group(groups):
    features = normal(2, 3, 5, 8)
    module = Fsam(depth=4, groups=groups)
    variables = random_params(module, features)
    shape = jax.eval_shape(module.apply, variables, features)
    assert (shape.shape, shape.dtype) == ((2, groups, 3, 5, 8), jnp.float32)
    assert set(variables["params"]) == {"bottleneck"} | {f"block_{i}" for i in range(4)}


@pytest.mark.parametrize(
    ("groups", "attending"), [(1, {0}), (2, {0, 2}), (4, {0, 1, 2, 3})]
)
def test_the_first_block_of_each_group_attends(groups, attending):
    module = Fsam(depth=4, groups=groups, heads=2)
    shapes = jax.eval_shape(module.init, jax.random.key(0), normal(1, 3, 5, 8))["params"]
    found = {i for i in range(4) if "attention" in shapes[f"block_{i}"]}
    assert found == attending
