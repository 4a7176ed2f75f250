"""Position embeddings for other images than the encoder was trained at."""

import math

import numpy as np


def resize_position_embedding(embedding: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Resizes a square grid of position embeddings as PyTorch's `interpolate` does.

    Bicubic, `align_corners=False`, no antialiasing: the arithmetic that the published
    checkpoints are used with. `jax.image` differs at the border, where it renormalises
    the kernel and PyTorch repeats the edge.

    Args:
      embedding: [1 + n * n, D] float32, class token first.
      grid: wanted (h, w) of the grid.

    Returns:
      [1 + h * w, D] float32.
    """
    class_token, patches = embedding[:1], embedding[1:]
    side = round(len(patches) ** 0.5)
    if (side, side) == tuple(grid):
        return embedding
    vertical, horizontal = (_bicubic_weights(side, length) for length in grid)
    patches = patches.reshape(side, side, -1).astype(np.float64)
    patches = np.einsum("Yy,Xx,yxd->YXd", vertical, horizontal, patches, optimize=True)
    patches = patches.reshape(math.prod(grid), -1).astype(embedding.dtype)
    return np.concatenate([class_token, patches])


def _bicubic_weights(source: int, target: int, a: float = -0.75) -> np.ndarray:
    """[target, source] weights of cubic convolution (Keys 1981), PyTorch's a = -0.75."""
    positions = (np.arange(target) + 0.5) * source / target - 0.5
    first = np.floor(positions).astype(int) - 1
    weights = np.zeros((target, source))
    for offset in range(4):
        x = np.abs(positions - (first + offset))
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * (x**3 - 5 * x**2 + 8 * x - 4)
        index = np.clip(first + offset, 0, source - 1)
        np.add.at(weights, (np.arange(target), index), np.where(x <= 1, near, far))
    return weights
