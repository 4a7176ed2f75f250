"""Predict and evaluate where the system refuses: a full disk, a closed folder."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harmoniad_jax.errors import UserError
from harmoniad_jax.evaluation import evaluate as evaluation
from harmoniad_jax.inference.predict import predict_files

FULL = OSError(errno.ENOSPC, "No space left on device")


def refusing(error):
    def refuse(*_, **__):
        raise error

    return refuse


@pytest.mark.parametrize("maps", ["png", "npy"])
def test_predict_on_a_full_disk(predict, photos, tmp_path, monkeypatch, maps):
    """What was judged is kept, and the table does not look whole."""
    monkeypatch.setattr(Image.Image, "save", refusing(FULL))
    monkeypatch.setattr(Path, "write_bytes", refusing(FULL))
    output = tmp_path / "out"
    with pytest.raises(UserError, match="No space left on device. Free some room") as told:
        predict(photos, output, maps=maps, threshold=0.0)
    assert f"{output / 'predictions.partial.csv'}; add --overwrite" in str(told.value)
    assert not (output / "predictions.csv").exists()
    assert "a.png" in (output / "predictions.partial.csv").read_text()


def test_maps_of_numbers_are_as_numpy_writes_them(predict, photos, tmp_path):
    predict(photos, tmp_path / "out", maps="npy")
    assert np.load(tmp_path / "out/maps/a.png.npy").shape == (24, 30)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_predict_when_the_table_cannot_be_written(predict, photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/predictions.partial.csv").symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left on device"):
        predict(photos, tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("output", ["file", "file/below"])
def test_an_output_that_is_a_file(predict, photos, tmp_path, output):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=f"--output={tmp_path / output} .*ile"):
        predict(photos, tmp_path / output)
    assert (tmp_path / "file").read_text() == "mine"


def test_an_empty_input(tmp_path, monkeypatch):
    """It is not the folder that the command happens to be called in."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--input is empty"):
        predict_files(tmp_path / "run", "", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [FULL, OSError(errno.EROFS, "Read-only file system")])
def test_evaluate_finds_a_closed_folder_before_it_works(
    trained, tmp_path, monkeypatch, error
):
    monkeypatch.setattr(Path, "touch", refusing(error))
    monkeypatch.setattr(evaluation, "measure", refusing(AssertionError("worked")))
    with pytest.raises(UserError, match=f"{tmp_path}: {error.strerror}. .*is kept"):
        evaluation.evaluate(trained, tmp_path)


def test_evaluate_shows_what_it_cannot_write(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "fsync", refusing(FULL))
    expected = f"results.json: No space left .*evaluate --workdir={tmp_path}"
    with pytest.raises(UserError, match=expected):
        evaluation.evaluate(trained, tmp_path)
    assert "| mean " in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
