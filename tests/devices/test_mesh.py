"""Any mesh gives the same numbers, and splits what it promises to split."""

import functools
import re

import jax
import numpy as np
import pytest
from run_helpers import changed, shallow

from harmoniad_jax.devices.mesh import (
    SMALLEST_SPLIT,
    batched,
    make_mesh,
    replicated,
    shard_batch,
    shardings_of,
)
from harmoniad_jax.errors import UserError
from harmoniad_jax.model.encoders.encoder import Features
from harmoniad_jax.run.run import prepare_run

STEPS = 3
# The extremes every day: each mesh is compiled for.
SLOW = pytest.mark.slow
MESHES = [(8, 1), (2, 4), *(pytest.param(*mesh, marks=SLOW) for mesh in ((2, 1), (4, 1)))]


@pytest.fixture(scope="module")
def smallest(tiny_config):
    """One block in each branch: what takes time here is compiling."""
    # With the gate that has parameters: their gradient is a sum over devices as well.
    return changed(shallow(tiny_config), "model", learnable_gate=True)


def run_on(config, data: int, model: int, **settings):
    """A prepared run on a mesh of data x model devices."""
    config = changed(config, "sharding", data=data, model=model, **settings)
    return prepare_run(config, for_training=True)


@functools.cache
def compiled_update(config, data: int, model: int):
    run = run_on(config, data, model)
    abstract = run.abstract_state
    shardings = shardings_of(abstract)
    update = jax.jit(
        run.steps.update,
        in_shardings=(shardings, batched(run.mesh)),
        out_shardings=(shardings, replicated(run.mesh)),
    )
    features = run.encoder.feature_shapes(run.config.train.batch_size)
    return update.lower(abstract, features).compile()


def trained_on(config, data: int, model: int):
    """Metrics of some steps, the parameters after them, and predictions."""
    run = run_on(config, data, model)
    update, state = compiled_update(config, data, model), run.new_state()
    shapes = run.encoder.feature_shapes(config.train.batch_size)
    draw = np.random.default_rng(0)
    collected = []
    for _ in range(STEPS):
        features = [draw.normal(size=shape.shape).astype(np.float32) for shape in shapes]
        state, metrics = update(state, Features(*shard_batch(run.mesh, features)))
        collected.append(jax.device_get(metrics))
    images = draw.integers(0, 255, (8, 32, 32, 3), dtype=np.uint8)
    prediction = jax.jit(run.steps.predict_step, out_shardings=replicated(run.mesh))(
        state.params,
        state.statistics,
        run.place_encoder(),
        shard_batch(run.mesh, images),
    )
    return collected, jax.device_get(state.params), jax.device_get(prediction)


@pytest.fixture(scope="module")
def on_one_device(smallest):
    return trained_on(smallest, 1, 1)


@pytest.mark.parametrize(("data", "model"), MESHES)
def test_every_mesh_gives_the_same(smallest, on_one_device, data, model):
    """Losses, parameters after some steps, maps and scores, to float32's rounding."""
    found = trained_on(smallest, data, model)
    for name, ours, theirs in zip(
        ("metrics", "parameters", "prediction"), found, on_one_device, strict=True
    ):
        jax.tree.map(
            lambda a, b, name=name: np.testing.assert_allclose(
                a, b, rtol=2e-4, atol=2e-5, err_msg=name
            ),
            ours,
            theirs,
        )


def test_weights_and_optimizer_are_split_over_the_model_axis(smallest):
    state = run_on(smallest, 2, 4).abstract_state
    for leaf in jax.tree.leaves(state):
        mine = np.prod(leaf.sharding.shard_shape(leaf.shape))
        assert mine == leaf.size / (4 if leaf.size >= SMALLEST_SPLIT else 1)
    split = [leaf for leaf in jax.tree.leaves(state.params) if leaf.size >= SMALLEST_SPLIT]
    assert len(split) > 5
    moments, params = state.opt_state[1].mu, state.params
    assert jax.tree.map(lambda a: a.sharding, moments) == jax.tree.map(
        lambda a: a.sharding, params
    )


def test_the_encoder_is_split_if_asked_for(tiny_config):
    held = {}
    for split in (False, True):
        params = run_on(tiny_config, 2, 4, encoder=split).place_encoder()
        held[split] = sum(
            leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(params)
        )
    assert held[True] < 0.6 * held[False]


def test_no_device_sees_the_features_of_another(smallest):
    """Neither the FFT nor anything else gathers the batch: it would not scale."""
    text = compiled_update(smallest, 8, 1).as_text()
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather", text)
    features = run_on(smallest, 8, 1).encoder.feature_shapes(8).patches
    for shape in gathered:
        # The distances of all positions are, for the quantile of the hard mining.
        assert np.prod([int(n) for n in shape.split(",") if n]) <= features.size // 16


def test_split_weights_are_gathered_and_activations_stay(smallest):
    """The compiler is free to do the opposite, and does where it is left to itself."""
    run = run_on(smallest, 2, 4)
    text = compiled_update(smallest, 2, 4).as_text()
    assert not re.search(r" (all-to-all|collective-permute)(-start)?\(", text)
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather\(.*op_name=\"(.*?)\"", text)
    weights = {
        tuple(sorted(leaf.shape))
        for leaf in jax.tree.leaves(run.abstract_state.params)
        if leaf.size >= SMALLEST_SPLIT
    }
    shapes = [
        tuple(sorted(int(n) for n in shape.split(",")))
        for shape, name in gathered
        if "quantile" not in name
    ]
    assert set(shapes) == weights
    # Once each: what was gathered for the loss is used again for its gradient.
    params = jax.tree.leaves(run.abstract_state.params)
    assert len(shapes) == sum(leaf.size >= SMALLEST_SPLIT for leaf in params)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"data": 3, "model": 1}, "config.train.batch_size is 8"),
        ({"data": 16, "model": 1}, "config.sharding.data is 16"),
        ({"data": 0, "model": 3}, "config.sharding.model is 3"),
        ({"data": 0, "model": 16}, "config.sharding.model is 16"),
        ({"data": -1, "model": 1}, "config.sharding.data is -1"),
        ({"data": 0, "model": 0}, "config.sharding.model is 0"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(tiny_config, settings, named):
    with pytest.raises(UserError, match=re.escape(named)):
        run_on(tiny_config, **settings)


def test_any_number_of_devices_evaluates(tiny_config):
    """A batch of training need not fit them, and that of evaluation is rounded up."""
    config = changed(tiny_config, "train", batch_size=5)
    run = prepare_run(changed(config, "evaluation", batch_size=9))
    assert (run.mesh.size, run.evaluation_batch_size) == (8, 16)


def test_a_mesh_of_fewer_devices_takes_the_first(tiny_config):
    run = run_on(tiny_config, 2, 1)
    assert list(run.mesh.devices.flat) == jax.devices()[:2]
    assert make_mesh().size == 8
