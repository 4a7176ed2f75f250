"""The programs of docs/guide-deploy.md run, and say what the runner says."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import harmoniad_runtime
from harmoniad_jax.exporting.stablehlo_file import export_stablehlo

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/guide-deploy.md").read_text()


def snippet(language, containing):
    blocks = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if containing in block]
    return found


@pytest.fixture
def place(exported, tmp_path, monkeypatch):
    """A folder with the files that the page speaks of."""
    for suffix in (".onnx", ".json"):
        shutil.copy(exported.path.with_suffix(suffix), tmp_path)
    (tmp_path / "today").mkdir()
    photo = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "today/001.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_runner(place, capsys):
    exec(snippet("python", "import harmoniad_runtime").replace("bottle", "tablet"), {})
    model = harmoniad_runtime.load("model.onnx")
    (result,) = model.predict(["today/001.png"], category="tablet")
    expected = f"{result.score} {result.is_defective} {result.boxes}"
    assert capsys.readouterr().out.strip() == expected


@pytest.mark.slow
def test_stablehlo(place, trained_run, capsys):
    export_stablehlo(
        trained_run.workdir, place / "model.stablehlo", images=3, overwrite=True
    )
    capsys.readouterr()
    exec(snippet("python", "import jax.export"), {})
    assert capsys.readouterr().out == "(2,)\n"


@pytest.mark.slow
def test_openvino(place):
    pytest.importorskip("openvino")
    done = subprocess.run(
        [sys.executable, "-c", snippet("python", "import openvino")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (result,) = harmoniad_runtime.load("model.onnx").predict(["today/001.png"])
    assert float(done.stdout) == pytest.approx(result.score, rel=1e-4)


@pytest.mark.slow
def test_openvino_in_cpp(place):
    openvino = pytest.importorskip("openvino")
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler")
    package = Path(openvino.__file__).parent
    (place / "judge.cpp").write_text(snippet("cpp", "#include <openvino"))
    libraries = package / "libs"
    (library,) = libraries.glob("libopenvino.so.*")
    subprocess.run(
        [
            *("g++", "-std=c++17", "judge.cpp", "-o", "judge", f"-I{package / 'include'}"),
            *(str(library), f"-Wl,-rpath,{libraries}"),
        ],
        check=True,
    )
    done = subprocess.run([place / "judge"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grey = np.full((1, 32, 32, 3), 128, np.uint8)
    _, (score,) = harmoniad_runtime.load("model.onnx").predict_batch(grey)
    assert float(done.stdout) == pytest.approx(float(score), rel=1e-3)


def test_every_field_is_documented(exported):
    values = json.loads(exported.path.with_suffix(".json").read_text())
    for name in values:
        assert f"`{name}`" in PAGE, name
