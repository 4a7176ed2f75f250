"""Random small networks and encoders, exported and compared with JAX."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
import transformers

from harmoniad_jax.config import Config, ShardingConfig, with_settings
from harmoniad_jax.devices.mesh import make_mesh
from harmoniad_jax.exporting.convert import to_onnx
from harmoniad_jax.exporting.program import exported_program, input_shape
from harmoniad_jax.exporting.quantize import dense_layers
from harmoniad_jax.inference.trained import Trained
from harmoniad_jax.model.encoders.clip import untrained_config
from harmoniad_jax.model.encoders.encoder import EncoderDescription, load_encoder
from harmoniad_jax.model.scoring import Statistics
from harmoniad_jax.run.run import assemble

CHOICES = {
    "family": ["clip", "dinov2"],
    "grid": [3, 4, 5],
    "model.variant": ["harmoniad", "high", "low", "plain"],
    "model.gate": ["sigmoid", "gaussian", "butterworth"],
    "model.learnable_gate": [False, True],
    "model.mirror": [False, True],
    "model.decimate": [False, True],
    "model.decimation": [2, 3],
    "model.class_token": [False, True],
    "model.global_context": [False, True],
    "model.channel_gate": [False, True],
    "model.spatial_gate": [False, True],
    "model.shrinkage": [False, True],
    "encoder.attention": ["library", "fused"],
    "encoder.recentre": ["none", "class_token"],
    "encoder.chroma_sigma": [0.0, 1.0],
    "encoder.groups": [1, 2],
    "evaluation.high_weight": [0.0, 0.5],
    "evaluation.score_decay": [0.5, 1.0],
    "evaluation.background_share": [0.0, 0.75],
    "evaluation.smoothing_sigma": [0.0, 2.0],
    "evaluation.top_share": [0.0, 0.05],
    "model.high_attention": [False, True],
}
# What is apart from the defaults, and what needs most of the converter.
FIRST = {
    "family": "dinov2",
    "grid": 5,
    "model.learnable_gate": True,
    "model.mirror": True,
    "encoder.recentre": "class_token",
    "evaluation.high_weight": 0.5,
}
CHOSEN = [
    FIRST,
    {
        "family": "clip",
        "encoder.attention": "fused",
        "encoder.groups": 1,
        "encoder.chroma_sigma": 0.0,
        "model.variant": "high",
        "model.gate": "ideal",
        "grid": 3,
    },
]
PATCH, WIDTH, DEPTH = 4, 16, 2
# Of the encoder before its positions are resized.
TRAINED_SIDE = 16


def description(family):
    sizes = {"patch_size": PATCH, "image_size": TRAINED_SIDE}
    configs = {
        "clip": lambda: untrained_config(
            width=WIDTH, depth=DEPTH, heads=2, patch=PATCH, image_side=TRAINED_SIDE
        ),
        "dinov2": lambda: transformers.Dinov2Config(
            hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=2, **sizes
        ),
    }
    return EncoderDescription("drawn", None, configs[family]())


def drawn_run(choice, seed=0):
    """An opened run as it might have been trained: no parameter is at its start."""
    choice = dict(choice)
    encoder = description(choice.pop("family"))
    side = PATCH * choice.pop("grid", 4)
    groups = choice.get("encoder.groups", 2)
    config = with_settings(
        Config(),
        {
            "data.image_side": side,
            "encoder.taps": (1, 2),
            "encoder.dtype": "float32",
            "model.head_width": 8,
            "model.high_depth": groups,
            "model.low_depth": groups,
            "model.plain_depth": groups,
            "evaluation.map_side": 12,
            "evaluation.smoothing_sigma": 1.0,
            **choice,
        },
    )
    encoder = load_encoder(
        encoder,
        image_side=side,
        taps=config.encoder.taps,
        groups=groups,
        attention=config.encoder.attention,
        recentre=config.encoder.recentre,
        chroma_sigma=config.encoder.chroma_sigma,
        seed=seed,
    )
    run = assemble(config, None, encoder, make_mesh(ShardingConfig(data=1)))
    random = np.random.default_rng(seed)

    def moved(leaf):
        return np.float32(leaf + 0.3 * random.normal(size=leaf.shape))

    state = jax.device_get(run.new_state())
    names = run.steps.model.comparison_names

    def positive():
        return {name: np.float32(random.uniform(0.5, 1, groups)) for name in names}

    state = state.replace(
        params=jax.tree.map(moved, state.params),
        statistics=Statistics(positive(), positive()),
    )
    params = jax.tree.map(moved, run.encoder.params)
    return Trained(run, state, params, inputs=None)


def images_of(trained, count, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, *input_shape(trained), 3), np.uint8)


def predicted(trained, images):
    arguments = (trained.state.params, trained.state.statistics, trained.encoder_params)
    found = jax.jit(trained.run.steps.predict_step)(*arguments, images)
    return np.asarray(found.anomaly_maps), np.asarray(found.image_scores)


def exported(trained, **options):
    model = to_onnx(
        exported_program(trained),
        shape=input_shape(trained),
        outputs=("maps", "scores"),
        metadata={},
        **options,
    )
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return model, lambda images: session.run(None, {"images": images})


def check_exported(trained):
    model, run = exported(trained)
    images = images_of(trained, 3)
    expected = predicted(trained, images)
    # Of the scores too: a map may be small because nearly all of it was taken off, and its
    # rounding is that of before.
    scale = max(np.abs(one).max() for one in expected)
    assert np.ptp(expected[0]) > 1e-3 * scale and np.ptp(expected[1]) > 0
    for batch in (1, 2, 3):
        for found, wanted in zip(run(images[:batch]), expected, strict=True):
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, wanted[:batch], rtol=0, atol=2e-5 * scale)
    return model


@pytest.mark.parametrize("choice", CHOSEN, ids=lambda choice: choice["family"])
def test_an_exported_network_computes_what_the_run_computes(choice):
    model = check_exported(drawn_run(choice))
    # The converter would do without the fine operators, more slowly.
    nodes = list(model.graph.node)
    groups = choice.get("encoder.groups", 2)
    assert [n.op_type for n in nodes].count("LayerNormalization") >= groups
    if choice.get("model.variant", "harmoniad") in ("harmoniad", "high"):
        convolutions = [node for node in nodes if node.op_type == "Conv"]
        found = [a.i for n in convolutions for a in n.attribute if a.name == "group"]
        assert found.count(WIDTH) == groups  # a depthwise filter in each FSAM block


def test_smoothing_keeps_its_floats_where_dense_layers_have_8_bits():
    trained = drawn_run({**FIRST, "model.variant": "low", "encoder.chroma_sigma": 1.0})
    model, _ = exported(trained)
    dense = dense_layers(model, WIDTH)
    side, _ = input_shape(trained)
    sizes = {constant.name: tuple(constant.dims) for constant in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    smoothing = [node for node in products if sizes.get(node.input[1]) == (side, side)]
    assert len(smoothing) == 2
    assert not {node.name for node in smoothing} & set(dense)
    # The four products of attention and two of the MLP in each block of the encoder.
    assert len(dense) > 6 * DEPTH


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25))
def test_any_network_computes_what_its_run_computes(seed):
    random = np.random.default_rng(seed)
    choice = {
        name: values[random.integers(len(values))] for name, values in CHOICES.items()
    }
    check_exported(drawn_run(choice, seed))


@pytest.mark.slow
def test_an_encoder_in_bfloat16_is_exported_in_float32():
    trained = drawn_run({"family": "clip", "encoder.groups": 1})
    encoder = trained.run.encoder
    halved = dataclasses.replace(encoder, module=encoder.module.clone(dtype=jnp.bfloat16))
    steps = dataclasses.replace(trained.run.steps, encoder=halved)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), trained.encoder_params)
    in_bfloat16 = dataclasses.replace(
        trained, run=dataclasses.replace(trained.run, steps=steps), encoder_params=params
    )
    exact = dataclasses.replace(
        trained, encoder_params=jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    )
    _, run = exported(in_bfloat16)
    images = images_of(trained, 2)
    maps, _ = predicted(exact, images)
    np.testing.assert_allclose(run(images)[0], maps, rtol=0, atol=2e-5 * np.abs(maps).max())
