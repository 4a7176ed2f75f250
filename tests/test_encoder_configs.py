"""The recommended settings of each CLIP model, from config file to anomaly map."""

import jax
import numpy as np
import pytest
import transformers

from configs import folder, joint, mvtec
from harmoniad_jax.clip_models import CLIP_MODELS
from harmoniad_jax.config import parse_config, with_settings
from harmoniad_jax.data.records import Dataset
from harmoniad_jax.devices.mesh import make_mesh
from harmoniad_jax.errors import UserError
from harmoniad_jax.model.encoders.encoder import Encoder, EncoderDescription, load_encoder
from harmoniad_jax.run.checks import config_problems
from harmoniad_jax.run.run import assemble

# The published architectures: width, blocks, heads.
ARCHITECTURES = {"base": (768, 12, 12), "large": (1024, 24, 16)}


def description_of(name):
    """A model as its config.json on the hub describes it, without weights."""
    model = CLIP_MODELS[name]
    width, depth, heads = ARCHITECTURES["large" if "large" in model.name else "base"]
    config = transformers.CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        patch_size=model.patch,
        image_size=model.native_side,
    )
    return EncoderDescription(name=model.name, folder=None, hf_config=config)


def config_of(name, **changes):
    config = parse_config(mvtec.get_config(f"encoder={name}"))
    return with_settings(config, {"encoder.dtype": "float32", **changes})


def encoder_of(name, config):
    return load_encoder(
        description_of(name),
        image_side=config.data.image_side,
        taps=config.encoder.taps,
        groups=config.encoder.groups,
        chroma_sigma=config.encoder.chroma_sigma,
    )


def abstract_encoder(name, config):
    """The encoder with shapes for weights, as loading would leave them."""
    description = description_of(name)
    hf_config = type(description.hf_config).from_dict(description.hf_config.to_dict())
    hf_config.image_size = config.data.image_side
    module = description.family.module(hf_config)
    images = jax.ShapeDtypeStruct((1, *2 * [config.data.image_side], 3), np.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
    taps = np.array_split(config.encoder.taps, config.encoder.groups)
    return Encoder(
        description=description,
        image_side=config.data.image_side,
        groups=tuple(tuple(group.tolist()) for group in taps),
        image_mean=description.family.image_mean,
        image_std=description.family.image_std,
        module=module,
        params=params,
        weight_hash="",
        chroma_sigma=config.encoder.chroma_sigma,
    )


def abstract_prediction(run, batch):
    """Shapes of `predict_step`, and of the state after a training step."""
    side = run.encoder.image_side
    images = jax.ShapeDtypeStruct((batch, side, side, 3), np.uint8)
    state = jax.eval_shape(run.initial_state)
    prediction = jax.eval_shape(
        run.steps.predict_step,
        *(state.params, state.statistics, run.encoder.params, images),
    )
    after, metrics = jax.eval_shape(run.steps.train_step, state, run.encoder.params, images)
    return prediction, state, after, metrics


@pytest.mark.parametrize("name", CLIP_MODELS)
def test_recommended_settings_fit_the_model(name):
    config = config_of(name)
    config = with_settings(config, {"data.root": "photos"})
    model, description = CLIP_MODELS[name], description_of(name)
    assert config.encoder.name == model.name
    assert config_problems(config, description, 8) == []
    assert model.taps == description.default_taps
    assert 14 <= model.side // model.patch <= 24


@pytest.mark.parametrize("name", CLIP_MODELS)
def test_training_and_prediction_have_the_expected_shapes(name):
    """From uint8 images to maps, and a step of training, without computing anything."""
    config, model = config_of(name), CLIP_MODELS[name]
    run = assemble(
        config, None, abstract_encoder(name, config), make_mesh(devices=jax.devices()[:1])
    )
    grid, width = model.side // model.patch, description_of(name).width
    shapes = run.encoder.feature_shapes(2)
    assert shapes.patches.shape == (2, 2, grid, grid, width)
    encoded = jax.eval_shape(
        run.encoder.encode,
        run.encoder.params,
        jax.ShapeDtypeStruct((2, model.side, model.side, 3), np.uint8),
    )
    assert encoded == shapes
    prediction, state, after, metrics = abstract_prediction(run, 2)
    assert prediction.anomaly_maps.shape == (2, 16 * grid, 16 * grid)
    assert prediction.image_scores.shape == (2,)
    assert {maps.shape for maps in prediction.distance_maps.values()} == {(2, grid, grid)}
    assert jax.tree.map(lambda leaf: leaf.shape, after) == jax.tree.map(
        lambda leaf: leaf.shape, state
    )
    assert metrics["loss"].shape == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", CLIP_MODELS)
def test_random_weights_give_finite_maps(name):
    """The whole way with real arrays: position embeddings resized, all blocks, the head."""
    config = config_of(name, **{"model.high_depth": 2, "model.low_depth": 2})
    encoder = encoder_of(name, config)
    run = assemble(
        config, Dataset(train=[], test=[]), encoder, make_mesh(devices=jax.devices()[:1])
    )
    state = jax.jit(run.initial_state)()
    side = encoder.image_side
    images = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
    prediction = jax.jit(run.steps.predict_step)(
        state.params, state.statistics, encoder.params, images
    )
    assert np.isfinite(prediction.anomaly_maps).all()
    assert np.asarray(prediction.anomaly_maps).std() > 0
    # The grid that the position embeddings were resized to.
    grid = CLIP_MODELS[name].side // CLIP_MODELS[name].patch
    assert prediction.distance_maps["fused"].shape == (1, grid, grid)


def test_every_data_set_and_folder_takes_an_encoder():
    assert joint.get_config("encoder=clip-b16").data.image_side == 336
    config = folder.get_config("root=photos,encoder=clip-b32")
    assert (config.data.root, config.data.image_side) == ("photos", 448)
    same = folder.get_config(f"root=photos,encoder={CLIP_MODELS['clip-b32'].name}")
    assert same.to_dict() == config.to_dict()
    with pytest.raises(UserError, match="no folder and none of clip-b32, clip-b16"):
        folder.get_config("root=photos,encoder=clip-b61")
    other = folder.get_config("root=photos,encoder=weights/mine")
    assert (other.encoder.name, other.data.image_side) == ("weights/mine", 0)
