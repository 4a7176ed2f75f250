"""`predict_files` with a model that is loaded once, and a folder of photos for it."""

from pathlib import Path

import pytest
from predict_helpers import noise, write_image

from harmoniad_jax.training import predict_files as module
from harmoniad_jax.training.inference import TrainedModel
from harmoniad_jax.training.predict_files import predict_files


@pytest.fixture(scope="session")
def model(trained_run):
    return TrainedModel(trained_run.workdir)


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
