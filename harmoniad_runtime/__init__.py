"""Judges images with an exported model, without JAX: NumPy, Pillow, SciPy, ONNX Runtime.

harmoniad_runtime.load("model.onnx").predict(["part.png"], category="bottle")
"""

from collections.abc import Sequence
from pathlib import Path

from harmoniad_runtime.model import ExportedModel

__all__ = ["ExportedModel", "load"]


def load(
    path: str | Path,
    *,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    white_level: float | None = None,
    threads: int | None = None,
) -> ExportedModel:
    """Loads a model that `python -m harmoniad_jax.export` wrote.

    Args:
      path: of the `.onnx` file.
      providers: of ONNX Runtime, in order of preference.
      white_level: what is white in images deeper than 8 bits, if not what training found.
      threads: that compute; None: all cores that this process may use.

    Raises:
      UserError: no such file, not one of ours, a damaged one, one of a later version, or
        a provider that is not installed.
    """
    return ExportedModel(
        path, providers=providers, white_level=white_level, threads=threads
    )
