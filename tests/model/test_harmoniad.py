"""The whole network: what it returns, what it must not leak, and what it costs."""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harmoniad_jax.config import ModelConfig
from harmoniad_jax.model.encoders.encoder import Features
from harmoniad_jax.model.fsam import Fsam
from harmoniad_jax.model.gscm import Gscm
from harmoniad_jax.model.harmoniad import Comparison, HarmoniAD
from harmoniad_jax.model.scoring import cosine_distance
from harmoniad_jax.model.split import GATES, FrequencySplit
from harmoniad_jax.steps.network import VARIANTS, build_model

BATCH, GROUPS, GRID, WIDTH = 2, 2, (4, 5), 8
SWITCHES = (
    "edge_kernels",
    "channel_gate",
    "spatial_gate",
    "shrinkage",
    "global_context",
    "class_token",
    "decimate",
)


def tiny_model(variant="harmoniad", *, groups=GROUPS, width=WIDTH, **settings):
    depths = {"high_depth": 2, "low_depth": 2, "plain_depth": 2}
    # A gate that learns, so that its gradient is looked at too.
    given = {"head_width": 4, "learnable_gate": True}
    config = ModelConfig(variant=variant, **given | depths | settings)
    return build_model(config, groups=groups, width=width)


def feature_shapes(width, grid=GRID, groups=GROUPS):
    return Features(
        jax.ShapeDtypeStruct((BATCH, groups, *grid, width), jnp.float32),
        jax.ShapeDtypeStruct((BATCH, width), jnp.float32),
    )


def random_features(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype),
        feature_shapes(WIDTH),
    )


def param_shapes(model, features):
    init = functools.partial(model.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), features)["params"]


@functools.cache
def default_param_shapes():
    return param_shapes(tiny_model(), feature_shapes(WIDTH))


@functools.cache
def random_params(variant):
    """Parameters far from their initial values, without compiling an initialisation."""
    rng = np.random.default_rng(1)
    shapes = param_shapes(tiny_model(variant), feature_shapes(WIDTH))
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), shapes
    )
    for name, block in params.get("fsam", {}).items():
        if name.startswith("block"):
            # Else the gate's two hidden units may rest at zero and the shrinkage remove
            # everything: neither passes a gradient then.
            block["ChannelGate_0"]["Dense_0"]["bias"] += 2.0
            block["threshold"] -= 4.0
    return params


class Results(NamedTuple):
    """Comparisons without and with noise, and the gradient of the noisy distances."""

    still: dict[str, Comparison]
    noisy: dict[str, Comparison]
    gradient: Any


@functools.cache
def compiled(variant):
    """(params, features, key) -> `Results`, all of it in one compilation."""
    model = tiny_model(variant)

    def loss(params, features, key):
        noisy = model.apply({"params": params}, features, train=True, rngs={"dropout": key})
        return sum(cosine_distance(*pair).mean() for pair in noisy.values()), noisy

    def run(params, features, key):
        still = model.apply({"params": params}, features, train=False)
        gradient, noisy = jax.grad(loss, has_aux=True)(params, features, key)
        return Results(still, noisy, gradient)

    # To optimise it would take longer than to run it slowly.
    options = {"xla_backend_optimization_level": 0}
    options["xla_llvm_disable_expensive_passes"] = True
    return jax.jit(run, compiler_options=options)


def with_closed_bottlenecks(params):
    """Zeroes the output layer of every bottleneck: nothing of the input gets through."""

    def close(path, leaf):
        names = [entry.key for entry in path]
        bottleneck = any(name.endswith("bottleneck") for name in names)
        return jnp.zeros_like(leaf) if bottleneck and "Dense_1" in names else leaf

    return jax.tree_util.tree_map_with_path(close, params)


