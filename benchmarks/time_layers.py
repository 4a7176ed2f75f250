"""Times the layers that are written differently from flax's own, against those.

    python benchmarks/time_layers.py

Both of a pair run in turn in one process, since machines are noisy; the figure is the
median over rounds of one gradient at ViT-S size (16 images of 16 x 16 patches).
"""

import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from harmoniad_jax.model.fsam import depthwise
from harmoniad_jax.model.layers import Dense

ROUNDS = 15
IMAGES, GRID, WIDTH, HIDDEN, KERNEL = 16, 16, 384, 1536, 5


def gradient(apply):
    """The gradient of a layer's squared output for weights and inputs, compiled."""
    return jax.jit(jax.grad(lambda *args: jnp.sum(apply(*args) ** 2), argnums=(0, 1)))


def median_seconds(functions, arguments) -> list[float]:
    """Median time of each function, called in turn."""
    seconds = np.zeros((ROUNDS + 1, len(functions)))
    for row in seconds:
        for column, function in enumerate(functions):
            start = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            row[column] = time.perf_counter() - start
    return list(np.median(seconds[1:], axis=0))  # the first round compiles


def grouped_convolution(kernel, features):
    return jax.lax.conv_general_dilated(
        features,
        kernel[:, :, None],
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=features.shape[-1],
    )


def main() -> None:
    tokens = jax.random.normal(jax.random.key(0), (IMAGES, GRID * GRID, WIDTH))
    params = Dense(HIDDEN).init(jax.random.key(1), tokens)
    maps = tokens.reshape(IMAGES, GRID, GRID, WIDTH)
    kernel = jax.random.normal(jax.random.key(2), (KERNEL, KERNEL, WIDTH))
    print(f"{jax.devices()[0].device_kind}, {jax.device_count()} device(s)")
    for name, functions, arguments in (
        (
            f"dense {WIDTH} -> {HIDDEN}: flattened, nn.Dense",
            [gradient(Dense(HIDDEN).apply), gradient(nn.Dense(HIDDEN).apply)],
            (params, tokens),
        ),
        (
            f"depthwise {KERNEL} x {KERNEL}: shifts, grouped convolution",
            [
                gradient(lambda kernel, maps: depthwise(maps, kernel)),
                gradient(grouped_convolution),
            ],
            (kernel, maps),
        ),
    ):
        ours, theirs = median_seconds(functions, arguments)
        print(f"{name}: {ours:.3f} s, {theirs:.3f} s, {theirs / ours:.1f} times faster")


if __name__ == "__main__":
    main()
