"""DINOv2: trained on images alone, to match crops and masked patches of an image."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import transformers
from transformers.models.dinov2.modeling_flax_dinov2 import (
    FlaxDinov2Embeddings,
    FlaxDinov2Module,
    FlaxDinov2SelfAttention,
)

from harmoniad_jax.model.encoders.family import Family, Projections, Tokens

# Patches along a side of the image where the settings do not say: the published models
# were trained at 518 px, a grid of 37 x 37, which costs five times as much.
DEFAULT_GRID = 16


class Dinov2(Family):
    """DINOv2 without registers."""

    model_types = ("dinov2",)
    pretrained = transformers.FlaxDinov2Model
    module = FlaxDinov2Module
    attention = FlaxDinov2SelfAttention
    position_embedding = ("embeddings", "position_embeddings")
    image_mean = (0.485, 0.456, 0.406)
    image_std = (0.229, 0.224, 0.225)

    def read_config(self, values: Mapping[str, Any]) -> transformers.Dinov2Config:
        return transformers.Dinov2Config(**values)

    def default_image_side(self, config: transformers.PretrainedConfig) -> int:
        return DEFAULT_GRID * config.patch_size

    def split_tokens(self, tokens: jax.Array) -> Tokens:
        return Tokens(class_token=tokens[:, 0], patches=tokens[:, 1:])

    def gives_positions(self, module: nn.Module, method: str) -> bool:
        # The library's own resizing is not the arithmetic of `positions.py`.
        is_embedding = isinstance(module, FlaxDinov2Embeddings)
        return is_embedding and method == "interpolate_pos_encoding"

    def projections(self, attention: FlaxDinov2SelfAttention) -> Projections:
        return Projections(
            query=attention.query,
            key=attention.key,
            value=attention.value,
            # The library projects the result in a module of its own.
            output=lambda tokens: tokens,
            heads=attention.config.num_attention_heads,
        )
