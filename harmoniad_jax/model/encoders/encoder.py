"""The frozen image encoder: images in, G groups of patch features and the class token out.

Two families of `transformers`, one interface: the Flax CLIP vision model (the paper's
encoder) and the Flax DINOv2 model. The weights are never part of the trained state: an
`Encoder` holds them beside its pure function, and every step takes them as an argument.
"""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import transformers
from transformers.models.clip.modeling_flax_clip import FlaxCLIPVisionModule
from transformers.models.dinov2.modeling_flax_dinov2 import FlaxDinov2Module

from harmoniad_jax.errors import UserError
from harmoniad_jax.model.encoders.attention import fuse_attention
from harmoniad_jax.model.encoders.positions import resize_position_embedding
from harmoniad_jax.model.encoders.weights import find_checkpoint, hash_params, read_weights


class Family(NamedTuple):
    """What differs between the two encoder families."""

    model: type  # the library's class that reads checkpoints
    module: type  # the flax module inside it
    position_embedding: tuple[str, ...]  # its path in the parameter tree
    image_mean: tuple[float, float, float]  # of RGB in [0, 1]
    image_std: tuple[float, float, float]
    uses_native_side: bool  # default image side: the checkpoint's, or 16 patches


CLIP = Family(
    model=transformers.FlaxCLIPVisionModel,
    module=FlaxCLIPVisionModule,
    position_embedding=(
        "vision_model",
        "embeddings",
        "position_embedding",
        "embedding",
    ),
    image_mean=(0.48145466, 0.4578275, 0.40821073),
    image_std=(0.26862954, 0.26130258, 0.27577711),
    uses_native_side=True,
)
DINOV2 = Family(
    model=transformers.FlaxDinov2Model,
    module=FlaxDinov2Module,
    position_embedding=("embeddings", "position_embeddings"),
    image_mean=(0.485, 0.456, 0.406),
    image_std=(0.229, 0.224, 0.225),
    uses_native_side=False,
)
FAMILIES = {"clip": CLIP, "clip_vision_model": CLIP, "dinov2": DINOV2}


# What is subtracted from every patch token of an image: nothing, its class token, or the
# mean of its patches (after Dinomaly2, Guo et al. 2025, which takes the class token).
RECENTRINGS = ("none", "class_token", "image_mean")


class Features(NamedTuple):
    """What the encoder gives to the model, float32.

    patches: [B, G, h, w, D], each token normalised before the taps were averaged, and
        recentred then.
    class_token: [B, D], of the deepest tap, normalised.
    """

    patches: jax.Array
    class_token: jax.Array


@dataclasses.dataclass(frozen=True)
class EncoderDescription:
    """Facts about an encoder that are known before its weights are read."""

    name: str
    folder: Path | None  # None: no checkpoint, the weights are drawn at random
    hf_config: transformers.PretrainedConfig

    @property
    def family(self) -> Family:
        return FAMILIES[self.hf_config.model_type]

    @property
    def depth(self) -> int:
        return self.hf_config.num_hidden_layers

    @property
    def width(self) -> int:
        return self.hf_config.hidden_size

    @property
    def patch(self) -> int:
        return self.hf_config.patch_size

    @property
    def default_image_side(self) -> int:
        native = self.hf_config.image_size
        return native if self.family.uses_native_side else 16 * self.patch

    @property
    def default_taps(self) -> tuple[int, ...]:
        """Eight mid-depth blocks: 3-10 of 12, every second of 5-19 of 24 (1-based)."""
        first, last = max(round(0.22 * self.depth), 1), max(round(0.8 * self.depth), 1)
        spaced = np.linspace(first, last, 8).round()
        return tuple(sorted({int(block) for block in spaced}))


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """A frozen encoder at one image side: a pure function and its weights."""

    description: EncoderDescription
    image_side: int
    groups: tuple[tuple[int, ...], ...]  # 1-based blocks of each of the G groups
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    module: nn.Module
    params: Any  # pytree of numpy arrays, in the compute dtype
    weight_hash: str  # SHA-256 of the checkpoint's parameters, before any resizing
    attention: str = "library"  # one of `attention.ATTENTIONS`
    recentre: str = "none"  # one of `RECENTRINGS`

    @property
    def grid(self) -> int:
        """Patches along one side of the image: h = w."""
        return self.image_side // self.description.patch

    @property
    def width(self) -> int:
        return self.description.width

    def feature_shapes(self, batch: int) -> Features:
        """Shapes and dtypes of what `encode` returns for a batch."""
        groups, grid = len(self.groups), self.grid
        return Features(
            patches=jax.ShapeDtypeStruct(
                (batch, groups, grid, grid, self.width), jnp.float32
            ),
            class_token=jax.ShapeDtypeStruct((batch, self.width), jnp.float32),
        )

    def encode(self, params: Any, images: jax.Array) -> Features:
        """Encodes a batch of images.

        Args:
          params: the encoder's weights (`self.params`, wherever they were placed).
          images: [B, S, S, 3] uint8, RGB.

        Returns:
          `Features`: patches [B, G, h, w, D] and class_token [B, D], float32.
        """
        mean = jnp.asarray(self.image_mean, jnp.float32) * 255.0
        std = jnp.asarray(self.image_std, jnp.float32) * 255.0
        pixels = (images.astype(jnp.float32) - mean) / std
        fused = self.attention == "fused"
        with nn.intercept_methods(fuse_attention) if fused else contextlib.nullcontext():
            hidden_states = self.module.apply(
                {"params": params},
                pixels.astype(self.module.dtype),
                deterministic=True,
                output_hidden_states=True,
                return_dict=True,
            ).hidden_states
        # hidden_states[0] is the embedding, hidden_states[k] the output of block k:
        # before the final layer norm. Blocks after the last tap are dead code to XLA.
        grouped = [
            sum(_normalise(hidden_states[tap]) for tap in taps) / len(taps)
            for taps in self.groups
        ]
        tokens = jnp.stack([_recentred(group, self.recentre) for group in grouped], axis=1)
        deepest = max(tap for taps in self.groups for tap in taps)
        return Features(
            patches=tokens.reshape(*tokens.shape[:2], self.grid, self.grid, self.width),
            class_token=_normalise(hidden_states[deepest][:, 0]),
        )


