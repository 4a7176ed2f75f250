"""Opens what a server judges with: a run's folder, or an exported file without JAX."""

import dataclasses
from pathlib import Path

from harmoniad_jax.errors import UserError
from harmoniad_jax.inference.image_model import ImageModel

SUFFIX = ".onnx"


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model and what is known of it.

    Attributes:
      model: ready for images.
      path: of the run or of the file.
      kind: "run" or "exported file".
    """

    model: ImageModel
    path: Path
    kind: str


def open_model(
    path: str | Path,
    *,
    encoder: str | None = None,
    white_level: float | None = None,
    providers: tuple[str, ...] = ("CPUExecutionProvider",),
    threads: int | None = None,
) -> Opened:
    """Opens a run's folder or an exported file.

    Args:
      path: a folder, or a file that `python -m harmoniad_jax.export` wrote.
      encoder: of a run: where the encoder is now.
      white_level: what is white in images deeper than 8 bits.
      providers, threads: of an exported file, see `harmoniad_runtime.load`.

    Raises:
      UserError: there is no such model, or it cannot be used.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        # Imported late, as below: an exported file needs no JAX, a run no ONNX Runtime.
        from harmoniad_jax.devices.compilation import enable_compilation_cache
        from harmoniad_jax.inference.trained_model import TrainedModel

        enable_compilation_cache()
        model = TrainedModel(path, encoder=encoder, white_level=white_level)
        return Opened(model, path, "run")
    if not path.exists():
        raise UserError(
            f"{path} does not exist; give the folder of a finished run, or an exported "
            f"{SUFFIX} file."
        )
    if path.suffix.lower() != SUFFIX:
        raise UserError(
            f"{path} is neither a run's folder nor an exported {SUFFIX} file; write one "
            "with python -m harmoniad_jax.export."
        )
    from harmoniad_runtime import load

    model = load(path, providers=providers, white_level=white_level, threads=threads)
    return Opened(model, path, "exported file")
