"""A family of encoders is one file: a third one, from its checkpoint to features."""

import json
import types

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from transformers.models.clip.modeling_flax_clip import FlaxCLIPVisionModule

from harmoniad_jax.errors import UserError
from harmoniad_jax.model.encoders.clip import Clip, untrained_config
from harmoniad_jax.model.encoders.encoder import (
    describe_encoder,
    describe_untrained_clip,
    load_encoder,
)
from harmoniad_jax.model.encoders.family import Architecture, Tokens
from harmoniad_jax.model.encoders.registry import FAMILIES, register

REGISTERS = 3
SIZES = {"width": 8, "depth": 2, "heads": 2, "patch": 4, "image_side": 16}
# What its config.json says: the same sizes under names that no other family has.
NAMES = {"dim": "width", "layers": "depth", "heads": "heads", "tile": "patch"}
STORED = {name: SIZES[size] for name, size in NAMES.items()} | {"trained_at": 16}
SETTINGS = {"taps": (1, 2), "groups": 2}


class StampConfig(transformers.PretrainedConfig):
    model_type = "stamp_vision"

    def __init__(self, dim=0, layers=0, heads=0, tile=0, trained_at=0, **kwargs):
        super().__init__(**kwargs)
        self.dim, self.layers, self.heads = dim, layers, heads
        self.tile, self.trained_at = tile, trained_at


class StampModule(nn.Module):
    """CLIP's arithmetic, with register tokens behind the class token."""

    config: StampConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, pixels, **keywords):
        sizes = {size: getattr(self.config, name) for name, size in NAMES.items()}
        config = untrained_config(**sizes, image_side=self.config.trained_at)
        tower = FlaxCLIPVisionModule(config, dtype=self.dtype, name="tower")
        outputs = tower(pixels, **keywords | {"output_hidden_states": True})
        registers = self.param(
            "registers", nn.initializers.ones, (REGISTERS, config.hidden_size)
        )
        registers = jnp.broadcast_to(registers, (len(pixels), *registers.shape))
        return types.SimpleNamespace(
            hidden_states=[
                jnp.concatenate([state[:, :1], registers, state[:, 1:]], axis=1)
                for state in outputs.hidden_states
            ]
        )


class Stamp(Clip):
    """Attention is CLIP's; names, sizes and the order of tokens are its own."""

    model_types = ("stamp", "stamp_vision")
    module = StampModule
    position_embedding = ("tower", *Clip.position_embedding)
    image_mean = (0.5, 0.4, 0.3)

    def read_config(self, values):
        return StampConfig(**values.get("vision", values))

    def default_image_side(self, config):
        return 7 * config.tile

    def architecture(self, config):
        return Architecture(config.dim, config.layers, config.tile, config.trained_at)

    def at_side(self, config, image_side):
        return StampConfig(**config.to_dict() | {"trained_at": image_side})

    def split_tokens(self, tokens):
        return Tokens(class_token=tokens[:, 0], patches=tokens[:, 1 + REGISTERS :])


@pytest.fixture
def stamp():
    """The family, registered for the time of a test."""
    family = Stamp()
    register(family)
    yield family
    for name in family.model_types:
        del FAMILIES[name]


@pytest.fixture(scope="module")
def clip():
    """A CLIP of the same sizes, by whose features those of the third family are known."""
    return describe_untrained_clip(**SIZES)


@pytest.fixture(scope="module")
def folder(clip, tmp_path_factory):
    """A checkpoint of the third family, with the weights of that CLIP."""
    folder = tmp_path_factory.mktemp("stamp")
    tower = load_encoder(clip, image_side=16, **SETTINGS).params
    params = {"tower": tower, "registers": np.full((REGISTERS, 8), 50.0, np.float32)}
    (folder / "flax_model.msgpack").write_bytes(flax.serialization.to_bytes(params))
    config = {"model_type": "stamp", "vision": STORED}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def features(encoder, side):
    images = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    return jax.device_get(jax.jit(encoder.encode)(encoder.params, images))


def test_an_unregistered_family_is_refused(folder):
    with pytest.raises(UserError, match="is of type 'stamp'; supported types are clip"):
        describe_encoder(str(folder))


def test_a_registered_family_is_described(folder, stamp):
    description = describe_encoder(str(folder))
    assert description.family is stamp
    assert (description.width, description.depth, description.patch) == (8, 2, 4)
    assert description.default_image_side == 28
    assert description.default_taps == (1, 2)


@pytest.mark.parametrize("side", [16, 28])
@pytest.mark.parametrize("attention", ["library", "fused"])
@pytest.mark.parametrize("recentre", ["none", "class_token"])
def test_a_registered_family_gives_features(folder, stamp, clip, side, attention, recentre):
    """Positions resized, attention replaced, registers dropped: what CLIP itself gives."""
    settings = SETTINGS | {
        "image_side": side,
        "attention": attention,
        "recentre": recentre,
    }
    encoder = load_encoder(describe_encoder(str(folder)), **settings)
    assert encoder.image_mean == stamp.image_mean
    got = features(encoder, side)
    expected = load_encoder(clip, **settings)
    object.__setattr__(expected, "image_mean", stamp.image_mean)
    for ours, reference in zip(got, features(expected, side), strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-5)
    assert got.patches.shape == encoder.feature_shapes(2).patches.shape
    assert got.patches.std() > 0.1


def test_a_registered_family_gives_features_of_any_shape(folder, stamp, clip):
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 32, 3), np.uint8)
    got, expected = (
        load_encoder(description, image_side=16, **SETTINGS).for_shapes([(8, 32)])
        for description in (describe_encoder(str(folder)), clip)
    )
    object.__setattr__(expected, "image_mean", stamp.image_mean)
    for ours, reference in zip(
        *[jax.jit(one.encode)(one.params, images) for one in (got, expected)], strict=True
    ):
        np.testing.assert_allclose(ours, reference, atol=1e-5)


def test_fused_attention_reaches_a_registered_family(folder, stamp):
    images = np.zeros((1, 16, 16, 3), np.uint8)
    programs = set()
    for attention in ("library", "fused"):
        encoder = load_encoder(
            describe_encoder(str(folder)), image_side=16, attention=attention, **SETTINGS
        )
        programs.add(str(jax.make_jaxpr(encoder.encode)(encoder.params, images)))
    assert len(programs) == 2
