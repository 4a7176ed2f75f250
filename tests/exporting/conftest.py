"""A run as an exported file."""

import contextlib
import io
import json
from pathlib import Path
from typing import NamedTuple

import onnx
import pytest

from harmoniad_jax.exporting.onnx_file import export_onnx
from harmoniad_runtime.description import METADATA_KEY


class Exported(NamedTuple):
    """An exported file, and what the command printed of it."""

    path: Path
    printed: str

    def changed(self, folder, *, description=None, **changes):
        """A copy with another description: JSON, or a function of its values."""
        model = onnx.load(self.path)
        (entry,) = model.metadata_props
        assert entry.key == METADATA_KEY
        if description is None:
            description = json.dumps({**json.loads(entry.value), **changes})
        entry.value = description
        onnx.save(model, folder / "changed.onnx")
        return folder / "changed.onnx"


@pytest.fixture(scope="session")
def exported(trained_run, tmp_path_factory):
    """The trained run as a file; OpenVINO is left to a test of its own."""
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(
            "harmoniad_jax.exporting.onnx_file.openvino_runtime", lambda path: None
        )
        export_onnx(trained_run.workdir, path, images=8)
    return Exported(path, printed.getvalue())
