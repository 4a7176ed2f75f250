"""A run that version 0.1.0 left: this version reads it, predicts the same and continues it.

`run_0.1.0.tar.xz` was made by that version: its demo at 48 px, six steps of a narrow
network, with encoder and images, `predictions.csv` of the test images and the table of
`summarize`.
It is never made again: a later version gets a fixture of its own beside it.
"""

import csv
import json
import logging
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from run_helpers import call_command

import harmoniad_jax
from harmoniad_jax.checkpoints.store import Checkpoints
from harmoniad_jax.config import EvaluationConfig, with_settings
from harmoniad_jax.evaluation.evaluate import evaluate_run
from harmoniad_jax.report.summary import read_run, write_summary
from harmoniad_jax.run.stored import parse_stored
from harmoniad_jax.training.loop import train_and_evaluate

ARCHIVE = Path(__file__).with_name("run_0.1.0.tar.xz")
# Another processor or program sums in another order.
TOLERANCE = 1e-5


@pytest.fixture
def older(tmp_path):
    """The folder with `run`, `encoder`, `images` and `predicted`."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def numbers_of(value, name=""):
    """Dotted name -> number or text of every leaf of nested JSON."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return {name: value}
    return {
        k: v for key, item in items for k, v in numbers_of(item, f"{name}.{key}").items()
    }


def assert_close(found, expected):
    found, expected = numbers_of(found), numbers_of(expected)
    assert found.keys() >= expected.keys()  # a later version may measure more
    for name, value in expected.items():
        if isinstance(value, float):
            assert found[name] == pytest.approx(value, abs=TOLERANCE), name
        elif name not in (".config_hash", ".encoder"):  # new settings, another folder
            assert found[name] == value, name


def results_of(folder):
    return json.loads((folder / "run" / "results.json").read_text())


def test_it_predicts_the_same(older):
    model = harmoniad_jax.load(older / "run", encoder=str(older / "encoder"))
    with (older / "predicted" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18
    for row in rows:
        (result,) = model.predict(
            [older / "images" / row["path"]], category=row["category"]
        )
        for name in ("score", "threshold", "normalised_score"):
            assert getattr(result, name) == pytest.approx(float(row[name]), abs=TOLERANCE)
        assert ("defective" if result.is_defective else "good") == row["verdict"]
        assert [list(box) for box in result.boxes] == json.loads(row["boxes"])


def test_it_is_evaluated_to_the_same_results(older):
    expected = results_of(older)
    moved = {"root": str(older / "images"), "encoder": str(older / "encoder")}
    assert_close(evaluate_run(older / "run", **moved), expected)
    assert_close(results_of(older), expected)


DECAY = "evaluation.map_decay"


def todays_config(older):
    """Its settings, with today's default where it knew none or another."""
    stored = json.loads((older / "run" / "config.json").read_text())
    stored["data"]["root"] = str(older / "images")
    stored["encoder"]["name"] = str(older / "encoder")
    stored["sharding"]["data"] = 1  # its batch of 4 does not divide into eight devices
    stored["calibration"]["copies_together"] = True
    return with_settings(parse_stored(stored), {DECAY: EvaluationConfig().map_decay})


def test_training_continues_it_to_the_same_end(older, listen):
    """From its checkpoint of step 4 to the last one, 6."""
    expected, workdir = results_of(older), older / "run"
    shutil.rmtree(workdir / "checkpoints" / "6")
    (workdir / "results.json").unlink()
    logged = listen(logging.INFO)
    assert_close(train_and_evaluate(todays_config(older), workdir), expected)
    (line,) = (line for line in logged() if line.startswith("scored as before"))
    assert "config.evaluation.map_decay=0.1. " in line
    assert line.endswith("give --config.evaluation.map_decay=0.25")
    continued = json.loads((workdir / "config.json").read_text())
    assert continued["calibration"]["copies_together"] is False


def test_it_is_scored_as_is_asked_for(older):
    """From then on; predictions go on with the scores that their thresholds are for."""
    expected, workdir = results_of(older), older / "run"
    config = todays_config(older)
    assert_close(train_and_evaluate(config, workdir), expected)
    rescored = train_and_evaluate(config, workdir, given={DECAY})
    assert rescored["mean"]["pixel_ap"] != expected["mean"]["pixel_ap"]
    assert train_and_evaluate(config, workdir) == rescored
    moved = {"root": str(older / "images"), "encoder": str(older / "encoder")}
    assert_close(evaluate_run(workdir, **moved), rescored)
    test_it_predicts_the_same(older)
    # As if it had been asked for before the last step, with thresholds of these scores.
    shutil.rmtree(workdir / "checkpoints" / "6")
    assert_close(train_and_evaluate(config, workdir, given={DECAY}), rescored)
    model = harmoniad_jax.load(workdir)
    assert model.config.evaluation.map_decay == 0.25
    with Checkpoints(workdir, read_only=True) as checkpoints:
        assert checkpoints.read_calibration().fits(model.config.evaluation)


def test_it_is_summarised_alike(older):
    table = write_summary([read_run(older / "run")._replace(name="run")], "markdown")
    (heading, _, row) = table.splitlines()
    expected = (older / "summary.md").read_text().splitlines()
    cells = [cell.strip() for cell in expected[2].split("|")]
    assert [cell.strip() for cell in row.split("|")][2:] == cells[2:]
    assert "I-AUROC" in heading


def test_the_commands_read_it(older):
    """As a user would, on one device and without this process's settings."""
    made = call_command("summarize", older / "run")
    assert made.returncode == 0, made.stderr
    image = older / "images" / "fabric" / "test" / "missing" / "000.png"
    made = call_command(
        *("predict", "--workdir", older / "run", "--input", image),
        *("--output", older / "out", "--category=fabric", "--maps=npy"),
        *("--encoder", older / "encoder"),
    )
    assert made.returncode == 0, made.stderr
    assert "1 defective, 0 good" in made.stdout
    (anomaly_map,) = (older / "out" / "maps").glob("*.npy")
    assert np.load(anomaly_map).shape == (48, 48)
