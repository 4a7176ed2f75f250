"""FSAM, the fine-grained structural attention module of the high-frequency path.

The paper gives its purpose, "to enhance textures and edges for detecting small
anomalies"; its inside is this project's. One block:

    x = x + linear_attention(norm(x))         in the first block of each group alone
    t = sum_k depthwise_k(norm(x))            edge kernels at three scales
    t = shrink(t * channel_gate * spatial_gate)
    x = x + gamma_1 * W t
    x = x + gamma_2 * mlp(norm(x))            gamma_1 = gamma_2 = 0 at the start

Which edge is normal at a place may depend on the rest of the image, such as on which way a
part lies. Convolutions do not see so far.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from harmoniad_jax.model.layers import (
    Dense,
    LayerNorm,
    LinearAttention,
    Mlp,
    group_outputs,
    in_memory,
    over_images,
)

LAPLACIAN = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], np.float32) / 4
SOBEL_X = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float32) / 4
IDENTITY = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]], np.float32)
FULL_SCALE = nn.initializers.lecun_normal()
EDGE_KERNELS = (IDENTITY, LAPLACIAN, SOBEL_X, SOBEL_X.T)


def edge_kernel_init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32):
    """Depthwise kernels [3, 3, D]: the channels take the edge kernels in turn."""
    del key
    kernels = [EDGE_KERNELS[channel % len(EDGE_KERNELS)] for channel in range(shape[-1])]
    return jnp.asarray(np.stack(kernels, axis=-1), dtype)


def shifted(features: jax.Array, size: int) -> list[list[jax.Array]]:
    """The maps [B, h, w, D] as each tap of a size x size kernel sees them, zeros outside.

    Returns:
      The rows of taps, each a list of [B, h, w, D]; XLA fuses them into their use.
    """
    height, width = features.shape[1:3]
    margin = size // 2
    padded = jnp.pad(features, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    padded = in_memory(padded)  # XLA's code for a tap then has no test of the border
    return [
        [padded[:, row : row + height, column : column + width] for column in range(size)]
        for row in range(size)
    ]


@jax.custom_vjp
def depthwise(features: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves every channel with its own kernel; zeros beyond the border.

    Written as a sum of shifted products: XLA fuses it on every device, and on CPU its
    grouped convolution is many times slower. Only its gradient in reverse is defined.

    Args:
      features: [B, h, w, D] float32 or bfloat16.
      kernel: [k, k, D] float32, k odd.

    Returns:
      [B, h, w, D] of the same dtype, of sums in float32.
    """
    size = kernel.shape[0]
    rows = shifted(features, size)
    total = sum(
        rows[row][column] * kernel[row, column]
        for row in range(size)
        for column in range(size)
    )
    return in_memory(total.astype(features.dtype))


def _depthwise_forward(features, kernel):
    return depthwise(features, kernel), (features, kernel)


def _depthwise_backward(saved, gradient):
    """The gradients for features and kernel."""
    features, kernel = saved
    gradient = in_memory(gradient)
    rows = shifted(features, kernel.shape[0])
    on_cpu = jax.default_backend() == "cpu"
    sums = _sums_of_row if on_cpu else _sums_of_taps
    exact = gradient.astype(jnp.float32)
    kernel_rows = [sums(taps, exact).sum(axis=1) for taps in rows]
    return depthwise(gradient, kernel[::-1, ::-1]), jnp.stack(kernel_rows)


def _sums_of_taps(taps: Sequence[jax.Array], gradient: jax.Array) -> jax.Array:
    """[k, B, D]: each tap times the gradient, summed up over an image."""
    return jnp.stack([(tap * gradient).sum(axis=(1, 2)) for tap in taps])


def _sums_of_row(taps: Sequence[jax.Array], gradient: jax.Array) -> jax.Array:
    """The same as one variadic reduction.

    As a reduction for each tap, which the sum in `depthwise` is differentiated to as well,
    XLA's CPU backend reads all maps from memory k x k times and may store every shifted
    copy. Its GPU backend stores the products of a variadic one (of ViT-L features, 16
    images: 4.2 of 22.9 ms a step).
    """
    products = tuple(tap * gradient for tap in taps)
    zeros = (jnp.zeros((), products[0].dtype),) * len(taps)
    return jnp.stack(jax.lax.reduce(products, zeros, _add_each, dimensions=(1, 2)))


def _add_each(first, second):
    return tuple(map(jnp.add, first, second))


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


class MultiScaleEdges(nn.Module):
    """Depthwise filters of three supports, summed: 3x3, 5x5 and 3x3 dilated by two.

    Convolution is linear, so the three kernels are added first and applied once.

    Attributes:
      edge_kernels: start the 3x3 kernels as identity, Laplacian and Sobel filters (all
        stay learnable); else as random ones.
    """

    edge_kernels: bool = True

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """[B, h, w, D] float32 or bfloat16 -> the same shape and dtype."""
        width = features.shape[-1]
        random = nn.initializers.normal(0.02)
        fine_init = edge_kernel_init if self.edge_kernels else random
        fine = self.param("fine", fine_init, (3, 3, width))
        coarse = self.param("coarse", random, (5, 5, width))
        dilated = self.param("dilated", random, (3, 3, width))
        kernel = jnp.asarray(coarse).at[1:4, 1:4].add(fine).at[::2, ::2].add(dilated)
        return depthwise(features, kernel)


def shrink(values: jax.Array, threshold: jax.Array) -> jax.Array:
    """Soft threshold: sign(v) max(|v| - threshold, 0), which removes weak noise."""
    return jnp.sign(values) * nn.relu(jnp.abs(values) - threshold)


