"""A trained model, the test images of its run, and what evaluation makes of them."""

from pathlib import Path

import pytest
from predict_helpers import noise, write_image

import harmoniad_jax
from harmoniad_jax.inference import predict as module
from harmoniad_jax.inference.predict import predict_files
from harmoniad_jax.inference.predictor import Predictor
from harmoniad_jax.inference.restore import open_trained
from harmoniad_jax.run.run import prepare_run


@pytest.fixture(scope="session")
def run(trained_run):
    return prepare_run(trained_run.config)


@pytest.fixture(scope="session")
def model(trained_run):
    return harmoniad_jax.load(trained_run.workdir)


@pytest.fixture(scope="session")
def paths(run):
    """Test images of all categories, good and defective: more than two batches."""
    found = [record.image for record in run.dataset.test]
    assert len(found) > 2 * run.config.evaluation.batch_size
    return found


@pytest.fixture(scope="session")
def trained(trained_run):
    """The run, opened with its images."""
    return open_trained(trained_run.workdir)


@pytest.fixture(scope="session")
def evaluated(run, trained):
    """What evaluation makes of the test images."""
    return Predictor(trained)(run.dataset.test, "test")


@pytest.fixture
def predict(model, monkeypatch):
    """`predict_files` with a model that was loaded once for all tests."""
    monkeypatch.setattr(module, "TrainedModel", lambda *_, **__: model)

    def call(source, output, **options):
        return predict_files(Path("unused"), str(source), output, **options)

    return call


@pytest.fixture
def photos(tmp_path):
    """Three images in two folders, and what is none."""
    folder = tmp_path / "photos"
    for seed, name in enumerate(("a.png", "sub/b.jpg", "sub/tablet/c.bmp")):
        write_image(folder / name, noise(24 + seed, 30, seed))
    for name in ("notes.txt", ".hidden.png", "sub/Thumbs.db"):
        (folder / name).write_bytes(b"Dear reader")
    return folder
