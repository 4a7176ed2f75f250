"""The runner without JAX: the same verdicts as the run, and a line for a bad file."""

import csv
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import harmoniad_jax
import harmoniad_runtime
from harmoniad_jax.errors import UserError
from harmoniad_jax.inference.image_model import Query
from harmoniad_jax.inference.predict import predict_files
from harmoniad_jax.run.run import prepare_run
from harmoniad_runtime.__main__ import main

ROOT = Path(__file__).parents[2]
# What the documents tell to install; what these need is found here.
LIBRARIES = (
    "numpy",
    "pillow",
    "scipy",
    "onnxruntime",
    "tifffile",
    "imagecodecs",
    "simplejpeg",
)


@pytest.fixture(scope="module")
def run(trained_run):
    return prepare_run(trained_run.config)


@pytest.fixture(scope="module")
def paths(run):
    return [record.image for record in [*run.dataset.test, *run.dataset.held_out]]


@pytest.fixture(scope="module")
def trained(trained_run):
    return harmoniad_jax.load(trained_run.workdir)


@pytest.fixture(scope="module")
def model(exported):
    return harmoniad_runtime.load(exported.path)


def check_alike(found, expected):
    """Two results of an image."""
    assert found.is_defective == expected.is_defective
    assert found.boxes == expected.boxes
    assert found.threshold == expected.threshold
    assert found.pixel_threshold == expected.pixel_threshold
    assert (found.category, found.size, found.note) == (
        *(expected.category, expected.size, expected.note),
    )
    assert found.score == pytest.approx(expected.score, rel=1e-4, abs=1e-4)
    assert found.normalised_score == pytest.approx(expected.normalised_score, abs=1e-4)
    for name in ("anomaly_map", "normalised_map"):
        one, other = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(other).max())


@pytest.mark.parametrize("rate", [None, 0.3])
def test_the_runner_says_what_the_run_says(model, trained, paths, rate):
    options = {"category": "tablet", "false_positive_rate": rate}
    results = (one.predict(paths, **options) for one in (model, trained))
    for found, expected in zip(*results, strict=True):
        check_alike(found, expected)


def test_the_image_that_set_a_threshold_stays_good(model, trained, run):
    """Its score is equal to the threshold, and another runtime rounds otherwise."""
    records = run.dataset.held_out
    queries = [Query(record.image, record.category) for record in records]
    for found, expected in zip(model.stream(queries), trained.stream(queries), strict=True):
        assert found.is_defective is False
        check_alike(found, expected)


def test_a_score_close_to_the_threshold_is_equal_to_it(exported, model, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    (found,) = model.predict([image])
    distance = abs(found.score - found.threshold)
    assert model.description.score_tolerance < 1e-3 < distance
    for tolerance, equal in ((1.01 * distance, True), (0.99 * distance, False)):
        path = exported.changed(tmp_path, score_tolerance=tolerance)
        (other,) = harmoniad_runtime.load(path).predict([image])
        assert (other.score == found.threshold) == equal
        assert other.is_defective == (False if equal else found.is_defective)
    # A threshold that was given is taken as it is.
    path = exported.changed(tmp_path, score_tolerance=1e9)
    (other,) = harmoniad_runtime.load(path).predict([image], threshold=found.score - 1e-3)
    assert other.score == found.score and other.is_defective


def test_images_of_16_bits_are_scaled_as_in_the_run(exported, model, trained, tmp_path):
    levels = {"white": {"16-bit": 4095.0}, "black": 0.0}
    values = json.loads(exported.path.with_suffix(".json").read_text())
    preprocessor = {**values["preprocessor"], "levels": levels}
    deep = np.random.default_rng(0).integers(0, 4096, (40, 40), np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    other = harmoniad_runtime.load(exported.changed(tmp_path, preprocessor=preprocessor))
    (found,) = other.predict([tmp_path / "deep.png"])
    shallow = (deep / 4095 * 255).round().astype(np.uint8)
    (expected,) = trained.predict([shallow])
    check_alike(found, expected)
    given = harmoniad_runtime.load(exported.path, white_level=4095)
    assert given.predict([tmp_path / "deep.png"])[0].score == found.score


def test_arrays_and_batches_of_any_size(model, trained):
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (20 + i, 30, 3), np.uint8) for i in range(6)]
    images.append(images[0][..., 0])
    for found, expected in zip(model.predict(images), trained.predict(images), strict=True):
        check_alike(found, expected)
    alone = model.predict(images[:1])[0]
    assert alone.score == pytest.approx(model.predict(images)[0].score, abs=1e-5)