@pytest.mark.parametrize(("width", "head_width"), [(32, 16), (1024, 64)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_shapes_of_every_variant(variant, width, head_width):
    model = tiny_model(variant, width=width, head_width=head_width)
    features = feature_shapes(width, grid=(5, 4))
    params = param_shapes(model, features)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    apply = functools.partial(model.apply, train=False)
    comparisons = jax.eval_shape(apply, {"params": params}, features)
    assert set(comparisons) == set(model.comparison_names)
    for pair in comparisons.values():
        for leaf in pair:
            assert (leaf.shape, leaf.dtype) == (features.patches.shape, jnp.float32)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_any_number_of_groups(variant, groups):
    depths = dict.fromkeys(("high_depth", "low_depth", "plain_depth"), groups)
    model = tiny_model(variant, groups=groups, **depths)
    features = feature_shapes(WIDTH, groups=groups)
    init = functools.partial(model.init_with_output, train=False)
    comparisons, _ = jax.eval_shape(init, jax.random.key(0), features)
    for pair in comparisons.values():
        assert pair.prediction.shape == pair.target.shape == features.patches.shape


@pytest.mark.parametrize(
    "setting",
    [{"gate": gate} for gate in GATES]
    + [{"learnable_gate": False}, {"mirror": True}]
    + [{switch: False} for switch in SWITCHES],
    ids=lambda setting: "-".join(f"{key}={value}" for key, value in setting.items()),
)
def test_every_setting_keeps_the_shapes(setting):
    model = tiny_model(**setting)
    features = feature_shapes(WIDTH)
    init = functools.partial(model.init_with_output, train=False)
    comparisons, variables = jax.eval_shape(init, jax.random.key(0), features)
    assert set(comparisons) == {"fused", "high", "low"}
    for pair in comparisons.values():
        assert pair.prediction.shape == pair.target.shape == features.patches.shape
    # The switch reaches its part: all but these change the parameters.
    default = default_param_shapes()
    unchanged = {"gate", "mirror", "edge_kernels", "global_context", "decimate"}
    changed = jax.tree.structure(variables["params"]) != jax.tree.structure(default)
    assert changed == (next(iter(setting)) not in unchanged)


def test_targets_are_the_features_and_their_bands():
    features = random_features(0)
    still, noisy, _ = compiled("harmoniad")(
        random_params("harmoniad"), features, jax.random.key(0)
    )
    for comparisons in (still, noisy):
        np.testing.assert_array_equal(comparisons["fused"].target, features.patches)
        bands = comparisons["high"].target + comparisons["low"].target
        np.testing.assert_allclose(bands, features.patches, atol=1e-6)
        fused = comparisons["high"].prediction + comparisons["low"].prediction
        np.testing.assert_allclose(comparisons["fused"].prediction, fused, atol=1e-5)
    # Noise acts on what is predicted, not on what is to be predicted.
    for name, pair in still.items():
        np.testing.assert_allclose(pair.target, noisy[name].target, atol=1e-6)
        assert np.abs(pair.prediction - noisy[name].prediction).max() > 1e-2


@pytest.mark.parametrize("variant", ["harmoniad", "plain"])
def test_only_training_is_noisy(variant):
    params, features = random_params(variant), random_features(0)
    run = compiled(variant)
    first = run(params, features, jax.random.key(0))
    again = run(params, features, jax.random.key(0))
    other = run(params, features, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    jax.tree.map(np.testing.assert_array_equal, first.still, other.still)
    for name in first.noisy:
        change = first.noisy[name].prediction - other.noisy[name].prediction
        assert np.abs(change).max() > 1e-2


@pytest.mark.parametrize("variant", ["harmoniad", "plain"])
def test_nothing_leads_around_a_bottleneck(variant):
    run, key = compiled(variant), jax.random.key(0)
    params = random_params(variant)

    def largest_changes(params):
        one, other = (run(params, random_features(seed), key) for seed in (0, 1))
        for mode in ("still", "noisy"):
            for name, pair in getattr(one, mode).items():
                change = pair.prediction - getattr(other, mode)[name].prediction
                yield np.abs(change).max()

    assert min(largest_changes(params)) > 1e-2
    assert max(largest_changes(with_closed_bottlenecks(params))) == 0


NAMES = {
    "harmoniad": {"split", "fsam", "gscm"},
    "high": {"split", "fsam"},
    "low": {"split", "gscm"},
    "plain": {"plain"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_have_the_names_that_checkpoints_have(variant):
    params = param_shapes(tiny_model(variant), feature_shapes(WIDTH))
    assert set(params) == NAMES[variant]


def test_parts_without_a_name_are_called_after_their_place():
    model = HarmoniAD(
        split=FrequencySplit(learnable=True),
        high=Fsam(depth=2, groups=GROUPS),
        low=Gscm(depth=2, groups=GROUPS, heads=2),
    )
    assert set(param_shapes(model, feature_shapes(WIDTH))) == {"split", "high", "low"}


class Halves(nn.Module):
    """Another split: half of the features is low, half is high."""

    def __call__(self, features, mesh=None):
        del mesh
        return features / 2, features - features / 2


def test_a_split_of_any_kind_and_any_branches_make_a_network():
    """One class for both bands, under names of their own."""
    branch = functools.partial(Gscm, depth=2, groups=GROUPS, heads=2)
    model = HarmoniAD(split=Halves(), high=branch(name="one"), low=branch(name="two"))
    assert model.comparison_names == ("fused", "high", "low")
    features = random_features(0)
    comparisons, variables = jax.jit(
        functools.partial(model.init_with_output, train=False)
    )(jax.random.key(0), features)
    assert set(variables["params"]) == {"one", "two"}
    np.testing.assert_array_equal(comparisons["low"].target, features.patches / 2)
    fused = comparisons["high"].prediction + comparisons["low"].prediction
    np.testing.assert_allclose(comparisons["fused"].prediction, fused, atol=1e-6)


@pytest.mark.parametrize("reads_low", [False, True])
def test_the_high_branch_reads_the_low_band_if_it_is_to(reads_low):
    """A constant belongs to the low band wholly."""
    features, params = random_features(0), random_params("high")
    moved = features._replace(patches=features.patches + jnp.arange(1.0, WIDTH + 1))
    model = tiny_model("high", high_reads_low=reads_low)
    first, second = (
        model.apply({"params": params}, one, train=False)["high"]
        for one in (features, moved)
    )
    np.testing.assert_allclose(first.target, second.target, atol=1e-4)
    difference = jnp.abs(first.prediction - second.prediction).max()
    assert (difference > 0.1) == reads_low
    assert reads_low or difference < 1e-3


@pytest.mark.parametrize(("variant", "branch"), [("high", "fsam"), ("low", "gscm")])
def test_single_branches_are_those_of_the_whole(variant, branch):
    features = feature_shapes(WIDTH)
    whole = default_param_shapes()
    part = param_shapes(tiny_model(variant), features)
    assert part == {name: whole[name] for name in ("split", branch)}


def test_class_token_has_a_bottleneck_and_is_used():
    run, params = compiled("harmoniad"), random_params("harmoniad")
    features = random_features(0)
    other = features._replace(class_token=features.class_token + 1.0)
    one, two = (run(params, each, jax.random.key(0)).still for each in (features, other))
    assert np.abs(one["low"].prediction - two["low"].prediction).max() > 1e-3
    np.testing.assert_array_equal(one["high"].prediction, two["high"].prediction)


def test_gradient_reaches_every_parameter():
    gradient = compiled("harmoniad")(
        random_params("harmoniad"), random_features(0), jax.random.key(0)
    ).gradient
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        assert np.any(leaf), path


def test_bands_as_targets_hold_no_gradient():
    """Else the gate would move to where its bands are easiest to predict."""
    model, features = tiny_model(), random_features(0)

    def targets(params):
        comparisons = model.apply({"params": params}, features, train=False)
        return sum(jnp.square(pair.target).sum() for pair in comparisons.values())

    gradient = jax.jit(jax.grad(targets))(random_params("harmoniad"))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("level", [0.0, 1.0, 30.0])
def test_constant_features_are_no_trouble(level):
    """A blank image: the high band is nothing but rounding."""
    features = jax.tree.map(
        lambda leaf: jnp.full(leaf.shape, level, leaf.dtype), feature_shapes(WIDTH)
    )
    for params in (
        random_params("harmoniad"),
        with_closed_bottlenecks(random_params("harmoniad")),
    ):
        results = compiled("harmoniad")(params, features, jax.random.key(0))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(results))


def test_images_do_not_see_each_other():
    """So that padding, batch size and device count change no prediction."""
    features, key = random_features(0), jax.random.key(0)
    other = jax.tree.map(lambda leaf: leaf.at[1].add(1.0 + leaf[1]), features)
    run, params = compiled("harmoniad"), random_params("harmoniad")
    one, two = (run(params, each, key).still for each in (features, other))
    for name in one:
        for first, second in zip(one[name], two[name], strict=True):
            np.testing.assert_allclose(first[0], second[0], rtol=1e-4, atol=1e-5)
            assert np.abs(first[1] - second[1]).max() > 1e-2


@functools.cache
def cost(variant):
    """Parameters, and floating-point operations of a gradient, of a DINOv2-S model."""
    model = build_model(ModelConfig(variant=variant), groups=GROUPS, width=384)
    features = feature_shapes(384, grid=(16, 16))
    params = param_shapes(model, features)

    def loss(params, features, key):
        comparisons = model.apply(
            {"params": params}, features, train=True, rngs={"dropout": key}
        )
        return sum(cosine_distance(*pair).mean() for pair in comparisons.values())

    key = jax.eval_shape(lambda: jax.random.key(0))
    lowered = jax.jit(jax.grad(loss)).lower(params, features, key)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    return count, lowered.cost_analysis()["flops"]


def test_plain_is_a_fair_baseline():
    """About as many parameters, and no more arithmetic than for the baseline."""
    parameters, operations = cost("harmoniad")
    plain_parameters, plain_operations = cost("plain")
    assert parameters == pytest.approx(plain_parameters, rel=0.1)
    assert 0 < operations <= plain_operations
