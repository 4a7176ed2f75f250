"""CLIP, the paper's encoder: the vision tower of a model of images and captions."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import transformers
from transformers.models.clip.modeling_flax_clip import (
    FlaxCLIPAttention,
    FlaxCLIPVisionModule,
)

from harmoniad_jax.model.encoders.family import Family, Projections, Tokens


class Clip(Family):
    """CLIP with its text tower, of which nothing is read, or the vision tower alone."""

    model_types = ("clip", "clip_vision_model")
    pretrained = transformers.FlaxCLIPVisionModel
    module = FlaxCLIPVisionModule
    attention = FlaxCLIPAttention
    position_embedding = ("vision_model", "embeddings", "position_embedding", "embedding")
    image_mean = (0.48145466, 0.4578275, 0.40821073)
    image_std = (0.26862954, 0.26130258, 0.27577711)

    def read_config(self, values: Mapping[str, Any]) -> transformers.CLIPVisionConfig:
        if values["model_type"] == "clip":
            values = values.get("vision_config", {})
        return transformers.CLIPVisionConfig(**values)

    def default_image_side(self, config: transformers.PretrainedConfig) -> int:
        """The side that the checkpoint was trained at."""
        return config.image_size

    def split_tokens(self, tokens: jax.Array) -> Tokens:
        return Tokens(class_token=tokens[:, 0], patches=tokens[:, 1:])

    def gives_positions(self, module: nn.Module, method: str) -> bool:
        is_embedding = isinstance(module, nn.Embed) and method == "__call__"
        return is_embedding and module.name == "position_embedding"

    def projections(self, attention: FlaxCLIPAttention) -> Projections:
        return Projections(
            query=attention.q_proj,
            key=attention.k_proj,
            value=attention.v_proj,
            output=attention.out_proj,
            heads=attention.num_heads,
        )


def untrained_config(
    *, width: int, depth: int, heads: int, patch: int, image_side: int
) -> transformers.CLIPVisionConfig:
    """A vision tower of any size; `patch` and `image_side` in pixels."""
    return transformers.CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        patch_size=patch,
        image_size=image_side,
    )
