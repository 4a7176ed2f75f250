"""Reads `pytorch_model.bin` without PyTorch: some encoders are published as nothing else.

Such a file is a zip archive of one pickle and the raw storages that it refers to. A pickle
can run any code, so only the names that tensors are made of are let through.
"""

import collections
import pickle
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

STORAGE_DTYPES = {
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "DoubleStorage": np.dtype(np.float64),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}


def read_torch_file(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dictionary that `torch.save` wrote (PyTorch >= 1.6).

    Raises:
      ValueError: another format, or a pickle that holds more than tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = [n for n in archive.namelist() if n.endswith("/data.pkl")]
            folder = name.removesuffix("data.pkl")
            with archive.open(name) as file:
                state = _TensorUnpickler(file, archive, folder).load()
    except (zipfile.BadZipFile, pickle.UnpicklingError, KeyError, EOFError) as error:
        raise ValueError(f"no state dictionary of PyTorch 1.6 or later: {error}") from None
    if not isinstance(state, dict):
        raise ValueError(f"holds a {type(state).__name__} instead of tensors by name")
    return {key: value for key, value in state.items() if isinstance(value, np.ndarray)}


class _TensorUnpickler(pickle.Unpickler):
    """Unpickles dictionaries of tensors, as arrays, and refuses everything else."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str):
        super().__init__(file)
        self._archive, self._folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a tensor")

    def persistent_load(self, key: tuple) -> np.ndarray:
        _, dtype, name, _, count = key
        content = self._archive.read(f"{self._folder}data/{name}")
        return np.frombuffer(content, dtype, count)


def _rebuild_tensor(storage, offset, size, stride, *_) -> np.ndarray:
    """A tensor is a strided view of a storage, counted in elements."""
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(
        storage[offset:], size, strides, writeable=False
    ).copy()
