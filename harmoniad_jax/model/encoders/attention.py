"""The encoder's attention through JAX's own fused function, on the library's parameters.

The modules of `transformers` write all attention weights [B, heads, N, N] to memory.
`jax.nn.dot_product_attention` need not, and calls cuDNN's flash attention on a GPU. The
projections stay those of the library's modules: only what happens between them is ours.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from transformers.models.clip.modeling_flax_clip import FlaxCLIPAttention
from transformers.models.dinov2.modeling_flax_dinov2 import FlaxDinov2SelfAttention

ATTENTIONS = ("library", "fused")


def fuse_attention(
    call: Callable, arguments: tuple, keywords: dict[str, Any], context: Any
) -> Any:
    """An interceptor for `flax.linen.intercept_methods`: replaces attention alone.

    Its argument is the tokens [B, N, D], and its result a tuple of tokens [B, N, D].
    """
    module: nn.Module = context.module
    if context.method_name != "__call__":
        return call(*arguments, **keywords)
    if isinstance(module, FlaxCLIPAttention):
        projections = (module.q_proj, module.k_proj, module.v_proj)
        heads, output = module.num_heads, module.out_proj
    elif isinstance(module, FlaxDinov2SelfAttention):
        projections = (module.query, module.key, module.value)
        heads, output = module.config.num_attention_heads, lambda tokens: tokens
    else:
        return call(*arguments, **keywords)
    tokens = arguments[0] if arguments else keywords["hidden_states"]
    query, key, value = (
        project(tokens).reshape(*tokens.shape[:2], heads, -1) for project in projections
    )
    # cuDNN has no kernel for float32.
    has_kernel = jax.default_backend() == "gpu" and query.dtype == jnp.bfloat16
    mixed = jax.nn.dot_product_attention(
        query, key, value, implementation="cudnn" if has_kernel else "xla"
    )
    return (output(mixed.reshape(tokens.shape)),)
