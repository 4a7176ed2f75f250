"""From image files and a finished run to predictions on disk."""

from pathlib import Path
from typing import Any

from tqdm import tqdm

from harmoniad_jax.inference.files import judge_files
from harmoniad_jax.inference.trained_model import TrainedModel


def predict_files(
    workdir: Path,
    source: str,
    output: Path,
    *,
    encoder: str | None = None,
    white_level: float | None = None,
    **options: Any,
) -> int:
    """Judges image files with a run, see `judge_files`.

    Args:
      workdir: folder of a finished run.
      source, output, **options: see `judge_files`.
      encoder, white_level: see `TrainedModel`.

    Returns:
      The number of files that could not be read.

    Raises:
      UserError: no images, no trained model, or nowhere to write.
    """
    return judge_files(
        lambda: TrainedModel(workdir, encoder=encoder, white_level=white_level),
        source,
        output,
        progress=lambda names: tqdm(names, "predicting", unit="image", disable=None),
        **options,
    )
