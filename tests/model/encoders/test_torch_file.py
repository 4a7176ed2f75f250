"""Files that PyTorch 2.13 wrote (`torch.save`), read without it."""

import pickle
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from harmoniad_jax.model.encoders.torch_file import read_torch_file

HERE = Path(__file__).parent


def test_tensors_are_read_as_arrays():
    state = read_torch_file(HERE / "torch_state.bin")
    matrix = np.arange(24, dtype=np.float32).reshape(4, 6)
    expected = {
        "matrix": matrix,
        "transposed": matrix.T,
        "part": matrix[1:3, 2:5],
        "half": np.array([0.5, -2.0], np.float16),
        "brain": np.array([1.5, -0.25], ml_dtypes.bfloat16),
        "position_ids": np.array([[0, 1, 2]]),
        "scalar": np.array(7.0, np.float32),
    }
    assert state.keys() == expected.keys()
    for name, array in expected.items():
        assert state[name].dtype == array.dtype
        np.testing.assert_array_equal(state[name], array)


def test_what_is_more_than_tensors_is_refused():
    with pytest.raises(ValueError, match=r"torch.nn.modules.linear.Linear is no part"):
        read_torch_file(HERE / "torch_module.bin")


class Harm:
    def __reduce__(self):
        return (pytest.fail, ("a pickle ran code",))


def test_a_pickle_cannot_run_code(tmp_path):
    path = tmp_path / "model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"weight": Harm()}))
    with pytest.raises(ValueError, match="is no part of a tensor"):
        read_torch_file(path)


@pytest.mark.parametrize("content", [b"", b"\x80\x02}q\x00.", b"PK\x03\x04 cut short"])
def test_another_format_is_refused(tmp_path, content):
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="PyTorch 1.6"):
        read_torch_file(path)


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes((HERE / "torch_state.bin").read_bytes()[:-300])
    with pytest.raises(ValueError, match="PyTorch 1.6"):
        read_torch_file(path)
