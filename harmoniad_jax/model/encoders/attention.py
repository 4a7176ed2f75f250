"""The encoder's attention through JAX's own fused function, on the library's parameters.

The modules of `transformers` write all attention weights [B, heads, N, N] to memory.
`jax.nn.dot_product_attention` need not, and calls cuDNN's flash attention on a GPU. The
projections stay those of the library's modules: only what happens between them is ours.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from harmoniad_jax.model.encoders.family import Family

ATTENTIONS = ("library", "fused")


def fused_attention(family: Family) -> Callable:
    """An interceptor for `flax.linen.intercept_methods`: replaces attention alone."""

    def intercept(
        call: Callable, arguments: tuple, keywords: dict[str, Any], context: Any
    ) -> Any:
        """Its argument is the tokens [B, N, D], its result a tuple of tokens [B, N, D]."""
        is_attention = isinstance(context.module, family.attention)
        if context.method_name != "__call__" or not is_attention:
            return call(*arguments, **keywords)
        tokens = arguments[0] if arguments else keywords["hidden_states"]
        of = family.projections(context.module)
        query, key, value = (
            project(tokens).reshape(*tokens.shape[:2], of.heads, -1)
            for project in (of.query, of.key, of.value)
        )
        # cuDNN has no kernel for float32.
        has_kernel = jax.default_backend() == "gpu" and query.dtype == jnp.bfloat16
        mixed = jax.nn.dot_product_attention(
            query, key, value, implementation="cudnn" if has_kernel else "xla"
        )
        return (of.output(mixed.reshape(tokens.shape)),)

    return intercept