class ChannelGate(nn.Module):
    """How much each channel matters in an image, from its mean magnitude."""

    squeeze: int = 4

    @nn.compact
    def __call__(self, texture: jax.Array) -> jax.Array:
        """[B, h, w, D] float32 -> [B, 1, 1, D] in (0, 1)."""
        width = texture.shape[-1]
        magnitude = jnp.abs(texture).mean(axis=(1, 2), keepdims=True)
        hidden = nn.relu(Dense(width // self.squeeze, kernel_init=FULL_SCALE)(magnitude))
        return nn.sigmoid(Dense(width, kernel_init=FULL_SCALE)(hidden))


class SpatialGate(nn.Module):
    """How much each position matters, from mean, peak and energy over its channels."""

    @nn.compact
    def __call__(self, texture: jax.Array) -> jax.Array:
        """[B, h, w, D] float32 -> [B, h, w, 1] in (0, 1)."""
        mean = texture.mean(axis=-1)
        peak = jnp.abs(texture).max(axis=-1)
        energy = (texture**2).mean(axis=-1)
        statistics = jnp.stack([mean, peak, energy], axis=-1)
        own = None if jax.default_backend() == "cpu" else _convolution_to_one
        return nn.sigmoid(nn.Conv(1, (3, 3), conv_general_dilated=own)(statistics))


def _convolution_to_one(maps: jax.Array, kernel: jax.Array, *_, **__) -> jax.Array:
    """What `nn.Conv` calls for [B, h, w, C] and [k, k, C, 1].

    A convolution of cuDNN would cut the graph of operations that XLA hands to a GPU.
    """
    return depthwise(maps, kernel[..., 0]).sum(axis=-1, keepdims=True)


class FsamBlock(nn.Module):
    """One block of the high-frequency path; at initialisation the identity, or close to it.

    Attributes:
      heads: of the attention, a divisor of D; 0: there is none.
      edge_kernels, channel_gate, spatial_gate, shrinkage: switches of its parts.
      mlp_ratio: hidden width of the MLP as a multiple of D.
      dtype: of the activations between norms and sums, see `layers.Dense`.
    """

    heads: int = 0
    edge_kernels: bool = True
    channel_gate: bool = True
    spatial_gate: bool = True
    shrinkage: bool = True
    mlp_ratio: float = 4.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """[B, h, w, D] float32 -> the same shape."""
        width = features.shape[-1]
        if self.heads:
            attention = LinearAttention(self.heads, dtype=self.dtype, name="attention")
            normalised = LayerNorm(name="attention_norm")(features)
            attended = attention(normalised.reshape(features.shape[0], -1, width))
            features += attended.reshape(features.shape)
        normalised = LayerNorm()(features).astype(self.dtype)
        texture = MultiScaleEdges(self.edge_kernels)(normalised).astype(jnp.float32)
        gated = texture
        if self.channel_gate:
            gated *= ChannelGate()(texture)
        if self.spatial_gate:
            gated *= SpatialGate()(texture)
        if self.shrinkage:
            level = self.param("threshold", nn.initializers.constant(-4.0), (width,))
            gated = shrink(gated, over_images(nn.softplus(level), gated))
        # The gates start at zero, so the weights behind them may start at full scale.
        project = Dense(width, kernel_init=FULL_SCALE, dtype=self.dtype, name="project")
        structure_gate = self.param("structure_gate", nn.initializers.zeros, (width,))
        features += over_images(structure_gate, features) * project(gated)
        mlp_gate = self.param("mlp_gate", nn.initializers.zeros, (width,))
        mlp = Mlp(self.mlp_ratio, dtype=self.dtype)
        return features + over_images(mlp_gate, features) * mlp(LayerNorm()(features))


class Fsam(nn.Module):
    """The high-frequency path: a noisy bottleneck, then FSAM blocks, read out by group.

    Attributes:
      depth: number of blocks, a multiple of `groups`.
      groups: G.
      heads: of the attention in the first block of each group, a divisor of D; 0: there is
        none.
      dropout: of the bottleneck, see `Mlp`.
      edge_kernels, channel_gate, spatial_gate, shrinkage: see `FsamBlock`.
      remat: compute the activations of every block again for its gradient.
      dtype: in training, see `FsamBlock`; else it is float32.
    """

    depth: int
    groups: int
    heads: int = 0
    dropout: float = 0.2
    edge_kernels: bool = True
    channel_gate: bool = True
    spatial_gate: bool = True
    shrinkage: bool = True
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
        """Predicts the high bands; needs the rng "dropout" in training.

        Args:
          features: [B, h, w, D] float32, what is read: both bands, or the high one.
          class_token: not used; every branch is called with it.
          train: switches the bottleneck's noise on.

        Returns:
          [B, G, h, w, D] float32.
        """
        del class_token
        dtype = self.dtype if train else "float32"
        bottleneck = Mlp(dropout=self.dropout, dtype=dtype, name="bottleneck")
        features = bottleneck(features, train=train).astype(jnp.float32)
        block = nn.remat(FsamBlock) if self.remat else FsamBlock
        outputs = []
        for index in range(self.depth):
            begins_group = index % (self.depth // self.groups) == 0
            features = block(
                self.heads if begins_group else 0,
                self.edge_kernels,
                self.channel_gate,
                self.spatial_gate,
                self.shrinkage,
                dtype=dtype,
                name=f"block_{index}",
            )(features)
            outputs.append(features)
        return group_outputs(outputs, self.groups)
