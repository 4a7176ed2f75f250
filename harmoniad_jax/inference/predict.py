"""From image files and a finished run to predictions on disk."""

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from harmoniad_jax import phases
from harmoniad_jax.inference.files import judge_files
from harmoniad_jax.inference.trained_model import TrainedModel


def predict_files(
    workdir: Path,
    source: str,
    output: Path,
    *,
    encoder: str | None = None,
    white_level: float | None = None,
    profile_startup: bool = False,
    **options: Any,
) -> int:
    """Judges image files with a run, see `judge_files`.

    Args:
      workdir: folder of a finished run.
      source, output, **options: see `judge_files`.
      encoder, white_level: see `TrainedModel`.
      profile_startup: whether to print where the time to the first result went.

    Returns:
      The number of files that could not be read.

    Raises:
      UserError: no images, no trained model, or nowhere to write.
    """

    def progress(names: Iterable[PurePosixPath]) -> Iterable[PurePosixPath]:
        names = tqdm(names, "predicting", unit="image", disable=None)
        return _printing_the_start(names) if profile_startup else names

    return judge_files(
        lambda: TrainedModel(workdir, encoder=encoder, white_level=white_level),
        source,
        output,
        progress=progress,
        **options,
    )


def _printing_the_start(names: Iterable[PurePosixPath]) -> Iterator[PurePosixPath]:
    """The names; when the first result is written, a table of what came before it."""
    for index, name in enumerate(names):
        yield name
        if index == 0:  # its result is written when the next one is asked for
            print("From the command to the first result:")
            print(phases.table(phases.since_start()))
