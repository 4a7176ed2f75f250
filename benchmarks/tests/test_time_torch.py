"""The benchmark against PyTorch compares before it times, and says so without PyTorch."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSTALLED = importlib.util.find_spec("torch") is not None
SMALL = ("--images=2", "--grid=8", "--width=64")


def run(*options):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "time_torch.py", *SMALL, *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.skipif(INSTALLED, reason="PyTorch is installed")
def test_without_pytorch_it_says_how_to_get_it():
    finished = run()
    assert finished.returncode == 2
    assert "pip install torch" in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.skipif(not INSTALLED, reason="PyTorch is not installed")
def test_both_heads_agree(tmp_path):
    finished = run("--rounds=0", f"--json={tmp_path / 'report.json'}")
    assert finished.returncode == 0, finished.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["deviations"]["gradient"] < 1e-5
    assert "seconds" not in report