def _recentred(tokens: jax.Array, recentre: str) -> jax.Array:
    """The patches of tokens [B, 1 + N, D], class token first: [B, N, D]."""
    class_token, patches = tokens[:, :1], tokens[:, 1:]
    if recentre == "class_token":
        return patches - class_token
    if recentre == "image_mean":
        return patches - patches.mean(axis=1, keepdims=True)
    return patches


def _normalise(tokens: jax.Array) -> jax.Array:
    """Layer norm without parameters: CLIP has channels a hundred times the others."""
    tokens = tokens.astype(jnp.float32)
    centred = tokens - tokens.mean(axis=-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + 1e-6)


def describe_encoder(name: str) -> EncoderDescription:
    """Finds a checkpoint by hub name or local folder and reads its configuration.

    Raises:
      UserError: nothing there, the hub cannot be reached, or an unknown architecture.
    """
    folder = find_checkpoint(name)
    config = _read_json(name, folder / "config.json")
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise UserError(
            f"encoder.name={name!r} is of type {model_type!r}; "
            f"supported types are {', '.join(sorted(FAMILIES))}."
        )
    if model_type == "clip":
        hf_config = transformers.CLIPVisionConfig(**config.get("vision_config", {}))
    elif model_type == "clip_vision_model":
        hf_config = transformers.CLIPVisionConfig(**config)
    else:
        hf_config = transformers.Dinov2Config(**config)
    return EncoderDescription(name=name, folder=folder, hf_config=hf_config)


def describe_untrained_clip(
    *, width: int, depth: int, heads: int, patch: int, image_side: int
) -> EncoderDescription:
    """A CLIP vision architecture whose weights will be drawn at random."""
    hf_config = transformers.CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        patch_size=patch,
        image_size=image_side,
    )
    return EncoderDescription(name="untrained", folder=None, hf_config=hf_config)


def load_encoder(
    description: EncoderDescription,
    *,
    image_side: int,
    taps: tuple[int, ...],
    groups: int,
    dtype: jnp.dtype = jnp.float32,
    attention: str = "library",
    recentre: str = "none",
    seed: int = 0,
) -> Encoder:
    """Reads (or draws) an encoder's weights and fits them to an image side.

    Args:
      description: from `describe_encoder` or `describe_untrained_clip`.
      image_side: side S of the square input images in pixels, a multiple of the patch.
      taps: 1-based blocks to read, in order; split into `groups` contiguous groups.
      groups: number G of feature groups.
      dtype: compute dtype of the encoder, float32 or bfloat16.
      attention: "library" or "fused", see `model.attention`.
      recentre: one of `RECENTRINGS`.
      seed: of the random weights, where there is no checkpoint.

    Raises:
      UserError: the checkpoint is missing, incomplete or in a format that is not read.
    """
    family = description.family
    images = jnp.zeros((1, *2 * [description.hf_config.image_size], 3))
    if description.folder is None:
        module = family.module(description.hf_config)
        params = jax.jit(module.init)(jax.random.key(seed), images)["params"]
        params = jax.tree.map(np.asarray, params)
    else:
        expected = jax.eval_shape(
            family.module(description.hf_config).init, jax.random.key(0), images
        )["params"]
        params = read_weights(description.name, family.model.base_model_prefix, expected)
    weight_hash = hash_params(params)

    hf_config = type(description.hf_config).from_dict(description.hf_config.to_dict())
    hf_config.image_size = image_side
    flat = flax.traverse_util.flatten_dict(params)
    embedding = flat[family.position_embedding]
    flat[family.position_embedding] = resize_position_embedding(
        embedding.reshape(-1, embedding.shape[-1]), image_side // description.patch
    ).reshape(*embedding.shape[:-2], -1, embedding.shape[-1])
    params = flax.traverse_util.unflatten_dict(flat)

    mean, std = _image_statistics(description)
    return Encoder(
        description=description,
        image_side=image_side,
        groups=tuple(tuple(group.tolist()) for group in np.array_split(taps, groups)),
        image_mean=mean,
        image_std=std,
        module=family.module(hf_config, dtype=dtype),
        params=jax.tree.map(lambda leaf: leaf.astype(dtype), params),
        weight_hash=weight_hash,
        attention=attention,
        recentre=recentre,
    )


def _image_statistics(description: EncoderDescription):
    """The mean and standard deviation that the checkpoint was trained with."""
    family = description.family
    path = description.folder and description.folder / "preprocessor_config.json"
    if not path or not path.is_file():
        return family.image_mean, family.image_std
    stored = _read_json(description.name, path)
    return (
        tuple(stored.get("image_mean") or family.image_mean),
        tuple(stored.get("image_std") or family.image_std),
    )


def _read_json(name: str, path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint's folder."""
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError(f"it holds {values!r}")
    except (OSError, ValueError) as error:
        raise UserError(
            f"encoder.name={name!r}: {path.parent} holds no readable {path.name} "
            f"({error}); expected a folder in the Hugging Face layout."
        ) from None
    return values
