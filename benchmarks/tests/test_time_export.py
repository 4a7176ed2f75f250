"""The benchmark of exported files: a tiny run of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import time_export
from run_helpers import shallow

from harmoniad_jax.config import parse_config
from harmoniad_jax.config_files import load_config
from harmoniad_jax.exporting import onnx_file
from harmoniad_jax.training.loop import train_and_evaluate

ROOT = Path(__file__).parents[2]


def test_what_is_installed_counts_what_it_needs():
    numpy = time_export.installed_size(("numpy",))
    assert numpy > 1e7
    assert time_export.installed_size(("onnxruntime",)) > numpy
    assert time_export.installed_size(("numpy", "no-such-package")) == numpy


@pytest.mark.slow
def test_a_tiny_run(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "openvino_runtime", lambda path: None)
    values = load_config("demo")
    values.data.root = str(tmp_path / "images")
    values.data.categories = ("tablet",)
    values.data.image_side = 32
    values.cache.folder = str(tmp_path / "cache")
    values.train.num_steps = 1
    values.evaluation.report = False
    workdir, path = tmp_path / "run", tmp_path / "model.onnx"
    train_and_evaluate(shallow(parse_config(values)), workdir)
    onnx_file.export_onnx(workdir, path, images=3)
    flags = os.environ["XLA_FLAGS"].split()
    # A batch of one image is for one device.
    one_device = [flag for flag in flags if "device_count" not in flag]
    monkeypatch.setenv("XLA_FLAGS", " ".join(one_device))
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "benchmarks/time_export.py"),
            *("--workdir", workdir, "--images", "3", path),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines()[3:]]
    names = [row[1].strip() for row in rows]
    assert names[:3] == ["JAX", "JAX, compiled before", "ONNX Runtime"]
    for row in rows:
        assert float(row[7].removesuffix(" ms ")) >= 0
