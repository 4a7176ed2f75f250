"""Encoder checkpoints: found locally or on the model hub, read, and checked complete."""

import functools
import hashlib
import logging
import os
import types
from pathlib import Path
from typing import Any

import flax.serialization
import flax.traverse_util
import numpy as np
import safetensors.flax
from huggingface_hub import errors as hub_errors
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers.modeling_flax_pytorch_utils import convert_pytorch_state_dict_to_flax

from harmoniad_jax.errors import UserError
from harmoniad_jax.model.encoders.torch_file import read_torch_file

logger = logging.getLogger(__name__)

# Seconds the model hub has to answer before the local cache is used instead.
HUB_TIMEOUT = 5
CONFIG_FILES = ("config.json", "preprocessor_config.json")
# How a file begins that Git LFS was to replace with the real one.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# In order of preference: the library's own layout first, a pickle last.
WEIGHT_FILES = ("flax_model.msgpack", "model.safetensors", "pytorch_model.bin")


def hash_params(params: Any) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of a parameter tree."""
    digest = hashlib.sha256()
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    for name in sorted(flat):
        leaf = np.ascontiguousarray(flat[name])
        digest.update(f"{name}:{leaf.dtype}:{leaf.shape}".encode())
        digest.update(leaf.data)
    return digest.hexdigest()


def find_checkpoint(name: str) -> Path:
    """The folder of a checkpoint, with its configuration; from the hub if need be.

    Raises:
      UserError: there is no such folder, and the hub does not help.
    """
    return _local_folder(name) or _download(name, CONFIG_FILES)


def read_weights(name: str, prefix: str, expected: Any) -> Any:
    """Reads a checkpoint's weights into a Flax module's layout.

    Args:
      name: local folder, or name on the hub.
      prefix: of the names in PyTorch checkpoints that carry a head beside the encoder.
      expected: parameter tree of shapes that the module has.

    Returns:
      The same tree of float32 numpy arrays. What else the checkpoint holds, such as
      CLIP's text tower, is left out.

    Raises:
      UserError: no weight file, a damaged one, or one that does not fit.
    """
    folder = _local_folder(name) or _download_weights(name)
    files = [folder / file for file in WEIGHT_FILES if (folder / file).is_file()]
    if not files:
        raise UserError(
            f"encoder.name={name!r}: {folder} holds none of {', '.join(WEIGHT_FILES)}."
        )
    path = next((file for file in files if not is_pointer(file)), None)
    if path is None:
        raise UserError(f"encoder.name={name!r}: {fetch_pointer(files[0])}")
    try:
        params = _parse(path, prefix, expected)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"encoder.name={name!r}: {path} cannot be read ({error}); copy or download "
            "it again."
        ) from None
    expected = flax.traverse_util.flatten_dict(expected, sep="/")
    params = flax.traverse_util.flatten_dict(params, sep="/")
    wrong = [
        key
        for key, leaf in expected.items()
        if key not in params or params[key].shape != leaf.shape
    ]
    if wrong:
        raise UserError(
            f"encoder.name={name!r}: {path} does not fit its config.json: {len(wrong)} "
            f"parameters are missing or of another shape, first {wrong[0]}."
        )
    params = {key: np.asarray(params[key], np.float32) for key in expected}
    return flax.traverse_util.unflatten_dict(params, sep="/")


def is_pointer(path: Path) -> bool:
    """Whether a file only says where Git LFS keeps its content."""
    try:
        with path.open("rb") as file:
            return file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return False


def fetch_pointer(path: Path) -> str:
    """What to do about such a file, as a sentence."""
    return (
        f"{path} is a pointer of Git LFS, not the file itself; fetch it with git lfs pull "
        f"in {path.parent}, or download it from the model hub."
    )


def _local_folder(name: str) -> Path | None:
    folder = Path(name).expanduser()
    return folder if folder.is_dir() else None


def _parse(path: Path, prefix: str, expected: Any) -> Any:
    """Reads a weight file into the module's layout, without checking it."""
    if path.suffix == ".msgpack":
        return flax.serialization.msgpack_restore(path.read_bytes())
    if path.suffix == ".bin":
        tensors = read_torch_file(path)
    else:
        # As arrays of the host: those of a device are turned one by one, each by a program.
        loaded = safetensors.flax.load_file(path)
        tensors = {name: np.asarray(tensor) for name, tensor in loaded.items()}
    # The library's converter looks at nothing of a model but the names and shapes of its
    # parameters, so a tree of shapes spares us a random initialisation.
    layout = types.SimpleNamespace(base_model_prefix=prefix, params=expected)
    return convert_pytorch_state_dict_to_flax(tensors, layout)


def _download_weights(name: str) -> Path:
    """Fetches the first weight file that a hub model has, with its configuration."""
    for file in WEIGHT_FILES:
        folder = _download(name, (*CONFIG_FILES, file))
        if (folder / file).is_file():
            return folder
    return folder


@functools.cache
def _download(name: str, files: tuple[str, ...]) -> Path:
    """Fetches files of a hub model into the local cache, or finds them there."""
    try:
        return Path(snapshot_download(name, allow_patterns=files, etag_timeout=HUB_TIMEOUT))
    except hub_errors.RepositoryNotFoundError:
        reason = "the model hub has no such model"
    except hub_errors.HFValidationError:
        reason = "there is no such folder, and it is no model name"
    except (OSError, hub_errors.HfHubHTTPError) as error:
        logger.debug("model hub: %s", error)
        reason = "there is no such folder, and the model hub cannot be reached"
    raise UserError(
        f"encoder.name={name!r}: {reason}. Give the path of a local folder that holds "
        f"config.json and one of {', '.join(WEIGHT_FILES)}, for example "
        f"--config.encoder.name={os.path.join('weights', Path(name).name)}."
    )
