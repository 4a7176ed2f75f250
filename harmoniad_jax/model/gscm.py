"""GSCM, the global structural context module of the low-frequency path.

The paper gives its purpose, "to capture long-range dependencies and preserve semantic
consistency"; its inside is this project's. One block, on the N tokens of the low band:

    c = [mean(norm(x)), class token]                     the global context
    x = x + linear_attention(norm(x), norm(x) and c)
    x = x + mlp(norm(x))
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from harmoniad_jax.model.layers import (
    LayerNorm,
    LinearAttention,
    Mlp,
    group_outputs,
    in_memory,
)


class GscmBlock(nn.Module):
    """One block of the low-frequency path: a linear-attention transformer block.

    It knows no positions: permuting the tokens permutes the output.

    Attributes:
      heads: attention heads, a divisor of D.
      global_context: let every token read the mean of all tokens.
      mlp_ratio: hidden width of the MLP as a multiple of D.
      dtype: of the activations between norms and sums, see `layers.Dense`.
    """

    heads: int
    global_context: bool = True
    mlp_ratio: float = 4.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, tokens: jax.Array, context: jax.Array | None = None) -> jax.Array:
        """Applies the block.

        Args:
          tokens: [B, N, D] float32.
          context: [B, M, D] float32, more tokens to read from, such as the class token.

        Returns:
          [B, N, D] float32.
        """
        normalised = LayerNorm()(tokens)
        sources = [] if context is None else [context]
        if self.global_context:
            sources.append(normalised.mean(axis=1, keepdims=True))
        extra = jnp.concatenate(sources, axis=1) if sources else None
        attention = LinearAttention(self.heads, dtype=self.dtype)
        tokens += attention(normalised, extra)
        mlp = Mlp(self.mlp_ratio, dtype=self.dtype)
        return tokens + mlp(LayerNorm()(tokens))


class Gscm(nn.Module):
    """The low-frequency path: a noisy bottleneck, then GSCM blocks, read out by group.

    Attributes:
      depth: number of blocks, a multiple of `groups`.
      groups: G.
      heads: attention heads, a divisor of D.
      dropout: of the bottlenecks, see `Mlp`.
      global_context: see `GscmBlock`.
      reads_class_token: let every token read the encoder's class token.
      decimation: what each side of the map is divided by. 2 is a quarter of the cost; a
        band below half of Nyquist loses little by it. 1: full resolution.
      remat: compute the activations of every block again for its gradient.
      dtype: in training, see `GscmBlock`; else it is float32.
    """

    depth: int
    groups: int
    heads: int
    dropout: float = 0.2
    global_context: bool = True
    reads_class_token: bool = True
    decimation: int = 2
    remat: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        features: jax.Array,
        class_token: jax.Array | None = None,
        *,
        train: bool = False,
    ) -> jax.Array:
        """Predicts the low bands; needs the rng "dropout" in training.

        Args:
          features: [B, h, w, D] float32, the low band.
          class_token: [B, D] float32, the encoder's; it has a bottleneck of its own.
            None: there is nothing to read.
          train: switches the bottlenecks' noise on.

        Returns:
          [B, G, h, w, D] float32.
        """
        batch, height, width, channels = features.shape
        dtype = self.dtype if train else "float32"
        if self.decimation > 1:
            coarse = [math.ceil(side / self.decimation) for side in (height, width)]
            features = jax.image.resize(features, (batch, *coarse, channels), "linear")
        grid = features.shape[1:3]
        bottleneck = Mlp(dropout=self.dropout, dtype=dtype, name="bottleneck")
        tokens = bottleneck(features.reshape(batch, -1, channels), train=train)
        tokens = tokens.astype(jnp.float32)
        context = None
        if self.reads_class_token and class_token is not None:
            bottleneck = Mlp(1.0, self.dropout, dtype, name="class_bottleneck")
            context = bottleneck(class_token[:, None], train=train)
        block = nn.remat(GscmBlock) if self.remat else GscmBlock
        outputs = []
        for index in range(self.depth):
            tokens = block(
                self.heads, self.global_context, dtype=dtype, name=f"block_{index}"
            )(tokens, context)
            outputs.append(tokens)
        predicted = group_outputs(outputs, self.groups)
        predicted = predicted.reshape(batch, self.groups, *grid, channels)
        if self.decimation > 1:
            full = (batch, self.groups, height, width, channels)
            predicted = in_memory(jax.image.resize(predicted, full, "cubic"))
        return predicted
