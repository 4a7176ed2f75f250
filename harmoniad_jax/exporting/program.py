"""The function that is exported: images in, anomaly maps and image scores out.

It is `Steps.predict_step` of the run, put together so that other runtimes can follow it:
no mesh, float32 throughout, the split as a matrix product, weights as constants.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from harmoniad_jax.errors import UserError
from harmoniad_jax.inference.trained import Trained
from harmoniad_jax.steps.step import Steps

Program = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


def exported_program(trained: Trained) -> Program:
    """The prediction of an opened run, with its weights inside.

    Returns:
      A traceable function of images [B, H, W, 3] uint8 that gives anomaly maps
      [B, H', W'] and image scores [B], float32. An encoder that computed in bfloat16
      computes in float32, with the same weights.
    """
    steps = _portable(trained.run.steps)
    params, statistics = jax.device_get((trained.state.params, trained.state.statistics))
    encoder_params = jax.tree.map(_float32, jax.device_get(trained.encoder_params))

    def predict(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        with nn.intercept_methods(_named_layer_norm):
            found = steps.predict_step(params, statistics, encoder_params, images)
        return found.anomaly_maps, found.image_scores

    return predict


def input_shape(trained: Trained) -> tuple[int, int]:
    """(height, width) in pixels of the images that the program takes.

    Raises:
      UserError: the run has images of several shapes.
    """
    shape, *others = trained.run.preprocessor.all_shapes
    if others:
        raise UserError(
            f"the products of this run have inputs of {1 + len(others)} shapes, and a file "
            "holds one. Train products of one shape in a run of their own, or all with "
            "--config.data.fit=squash."
        )
    return shape


def _portable(steps: Steps) -> Steps:
    """The same arithmetic without what only JAX on a mesh of devices has."""
    model = steps.model
    changes: dict[str, Any] = {"mesh": None}
    if hasattr(model, "split"):
        changes["split"] = model.split.clone(as_matrix=True)
    encoder = dataclasses.replace(
        steps.encoder,
        attention="library",
        module=steps.encoder.module.clone(dtype=jnp.float32),
    )
    return dataclasses.replace(steps, encoder=encoder, model=model.clone(**changes))


def _float32(leaf: np.ndarray) -> np.ndarray:
    return np.asarray(leaf, np.float32)


def _named_layer_norm(call: Callable, arguments: tuple, keywords: dict, context: Any):
    """Layer norms under a name of their own, so that a converter need not guess them."""
    layer = context.module
    plain = isinstance(layer, nn.LayerNorm) and layer.use_scale and layer.use_bias
    if not plain or context.method_name != "__call__" or layer.reduction_axes != -1:
        return call(*arguments, **keywords)
    values = arguments[0] if arguments else keywords["x"]
    stored = layer.variables["params"]
    return layer_normalization(values, stored["scale"], stored["bias"], layer.epsilon)


@jax.jit
def layer_normalization(
    values: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> jax.Array:
    """Layer norm over the last axis, as `nn.LayerNorm` computes it."""
    centred = values - values.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + epsilon) * scale + bias
