"""The frozen image encoder: images in, G groups of patch features and the class token out.

One interface for every family of encoders; what differs between them is in a file each
(`registry.py` lists them). The weights are never part of the trained state: an `Encoder`
holds them beside its pure function, and every step takes them as an argument.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import transformers

from harmoniad_jax.errors import UserError
from harmoniad_jax.model.encoders.attention import fused_attention
from harmoniad_jax.model.encoders.chroma import smooth_chroma
from harmoniad_jax.model.encoders.clip import untrained_config
from harmoniad_jax.model.encoders.family import Architecture, Family, Tokens
from harmoniad_jax.model.encoders.positions import resize_position_embedding
from harmoniad_jax.model.encoders.registry import FAMILIES
from harmoniad_jax.model.encoders.weights import (
    fetch_pointer,
    find_checkpoint,
    hash_params,
    is_pointer,
    read_weights,
)

# What is subtracted from every patch token of an image: nothing, or its class token
# (Dinomaly2, Guo et al. 2025).
RECENTRINGS = ("none", "class_token")
# What the position embeddings of images that are not square are called among the weights.
POSITIONS = "positions"


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
    def architecture(self) -> Architecture:
        return self.family.architecture(self.hf_config)

    @property
    def depth(self) -> int:
        return self.architecture.depth

    @property
    def width(self) -> int:
        return self.architecture.width

    @property
    def patch(self) -> int:
        return self.architecture.patch

    @property
    def default_image_side(self) -> int:
        return self.family.default_image_side(self.hf_config)

    @property
    def default_taps(self) -> tuple[int, ...]:
        """Eight mid-depth blocks: 3-10 of 12, every second of 5-19 of 24 (1-based)."""
        first, last = max(round(0.22 * self.depth), 1), max(round(0.8 * self.depth), 1)
        spaced = np.linspace(first, last, 8).round()
        return tuple(sorted({int(block) for block in spaced}))


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """A frozen encoder: a pure function and its weights.

    It encodes square images of one side, and images of the other shapes that it was
    fitted to (`for_shapes`).
    """

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
    chroma_sigma: float = 0.0  # see `smooth_chroma`
    # [1 + N, D] float32 position embeddings of the checkpoint, before any resizing.
    positions: np.ndarray | None = None

    @property
    def grid(self) -> int:
        """Patches along one side of a square image: h = w."""
        return self.image_side // self.description.patch

    def grid_of(self, shape: Sequence[int]) -> tuple[int, int]:
        """Patches (h, w) of an image of this shape, (height, width) in pixels."""
        height, width = shape
        return height // self.description.patch, width // self.description.patch

    def for_shapes(self, shapes: Iterable[Sequence[int]]) -> "Encoder":
        """The encoder with position embeddings for images of other shapes as well.

        They are more weights: `params` gets the name `POSITIONS`, with an array
        [1 + h * w, D] for each grid. Without a shape of its own it stays as it is.

        Args:
          shapes: (height, width) in pixels, multiples of the patch; squares of
            `image_side` need nothing.
        """
        grids = {self.grid_of(shape) for shape in shapes} - {(self.grid, self.grid)}
        if not grids:
            return self
        dtype = jax.tree.leaves(self.params)[0].dtype
        resized = {
            _name_of(grid): resize_position_embedding(self.positions, grid).astype(dtype)
            for grid in sorted(grids)
        }
        return dataclasses.replace(self, params={**self.params, POSITIONS: resized})

    @property
    def width(self) -> int:
        return self.description.width

    def feature_shapes(self, batch: int, shape: Sequence[int] | None = None) -> Features:
        """Shapes and dtypes of what `encode` returns.

        Args:
          batch: B.
          shape: (height, width) of the images in pixels; None: a square of `image_side`.
        """
        grid = self.grid_of(shape or (self.image_side, self.image_side))
        patches = (batch, len(self.groups), *grid, self.width)
        return Features(
            patches=jax.ShapeDtypeStruct(patches, jnp.float32),
            class_token=jax.ShapeDtypeStruct((batch, self.width), jnp.float32),
        )

    def encode(self, params: Any, images: jax.Array) -> Features:
        """Encodes a batch of images.

        Args:
          params: the encoder's weights (`self.params`, wherever they were placed).
          images: [B, H, W, 3] uint8, RGB; H = W = `image_side`, or a shape of
            `for_shapes`.

        Returns:
          `Features`: patches [B, G, h, w, D] and class_token [B, D], float32.

        Raises:
          KeyError: a shape that the encoder was not fitted to.
        """
        grid = self.grid_of(images.shape[1:3])
        mean = jnp.asarray(self.image_mean, jnp.float32) * 255.0
        std = jnp.asarray(self.image_std, jnp.float32) * 255.0
        pixels = smooth_chroma(images.astype(jnp.float32), self.chroma_sigma)
        pixels = (pixels - mean) / std
        with self._attention(), self._positions(params, grid):
            hidden_states = self.module.apply(
                {"params": params},
                pixels.astype(self.module.dtype),
                deterministic=True,
                output_hidden_states=True,
                return_dict=True,
            ).hidden_states
        # hidden_states[0] is the embedding, hidden_states[k] the output of block k:
        # before the final layer norm. Blocks after the last tap are dead code to XLA.
        split = self.description.family.split_tokens
        grouped = [
            split(sum(_normalise(hidden_states[tap]) for tap in taps) / len(taps))
            for taps in self.groups
        ]
        patches = jnp.stack([_recentred(group, self.recentre) for group in grouped], axis=1)
        deepest = max(tap for taps in self.groups for tap in taps)
        return Features(
            patches=patches.reshape(*patches.shape[:2], *grid, self.width),
            class_token=_normalise(split(hidden_states[deepest]).class_token),
        )

    def _attention(self) -> contextlib.AbstractContextManager:
        """Within it the module computes its attention as `attention` says."""
        if self.attention == "fused":
            return nn.intercept_methods(fused_attention(self.description.family))
        return contextlib.nullcontext()

    def _positions(
        self, params: Any, grid: tuple[int, int]
    ) -> contextlib.AbstractContextManager:
        """Within it the module adds the position embeddings of this grid to its tokens."""
        if grid == (self.grid, self.grid):
            return contextlib.nullcontext()
        positions, family = params[POSITIONS][_name_of(grid)], self.description.family

        def intercept(call: Callable, arguments: tuple, keywords: dict, context: Any):
            if family.gives_positions(context.module, context.method_name):
                return positions[None]
            return call(*arguments, **keywords)

        return nn.intercept_methods(intercept)


def _name_of(grid: tuple[int, int]) -> str:
    """What the position embeddings of a grid are called."""
    return f"{grid[0]}x{grid[1]}"


def _recentred(tokens: Tokens, recentre: str) -> jax.Array:
    """The patches [B, N, D], after what `recentre` names was subtracted from each."""
    class_token, patches = tokens
    if recentre == "class_token":
        return patches - class_token[:, None]
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
    hf_config = FAMILIES[model_type].read_config(config)
    return EncoderDescription(name=name, folder=folder, hf_config=hf_config)


def describe_untrained_clip(
    *, width: int, depth: int, heads: int, patch: int, image_side: int
) -> EncoderDescription:
    """A CLIP vision architecture whose weights will be drawn at random."""
    hf_config = untrained_config(
        width=width, depth=depth, heads=heads, patch=patch, image_side=image_side
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
    chroma_sigma: float = 0.0,
    seed: int = 0,
) -> Encoder:
    """Reads (or draws) an encoder's weights and fits them to an image side.

    Args:
      description: from `describe_encoder` or `describe_untrained_clip`.
      image_side: side S of the square input images in pixels, a multiple of the patch.
      taps: 1-based blocks to read, in order; split into `groups` contiguous groups.
      groups: number G of feature groups.
      dtype: compute dtype of the encoder, float32 or bfloat16.
      attention: one of `attention.ATTENTIONS`.
      recentre: one of `RECENTRINGS`.
      chroma_sigma: by which the colour of images is smoothed, see `smooth_chroma`.
      seed: of the random weights, where there is no checkpoint.

    Raises:
      UserError: the checkpoint is missing, incomplete or in a format that is not read.
    """
    family = description.family
    if description.folder is None:
        module = family.module(description.hf_config)
        images = jnp.zeros((1, *2 * [description.architecture.image_side], 3))
        params = jax.jit(module.init)(jax.random.key(seed), images)["params"]
        params = jax.tree.map(np.asarray, params)
    else:
        prefix = family.pretrained.base_model_prefix
        expected = family.layout(description.hf_config)
        params = read_weights(description.name, prefix, expected)
    weight_hash = hash_params(params)

    hf_config = family.at_side(description.hf_config, image_side)
    positions = np.asarray(family.positions(params), np.float32)
    params = family.resize_positions(params, image_side // description.patch)
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
        chroma_sigma=chroma_sigma,
        positions=positions,
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
    if is_pointer(path):
        raise UserError(f"encoder.name={name!r}: {fetch_pointer(path)}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"it holds {values!r}")
    except (OSError, ValueError) as error:
        raise UserError(
            f"encoder.name={name!r}: {path.parent} holds no readable {path.name} "
            f"({error}); expected a folder in the Hugging Face layout."
        ) from None
    return values
