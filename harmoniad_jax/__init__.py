"""HarmoniAD for JAX: finds and localises defects in images of industrial products."""

from __future__ import annotations

import os
import typing

if typing.TYPE_CHECKING:
    from pathlib import Path

    from harmoniad_jax.inference.trained_model import TrainedModel

__version__ = "0.1.0"

# From 1.29 on ONNX Runtime sends its maker what it runs, and keeps a number of this machine
# in the user's cache, unless this is set before it is imported. What a factory inspects is
# nobody's business. With "0" in the environment it may.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def load(
    workdir: str | Path, *, encoder: str | None = None, white_level: float | None = None
) -> TrainedModel:
    """Loads a trained model: `load("runs/a").predict(["part.png"])`.

    Args:
      workdir: folder of a finished training run.
      encoder: where the encoder is, if not where it was in training.
      white_level: what is white in images deeper than 8 bits, if not what training found.
    """
    # Imported late: the commands read their flags before JAX is loaded.
    from harmoniad_jax.inference.trained_model import TrainedModel

    return TrainedModel(workdir, encoder=encoder, white_level=white_level)
