"""The study of drift: its table, and its rate of false alarms."""

import measure_drift
import numpy as np
import pytest
from measure_drift import Look, false_alarms, seen
from PIL import Image

from harmoniad_jax.data.appearance import PROPERTIES
from harmoniad_jax.data.preprocess import Preprocessor
from harmoniad_jax.inference.image_model import ImageModel, Rates
from harmoniad_jax.run.normality import GoodImages
from harmoniad_jax.serving.opening import Opened


def looks(rng, count, **moved):
    values = [
        {name: rng.normal() + moved.get(name, 0.0) for name in PROPERTIES}
        for _ in range(count)
    ]
    return Look(rng.normal(size=count).tolist(), values)


def test_false_alarms_are_as_seldom_as_stated():
    rng = np.random.default_rng(0)
    shares, count = false_alarms([looks(rng, 40), looks(rng, 8)], draws=200)
    assert count == 200, "too few images for halves"
    assert (shares <= 0.03).all()


def test_a_change_of_light_is_seen_by_the_appearance_alone():
    rng = np.random.default_rng(0)
    found = seen(looks(rng, 30).normality, looks(rng, 40, light=-4.0))
    assert found == (False, True, ["darker"])


class Brightest(ImageModel):
    """Takes the brightest pixel for the score."""

    def __init__(self, calibration):
        rates = Rates(0.01, 0.001)
        super().__init__(Preprocessor(16), calibration, rates, batch_sizes=(4,), threads=1)

    def _predict_batch(self, images):
        maps = images.max(axis=-1).astype(np.float32)
        return maps, maps.max(axis=(1, 2))


def good_images(look):
    return GoodImages({}, look.normality, {"a": look.normality})


@pytest.fixture
def study(tmp_path, monkeypatch, capsys):
    """Calls the command for a model; gives what it printed."""
    folder, rng = tmp_path / "a" / "test" / "good", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for place in range(24):
        pixels = rng.integers(60, 120, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{place:03}.png")
    files = sorted(folder.iterdir())

    def call(model):
        monkeypatch.setattr(
            measure_drift, "open_model", lambda path: Opened(model, tmp_path, "run")
        )
        flags = ("--draws=5", "--severities=5", "--corruptions=contrast")
        status = measure_drift.main(["model", str(tmp_path), *flags])
        return status, capsys.readouterr()

    return files, call


def test_the_table(study):
    files, call = study
    empty = good_images(Look([0.0], []))
    look = measure_drift.judge(Brightest(empty), files, "a")
    status, printed = call(Brightest(good_images(look)))
    lines = printed.out.splitlines()
    assert status == 0
    assert lines[2].startswith("| as they are | 0 of 1 | 0 of 1 |")
    assert lines[3].startswith(
        "| contrast, severity 5 | 1 of 1 | 1 of 1 | with less contrast (1)"
    )
    assert lines[-1].startswith("Half of the good test images") and "5 times" in lines[-1]


def test_a_model_that_knows_no_appearance_is_refused(study):
    with pytest.raises(SystemExit) as exit:
        study[1](Brightest(good_images(Look([0.0], []))))
    assert exit.value.code == 2
