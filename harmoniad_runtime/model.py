"""An exported model, run by ONNX Runtime."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from harmoniad_jax.data.levels import Levels
from harmoniad_jax.errors import UserError, system_problem
from harmoniad_jax.inference import new_thresholds
from harmoniad_jax.inference.image_model import ImageModel
from harmoniad_runtime.description import (
    INPUT,
    MAPS,
    METADATA_KEY,
    SCORES,
    read_description,
)

# Larger batches are no faster on a CPU and take more memory.
BATCH_SIZE = 4
INSTALL = "pip install onnxruntime"


class ExportedModel(ImageModel):
    """An exported model, ready for new images.

    Attributes:
      description: what the file says of itself.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        white_level: float | None = None,
        threads: int | None = None,
    ):
        """Loads a file, see `load`."""
        path = Path(path).expanduser()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
        cores = cores or os.cpu_count() or 1
        self._session = _open(path, list(providers), threads or cores)
        stored = self._session.get_modelmeta().custom_metadata_map
        self.description = read_description(path, stored.get(METADATA_KEY))
        preprocessor = self.description.preprocessor
        self._check_input(path)
        if white_level is not None:
            levels = Levels(fixed=white_level)
            preprocessor = dataclasses.replace(preprocessor, levels=levels)
        super().__init__(
            preprocessor,
            self.description.calibration,
            self.description.rates,
            # int8 scales activations by the whole batch: an image alone knows no others.
            batch_sizes=(1 if self.description.precision == "int8" else BATCH_SIZE,),
            threads=threads or cores,
            score_tolerance=self.description.score_tolerance,
        )
        self.use(new_thresholds.latest(path, self.own_calibration))

    def predict_batch(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The network alone.

        Args:
          images: [B, H, W, 3] uint8 RGB, as `preprocessor` scales them.

        Returns:
          Anomaly maps [B, H', W'] and image scores [B], float32.
        """
        maps, scores = self._session.run([MAPS, SCORES], {INPUT: images})
        return maps, scores

    def _predict_batch(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.predict_batch(images)

    def _check_input(self, path: Path) -> None:
        """Refuses a network that does not take what the preprocessor makes.

        Raises:
          UserError: saying so.
        """
        inputs = {value.name: value for value in self._session.get_inputs()}
        outputs = {value.name for value in self._session.get_outputs()}
        wanted = [*self.description.preprocessor.all_shapes[0], 3]
        found = inputs[INPUT].shape[1:] if INPUT in inputs else None
        if found != wanted or not {MAPS, SCORES} <= outputs:
            raise UserError(
                f"{path} is damaged: its network does not fit its description. Export the "
                "run again."
            )


def _open(path: Path, providers: list[str], threads: int):
    """A session of ONNX Runtime.

    Raises:
      UserError: it is not installed, or the file or a provider is not there or not read.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"ONNX Runtime is not installed: {INSTALL}") from None
    there = onnxruntime.get_available_providers()
    missing = [name for name in providers if name not in there]
    if missing:
        raise UserError(
            f"ONNX Runtime has no provider {missing[0]!r} here; there are "
            f"{', '.join(there)}."
        )
    if path.is_dir():
        raise UserError(f"{path} is a folder; give an exported .onnx file.")
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise UserError(
            f"the model cannot be read. {system_problem(error, path)}"
        ) from None
    # In TF32, the default, a GPU would round the scores to ten bits.
    exact = {"CUDAExecutionProvider": {"use_tf32": "0"}}
    chosen = [(name, exact.get(name, {})) for name in providers]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that wait leave the cores to the decoding of images, and to other programs: by
    # default they spin, which took as much of the cores as the network itself.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=chosen)
    except Exception as error:  # it raises classes of its own without a common base
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} cannot be read as an ONNX file ({reason[:160]}). Copy it again, or "
            "export the run again."
        ) from None