def test_categories_and_mistakes_are_those_of_the_run(model, trained, paths):
    assert model.categories == trained.categories
    for options in ({"category": "tabletop"}, {"false_positive_rate": 1.5}):
        messages = []
        for one in (model, trained):
            with pytest.raises(UserError) as error:
                one.predict(paths[:1], **options)
            messages.append(str(error.value))
        assert messages[0] == messages[1]
    assert "Did you mean 'tablet'?" in _message(model, paths, category="tabletop")


def _message(model, paths, **options):
    with pytest.raises(UserError) as error:
        model.predict(paths[:1], **options)
    return str(error.value)


# In an environment of its own.


@pytest.fixture(scope="module")
def without_jax(tmp_path_factory):
    """The Python of an environment that holds what the runner needs and nothing else."""
    folder = tmp_path_factory.mktemp("without_jax") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/*/site-packages")
    for name in needed(LIBRARIES):
        distribution = importlib.metadata.distribution(name)
        tops = {Path(file).parts[0] for file in distribution.files or ()}
        for top in tops - {"..", "__pycache__"}:
            (site / top).symlink_to(Path(distribution.locate_file(top)).resolve())
    for package in ("harmoniad_jax", "harmoniad_runtime"):
        (site / package).symlink_to(ROOT / package)
    return folder / "bin/python"


def needed(names):
    """These distributions and all that they require."""
    found, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        requirements = importlib.metadata.requires(name) or ()
        for text in requirements:
            if ";" not in text:
                waiting.append(re.match(r"[\w.-]+", text)[0])
    return found


def call(python, *arguments, folder):
    """Runs Python without sight of this environment."""
    return subprocess.run(
        [python, "-I", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


def rows_of(folder):
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_table_of_an_environment_without_jax(
    without_jax, exported, trained_run, products, tmp_path
):
    for name in ("jax", "flax", "transformers", "ml_collections", "matplotlib", "tqdm"):
        assert call(without_jax, "-c", f"import {name}", folder=tmp_path).returncode == 1
    (tmp_path / "broken.png").write_text("no image")
    # All there is, and below: test, training and held-out images, and masks.
    for output, source in (("run", products), ("broken", tmp_path / "*.png")):
        predict_files(trained_run.workdir, str(source), tmp_path / output, overwrite=True)
        done = call(
            *(without_jax, "-m", "harmoniad_runtime", "--model", exported.path),
            *("--input", source, "--output", tmp_path / f"{output}-runner"),
            folder=tmp_path,
        )
        assert done.returncode == (1 if output == "broken" else 0), done.stderr
        assert done.stderr == ""
        expected, found = (
            rows_of(tmp_path / name) for name in (output, f"{output}-runner")
        )
        assert len(found) == len(expected) > 0
        for one, other in zip(found, expected, strict=True):
            for column in ("score", "normalised_score"):
                value, wanted = one.pop(column), other.pop(column)
                assert bool(value) == bool(wanted)
                if value:
                    close = pytest.approx(float(wanted), rel=1e-4, abs=1e-4)
                    assert float(value) == close
            assert one == other
        names = [
            {path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*")}
            for name in (output, f"{output}-runner")
        ]
        assert names[0] == names[1]


def test_the_command_says_what_is_wrong_in_one_line(without_jax, exported, tmp_path):
    for arguments, message in (
        ((), "the following arguments are required: --model"),
        (("--model=none.onnx", "--input=.", "--output=out"), "holds no images|is no image"),
        (("--model=x", "--input=x", "--output=o", "--maps=gif"), "invalid choice: 'gif'"),
        (("--model=x", "--input=x", "--output=o", "--white_level=-1"), "-1 is below 0"),
    ):
        done = call(without_jax, "-m", "harmoniad_runtime", *arguments, folder=tmp_path)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ") and re.search(message, line)
        assert list(tmp_path.iterdir()) == []


# Files that are not what they should be.


def check_refused(path, message):
    with pytest.raises(UserError, match=message) as error:
        harmoniad_runtime.load(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_a_file_that_was_cut_off(exported, tmp_path, kept):
    content = exported.path.read_bytes()
    count = kept if kept >= 1 else int(kept * len(content))
    (tmp_path / "cut.onnx").write_bytes(content[:count])
    check_refused(
        tmp_path / "cut.onnx", "cannot be read as an ONNX file|model of something"
    )


def test_a_file_that_is_none(tmp_path):
    (tmp_path / "text.onnx").write_text("Dear reader")
    check_refused(tmp_path / "text.onnx", "cannot be read as an ONNX file")
    check_refused(tmp_path / "missing.onnx", "No such file")
    check_refused(tmp_path, "is a folder")


def test_a_model_of_something_else(exported, tmp_path):
    model = onnx.load(exported.path)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    check_refused(tmp_path / "other.onnx", "a model of something else")


def test_a_file_of_the_future(exported, tmp_path):
    path = exported.changed(tmp_path, format_version=2, anything="new")
    check_refused(path, "format version 2, of a later program; this one reads up to 1")


@pytest.mark.parametrize(
    "changes",
    [
        {"description": "{"},
        {"description": "[]"},
        {"description": "{}"},
        {"format_version": "one"},
        {"preprocessor": None},
        {"calibration": {"overall": {}}},
        {"rates": {"rate": 1}},
        {"score_tolerance": "small"},
    ],
    ids=str,
)
def test_a_damaged_description(exported, tmp_path, changes):
    check_refused(exported.changed(tmp_path, **changes), "holds a damaged description")


def test_a_network_of_another_size(exported, tmp_path):
    values = json.loads(exported.path.with_suffix(".json").read_text())
    other = {**values["preprocessor"], "side": 64}
    check_refused(exported.changed(tmp_path, preprocessor=other), "does not fit")


def test_a_provider_that_is_not_installed(exported):
    with pytest.raises(UserError, match="no provider 'Quantum'.*CPUExecutionProvider"):
        harmoniad_runtime.load(exported.path, providers=["Quantum"])


def test_the_rates_may_be_changed_in_the_file(exported, tmp_path, model):
    rates = {"false_positive_rate": 0.5, "pixel_false_positive_rate": 0.1}
    other = harmoniad_runtime.load(exported.changed(tmp_path, rates=rates))
    image = np.full((32, 32, 3), 90, np.uint8)
    (found,), (expected,) = (
        other.predict([image]),
        model.predict([image], false_positive_rate=0.5),
    )
    assert found.threshold == expected.threshold
    assert found.pixel_threshold < expected.pixel_threshold


def test_the_command_in_this_process(exported, products, tmp_path, capsys):
    """The options that another process has not shown."""
    status = main(
        [
            *("--model", str(exported.path), "--input", str(products / "fabric/test/good")),
            *("--output", str(tmp_path / "out"), "--category", "tablet", "--nooverlays"),
            *("--threshold", "1e6", "--maps", "npy", "--map_size", "model"),
        ]
    )
    assert status == 0
    rows = rows_of(tmp_path / "out")
    assert {row["verdict"] for row in rows} == {"good"}
    assert {row["category"] for row in rows} == {"tablet"}
    assert not (tmp_path / "out/overlays").exists()
    assert np.load(next((tmp_path / "out/maps").glob("*.npy"))).shape == (32, 32)
    assert "2 images: 0 defective, 2 good" in capsys.readouterr().out


def test_it_reports_nothing_to_the_maker_of_onnx_runtime(exported, tmp_path):
    """Whose telemetry would leave a number of this machine in the user's cache."""
    # Without what else may switch it off, such as the variables of a build server.
    kept = {name: os.environ.get(name, "") for name in ("PATH", "LD_LIBRARY_PATH")}
    known = {**kept, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    program = f"import harmoniad_runtime; harmoniad_runtime.load({str(exported.path)!r})"
    subprocess.run([sys.executable, "-c", program], env=known, check=True)
    assert not list(tmp_path.rglob("*"))
