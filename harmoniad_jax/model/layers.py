"""Layers that more than one branch is built of."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# Scale of the initial weights (Dinomaly, Guo et al. 2025): small enough that a block
# starts close to the identity.
INITIAL_SCALE = 0.01
RANDOM_LEVELS = 2**16


def in_memory(values: jax.Array) -> jax.Array:
    """Returns the values. On accelerators XLA has to store them once, in their own dtype.

    Otherwise it may compute them again for each use, or store bfloat16 as float32.
    """
    if jax.default_backend() == "cpu":
        return values
    return jax.lax.optimization_barrier(values)


@jax.custom_vjp
def bfloat16_product(left: jax.Array, right: jax.Array) -> jax.Array:
    """Multiplies rounded factors. Sums are float32, and the result is rounded.

    The gradient of the left factor is rounded too. That of the weights stays float32.

    Args:
      left: [N, K] bfloat16.
      right: [K, M] float32.

    Returns:
      [N, M] bfloat16.
    """
    return jax.lax.dot(left, right.astype(jnp.bfloat16))


def _product_forward(left: jax.Array, right: jax.Array) -> tuple[jax.Array, tuple]:
    rounded = right.astype(jnp.bfloat16)
    return jax.lax.dot(left, rounded), (left, rounded)


def _product_backward(factors: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    left, right = factors
    return jax.lax.dot(gradient, right.T), jax.lax.dot(
        left.T, gradient, preferred_element_type=jnp.float32
    )


bfloat16_product.defvjp(_product_forward, _product_backward)


def over_images(vector: jax.Array, maps: jax.Array) -> jax.Array:
    """A vector of channels, to be combined with maps in their dtype.

    Its gradient is summed up in float32. On accelerators this is done for each image first,
    and then over the images: XLA sums up thousands of positions of a few hundred channels
    on a few of a GPU's multiprocessors.

    Args:
      vector: [D] float32.
      maps: [B, ..., D] float32 or bfloat16, for their shape and dtype.

    Returns:
      [D] or [B, ..., D] of their dtype.
    """
    if jax.default_backend() == "cpu" and maps.dtype == vector.dtype:
        return vector
    return _broadcast(maps.shape, maps.dtype, vector)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _broadcast(shape: tuple[int, ...], dtype: Any, vector: jax.Array) -> jax.Array:
    return jnp.broadcast_to(vector.astype(dtype), shape)


def _sum_over_images(shape: tuple[int, ...], dtype: Any, _: None, gradient: jax.Array):
    del dtype
    sums = gradient.astype(jnp.float32).sum(axis=tuple(range(1, len(shape) - 1)))
    return (in_memory(sums).sum(axis=0),)  # else XLA makes one sum of the two


_broadcast.defvjp(
    lambda shape, dtype, vector: (_broadcast(shape, dtype, vector), None), _sum_over_images
)


class Dense(nn.Module):
    """`nn.Dense` over the last axis, as one matrix product over all other axes.

    The same arithmetic, but XLA's CPU backend computes the weights' gradient two to three
    times faster when it contracts one axis instead of two (benchmarks/time_layers.py).

    Attributes:
      features: width of the output.
      kernel_init: of the weights; the bias starts at zero.
      dtype: "float32" or "bfloat16", of the factors of the product and of the output. Sums
        and parameters are float32.
    """

    features: int
    kernel_init: nn.initializers.Initializer = nn.initializers.truncated_normal(
        INITIAL_SCALE
    )
    dtype: str = "float32"

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """[B, ..., D] -> [B, ..., features] of `dtype`."""
        width = inputs.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (width, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        product = bfloat16_product if self.dtype == "bfloat16" else jnp.dot
        flat = product(inputs.reshape(-1, width).astype(self.dtype), kernel)
        outputs = flat.reshape(*inputs.shape[:-1], self.features)
        return outputs + over_images(bias, outputs)


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` over the last axis, with parameters that go `over_images`.

    A subclass, so that an export recognises it. It has no settings but `epsilon`.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, ..., D] float32 -> the same shape."""
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = x.mean(axis=-1, keepdims=True)
        square = (x**2).mean(axis=-1, keepdims=True)
        variance = jnp.maximum(0.0, square - mean**2)
        factor = jax.lax.rsqrt(variance + self.epsilon) * over_images(scale, x)
        return (x - mean) * factor + over_images(bias, x)


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
        """[..., D] -> the same shape and dtype; needs the rng "dropout" in training."""
        threshold = min(round(self.rate * RANDOM_LEVELS), RANDOM_LEVELS - 1)
        if not train or threshold == 0:
            return values
        *batch, width = values.shape
        # Words along the last axis: a batch that is split over devices stays split.
        words = jax.random.bits(self.make_rng("dropout"), (*batch, -(-width // 2)))
        pairs = jax.lax.bitcast_convert_type(words, jnp.uint16)
        levels = pairs.reshape(*batch, -1)[..., :width]
        scale = RANDOM_LEVELS / (RANDOM_LEVELS - threshold)
        kept = (values.astype(jnp.float32) * scale).astype(values.dtype)
        return jnp.where(levels >= threshold, kept, 0)


@jax.custom_vjp
def gelu(values: jax.Array) -> jax.Array:
    """x Phi(x) by its tanh form, `nn.gelu`: computed in float32, in the dtype of x.

    For its gradient nothing but x is kept. What is kept otherwise is as large as the widest
    activations, and to read it again takes longer than to compute it.
    """
    if jax.default_backend() == "gpu":
        # So XLA leaves it to NVIDIA's matrix product before it, which has it in float32.
        return nn.gelu(values)
    return nn.gelu(values.astype(jnp.float32)).astype(values.dtype)


def _gelu_backward(values: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    # Else XLA finds that the tanh is known already, and keeps it.
    exact = jax.lax.optimization_barrier(values).astype(jnp.float32)
    (slope,) = jax.vjp(nn.gelu, exact)[1](gradient.astype(jnp.float32))
    return (in_memory(slope.astype(values.dtype)),)


gelu.defvjp(lambda values: (gelu(values), values), _gelu_backward)


class Mlp(nn.Module):
    """Two dense layers with a GELU between them, and dropout after each (Dinomaly).

    Attributes:
      hidden_ratio: hidden width as a multiple of the input's.
      dropout: share of activations set to zero in training.
      dtype: of the activations, see `Dense`.
    """

    hidden_ratio: float = 4.0
    dropout: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
        """[B, ..., D] -> [B, ..., D] of `dtype`; needs the rng "dropout" in training."""
        width = tokens.shape[-1]
        hidden = Dense(round(self.hidden_ratio * width), dtype=self.dtype)
        drop = functools.partial(Dropout(self.dropout), train=train)
        output = Dense(width, dtype=self.dtype)
        return drop(output(drop(gelu(hidden(tokens)))))


@jax.custom_vjp
def positive(values: jax.Array) -> jax.Array:
    """phi(x) = elu(x) + 1, in the dtype of x; its slope is the smaller of phi(x) and 1."""
    return (nn.elu(values.astype(jnp.float32)) + 1.0).astype(values.dtype)


def _positive_forward(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    result = positive(values)
    return result, result


positive.defvjp(
    _positive_forward,
    lambda result, gradient: (gradient * jnp.minimum(result, 1.0),),
)


class LinearAttention(nn.Module):
    """Multi-head attention in linear time, with the feature map elu + 1.

        out_i = phi(q_i) S / (phi(q_i) z + eps)
        S = sum_j phi(k_j) v_j;  z = sum_j phi(k_j)

    (Katharopoulos et al. 2020.) It attends less sharply than softmax, which keeps a
    decoder from copying an anomaly from its own position (Dinomaly).

    Attributes:
      heads: number of heads, a divisor of D.
      epsilon: keeps the quotient finite where every phi(q) phi(k) underflows.
      dtype: of the projections, of phi and of the results of sums, see `Dense`.
    """

    heads: int
    epsilon: float = 1e-6
    dtype: str = "float32"

    @nn.compact
    def __call__(self, tokens: jax.Array, context: jax.Array | None = None) -> jax.Array:
        """Attends from tokens to tokens and context.

        Args:
          tokens: [B, N, D] float32 or bfloat16.
          context: [B, M, D], likewise, read but not updated.

        Returns:
          [B, N, D] of `dtype`.
        """
        batch, count, width = tokens.shape
        sources = tokens if context is None else jnp.concatenate([tokens, context], axis=1)
        split = (batch, -1, self.heads, width // self.heads)
        dense = functools.partial(Dense, dtype=self.dtype)
        query = dense(width, name="query")(tokens)
        project = dense(2 * width, name="key_value")
        key, value = jnp.split(project(sources), 2, axis=-1)
        query, key = (positive(each).reshape(split) for each in (query, key))
        summary = jnp.einsum("bmhk,bmhv->bhkv", key, value.reshape(split))
        total = key.astype(jnp.float32).sum(axis=1).astype(self.dtype)
        mixed = jnp.einsum("bnhk,bhkv->bnhv", query, summary)
        weight = jnp.einsum("bnhk,bhk->bnh", query, total)
        mixed = mixed.astype(jnp.float32) / (
            weight[..., None].astype(jnp.float32) + self.epsilon
        )
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
