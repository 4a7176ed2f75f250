"""Layers that more than one branch is built of."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

# Scale of the initial weights (Dinomaly, Guo et al. 2025): small enough that a block
# starts close to the identity.
INITIAL_SCALE = 0.01
RANDOM_LEVELS = 2**16


@jax.custom_vjp
def bfloat16_product(left: jax.Array, right: jax.Array) -> jax.Array:
    """A matrix product of rounded factors, summed up in float32.

    So are the products of its gradient, where the gradient is rounded too. The factors are
    kept for it as they were rounded: the same numbers, half of the memory.

    Args:
      left: [N, K] float32 or bfloat16.
      right: [K, M], likewise.

    Returns:
      [N, M] float32.
    """
    return jax.lax.dot(
        left.astype(jnp.bfloat16),
        right.astype(jnp.bfloat16),
        preferred_element_type=jnp.float32,
    )


def _forward(left: jax.Array, right: jax.Array) -> tuple[jax.Array, tuple]:
    rounded = left.astype(jnp.bfloat16), right.astype(jnp.bfloat16)
    return bfloat16_product(*rounded), rounded


bfloat16_product.defvjp(
    _forward,
    lambda factors, gradient: (
        bfloat16_product(gradient, factors[1].T),
        bfloat16_product(factors[0].T, gradient),
    ),
)


def _bfloat16_dot_general(left, right, dimensions, **_):
    """What `nn.Dense` calls for [N, K] and [K, M]."""
    assert dimensions == (((1,), (0,)), ((), ()))
    return bfloat16_product(left, right)


class Dense(nn.Dense):
    """`nn.Dense` over the last axis, as one matrix product over all other axes.

    The same arithmetic, but XLA's CPU backend computes the weights' gradient two to three
    times faster when it contracts one axis instead of two (benchmarks/time_layers.py).

    Attributes:
      product: dtype of the factors of the product, "float32" or "bfloat16". Parameters,
        inputs, outputs and sums are float32.
    """

    kernel_init: nn.initializers.Initializer = nn.initializers.truncated_normal(
        INITIAL_SCALE
    )
    product: str = "float32"

    def __post_init__(self):
        if self.product == "bfloat16":
            self.dot_general = _bfloat16_dot_general
        super().__post_init__()

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """[..., D] -> [..., features]."""
        flat = super().__call__(inputs.reshape(-1, inputs.shape[-1]))
        return flat.reshape(*inputs.shape[:-1], self.features)


class Dropout(nn.Module):
    """`nn.Dropout` with 16 random bits for each activation instead of 32.

    Random bits are the larger part of its time on CPU, and this halves them. The rate is
    rounded to 1 / 65536; the scale is that of the rounded rate, so that the mean is kept.

    Attributes:
      rate: share of activations set to zero, in [0, 1).
    """

    rate: float

    @nn.compact
    def __call__(self, values: jax.Array, *, train: bool) -> jax.Array:
        """[..., D] float32 -> the same shape; needs the rng "dropout" in training."""
        threshold = min(round(self.rate * RANDOM_LEVELS), RANDOM_LEVELS - 1)
        if not train or threshold == 0:
            return values
        *batch, width = values.shape
        # Words along the last axis: a batch that is split over devices stays split.
        words = jax.random.bits(self.make_rng("dropout"), (*batch, -(-width // 2)))
        pairs = jax.lax.bitcast_convert_type(words, jnp.uint16)
        levels = pairs.reshape(*batch, -1)[..., :width]
        scale = RANDOM_LEVELS / (RANDOM_LEVELS - threshold)
        return jnp.where(levels >= threshold, values * scale, 0.0)


@jax.custom_vjp
def gelu(values: jax.Array) -> jax.Array:
    """x Phi(x) by its tanh form, `nn.gelu`. For its gradient nothing but x is kept.

    What is kept otherwise is as large as the widest activations, and to read it again takes
    longer than to compute it.
    """
    return nn.gelu(values)


def _gelu_backward(values: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    # Else XLA finds that the tanh is known already, and keeps it.
    values = jax.lax.optimization_barrier(values)
    return jax.vjp(nn.gelu, values)[1](gradient)


gelu.defvjp(lambda values: (nn.gelu(values), values), _gelu_backward)


class Mlp(nn.Module):
    """Two dense layers with a GELU between them, and dropout after each (Dinomaly).

    Attributes:
      hidden_ratio: hidden width as a multiple of the input's.
      dropout: share of activations set to zero in training.
      product: see `Dense`.
    """

    hidden_ratio: float = 4.0
    dropout: float = 0.0
    product: str = "float32"

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
        """[..., D] float32 -> [..., D] float32; needs the rng "dropout" in training."""
        width = tokens.shape[-1]
        hidden = Dense(round(self.hidden_ratio * width), product=self.product)
        drop = functools.partial(Dropout(self.dropout), train=train)
        output = Dense(width, product=self.product)
        return drop(output(drop(gelu(hidden(tokens)))))


class LinearAttention(nn.Module):
    """Multi-head attention in linear time, with the feature map elu + 1.

        out_i = phi(q_i) S / (phi(q_i) z + eps)
        S = sum_j phi(k_j) v_j;  z = sum_j phi(k_j)

    (Katharopoulos et al. 2020.) It attends less sharply than softmax, which keeps a
    decoder from copying an anomaly from its own position (Dinomaly).

    Attributes:
      heads: number of heads, a divisor of D.
      epsilon: keeps the quotient finite where every phi(q) phi(k) underflows.
      product: of the projections, see `Dense`. The few sums between them are float32.
    """

    heads: int
    epsilon: float = 1e-6
    product: str = "float32"

    @nn.compact
    def __call__(self, tokens: jax.Array, context: jax.Array | None = None) -> jax.Array:
        """Attends from tokens to tokens and context.

        Args:
          tokens: [B, N, D] float32.
          context: [B, M, D] float32, read but not updated.

        Returns:
          [B, N, D] float32.
        """
        batch, count, width = tokens.shape
        split = (batch, -1, self.heads, width // self.heads)
        dense = functools.partial(Dense, product=self.product)
        query = dense(width, name="query")(tokens)
        project = dense(2 * width, name="key_value")
        sources = tokens if context is None else jnp.concatenate([tokens, context], axis=1)
        key, value = jnp.split(project(sources), 2, axis=-1)
        query = nn.elu(query.reshape(split)) + 1.0
        key = nn.elu(key.reshape(split)) + 1.0
        summary = jnp.einsum("bmhk,bmhv->bhkv", key, value.reshape(split))
        total = key.sum(axis=1)
        mixed = jnp.einsum("bnhk,bhkv->bnhv", query, summary)
        weight = jnp.einsum("bnhk,bhk->bnh", query, total)
        mixed = mixed / (weight[..., None] + self.epsilon)
        return dense(width, name="output")(mixed.reshape(batch, count, width))


def group_outputs(outputs: Sequence[jax.Array], groups: int) -> jax.Array:
    """Averages the outputs of a stack of blocks into predictions of G groups.

    The first blocks, behind the bottleneck, predict the deepest group and the last ones
    the shallowest: a decoder mirrors its encoder (Dinomaly).

    Args:
      outputs: of each block in order, all of one shape [B, ...]; a multiple of `groups`.
      groups: G.

    Returns:
      [B, G, ...], shallowest group first.
    """
    size = len(outputs) // groups
    mirrored = outputs[::-1]
    return jnp.stack(
        [
            sum(mirrored[start : start + size]) / size
            for start in range(0, len(outputs), size)
        ],
        axis=1,
    )
