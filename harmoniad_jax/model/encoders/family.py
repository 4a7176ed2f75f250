"""What a family of encoders says of itself: all that differs between families."""

import abc
import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import transformers

from harmoniad_jax.model.encoders.positions import resize_position_embedding


class Architecture(NamedTuple):
    """The sizes of an encoder.

    width: D, channels of a token.
    depth: number of blocks.
    patch: side of a patch in pixels.
    image_side: side of the images that it was trained with, in pixels.
    """

    width: int
    depth: int
    patch: int
    image_side: int


class Tokens(NamedTuple):
    """The tokens of a block that features are made of.

    class_token: [B, D].
    patches: [B, N, D], row by row.
    """

    class_token: jax.Array
    patches: jax.Array


class Projections(NamedTuple):
    """What an attention module does before and after it mixes tokens.

    query, key, value: each [B, N, D] -> [B, N, D].
    output: [B, N, D] -> [B, N, D].
    heads: number of attention heads.
    """

    query: Callable[[jax.Array], jax.Array]
    key: Callable[[jax.Array], jax.Array]
    value: Callable[[jax.Array], jax.Array]
    output: Callable[[jax.Array], jax.Array]
    heads: int


class Family(abc.ABC):
    """A family of vision transformers: one file, registered in `registry.py`.

    The methods that are written out here hold for most models of `transformers`; a family
    of other habits overrides them.

    Attributes:
      model_types: the `model_type`s of config.json, and of the configs that `read_config`
        returns, that belong to the family.
      pretrained: the library's class that reads checkpoints.
      module: the flax module inside it. It is made of a config and a `dtype`, and called
        with pixels [B, S, S, 3], `deterministic`, `output_hidden_states` and `return_dict`.
      attention: the flax module of a block's attention. Its first argument is the tokens
        [B, N, D], its result a tuple of new tokens.
      position_embedding: path of [..., 1 + N, D] in the parameter tree, class token first.
      image_mean, image_std: of RGB in [0, 1], where a checkpoint does not say.
    """

    model_types: tuple[str, ...]
    pretrained: type
    module: type
    attention: type
    position_embedding: tuple[str, ...]
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]

    @abc.abstractmethod
    def read_config(self, values: Mapping[str, Any]) -> transformers.PretrainedConfig:
        """The library's config of the vision tower, from the values of config.json."""

    @abc.abstractmethod
    def default_image_side(self, config: transformers.PretrainedConfig) -> int:
        """Side of the images in pixels where the settings do not say."""

    @abc.abstractmethod
    def split_tokens(self, tokens: jax.Array) -> Tokens:
        """Splits the tokens of a block; what is neither class token nor patch is dropped.

        Args:
          tokens: [B, M, D], in the module's order.
        """

    @abc.abstractmethod
    def gives_positions(self, module: nn.Module, method: str) -> bool:
        """Whether a method of a bound module returns what is added to the tokens.

        That is, the position embeddings [1, 1 + N, D], class token first. The module makes
        them for square images alone: for others, something else is returned in its place.
        """

    @abc.abstractmethod
    def projections(self, attention: nn.Module) -> Projections:
        """The projections of a bound module of the class `attention`."""

    def architecture(self, config: transformers.PretrainedConfig) -> Architecture:
        """The sizes that a config says."""
        return Architecture(
            width=config.hidden_size,
            depth=config.num_hidden_layers,
            patch=config.patch_size,
            image_side=config.image_size,
        )

    def at_side(
        self, config: transformers.PretrainedConfig, image_side: int
    ) -> transformers.PretrainedConfig:
        """A copy of a config, for images of another side in pixels."""
        config = type(config).from_dict(config.to_dict())
        config.image_size = image_side
        return config

    def layout(self, config: transformers.PretrainedConfig) -> Any:
        """The shapes of a module's parameters, as a tree.

        Blocks are alike, so that one is looked at: to trace all of them takes long.
        """
        architecture = self.architecture(config)
        one_block = copy.copy(config)
        one_block.num_hidden_layers = 1
        images = jax.ShapeDtypeStruct((1, *2 * [architecture.image_side], 3), jnp.float32)
        init = self.module(one_block).init
        shapes = jax.eval_shape(init, jax.random.key(0), images)["params"]
        flat = {}
        for path, shape in flax.traverse_util.flatten_dict(shapes).items():
            blocks = range(architecture.depth) if "0" in path else [0]
            for block in blocks:
                flat[tuple(str(block) if key == "0" else key for key in path)] = shape
        return flax.traverse_util.unflatten_dict(flat)

    def positions(self, params: Any) -> np.ndarray:
        """The position embeddings [1 + N, D] of a parameter tree, class token first."""
        embedding = flax.traverse_util.flatten_dict(params)[self.position_embedding]
        return embedding.reshape(-1, embedding.shape[-1])

    def resize_positions(self, params: Any, grid: int) -> Any:
        """A parameter tree with position embeddings for a grid of grid x grid patches."""
        flat = flax.traverse_util.flatten_dict(params)
        shape = flat[self.position_embedding].shape
        resized = resize_position_embedding(self.positions(params), (grid, grid))
        flat[self.position_embedding] = resized.reshape(*shape[:-2], -1, shape[-1])
        return flax.traverse_util.unflatten_dict(flat)
