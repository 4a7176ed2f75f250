"""Evaluating a run whose images moved, or are of other products."""

import os
import shutil

import pytest
from run_helpers import call_command, changed, rewritten

from harmoniad_jax.checkpoints.store import Checkpoints
from harmoniad_jax.errors import UserError
from harmoniad_jax.evaluation.evaluate import evaluate
from harmoniad_jax.inference.restore import open_trained
from harmoniad_jax.run.checks import data_problems

ALL = ("fabric", "tablet", "washer")


@pytest.fixture
def root(products, tmp_path):
    """A function: a folder with some of the trained products, and new ones."""

    def make(*names, new=()):
        for name in names:
            (tmp_path / "root" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "root" / name).symlink_to(products / name)
        for name in new:
            (tmp_path / "root").mkdir(exist_ok=True)
            (tmp_path / "root" / name).symlink_to(products / "fabric")
        return {"data.root": str(tmp_path / "root")}

    return make


def categories_of(run):
    data = run.dataset
    return {one.category for one in (*data.train, *data.held_out, *data.test)}


def test_products_that_were_never_trained_are_left_out(trained_run, root, listen):
    heard = listen("WARNING")
    opened = open_trained(trained_run.workdir, root(*ALL, new=["bolt"]))
    assert categories_of(opened.run) == set(ALL)
    assert opened.missing == ()
    (warning,) = heard()
    assert warning.startswith("never trained, so left out: bolt. ")
    assert warning.endswith("was trained on fabric, tablet, washer")


def test_the_rest_of_a_run_is_evaluated_and_what_is_missing_named(
    trained_run, root, listen, tmp_path, capsys
):
    heard = listen("WARNING")
    opened = open_trained(trained_run.workdir, root("tablet", new=["bolt"]))
    assert categories_of(opened.run) == {"tablet"}
    assert opened.missing == ("fabric", "washer")
    assert heard()[-1] == "trained, but no images there: fabric, washer"
    results = evaluate(opened, tmp_path)
    assert results["missing"] == ["fabric", "washer"]
    whole = trained_run.results
    assert whole["missing"] == []
    assert results["per_category"]["tablet"] == whole["per_category"]["tablet"]
    assert "without test images here: fabric, washer." in capsys.readouterr().out


def test_new_products_alone_are_refused(trained_run, root):
    expected = "the images are of bolt, nut, but .* was trained on fabric, tablet, washer"
    with pytest.raises(UserError, match=expected):
        open_trained(trained_run.workdir, root(new=["bolt", "nut"]))


@pytest.mark.parametrize("calibrated", [True, False])
def test_a_run_that_did_not_keep_the_names_of_its_products(
    trained_run, root, listen, tmp_path, calibrated
):
    """Its calibration knows them; without one a warning says what is not known."""
    workdir = tmp_path / "older"
    shutil.copytree(trained_run.workdir, workdir)
    newest = max((workdir / "checkpoints").iterdir(), key=lambda path: path.name)
    with rewritten(newest, "identity") as identity:
        del identity["categories"]
    if not calibrated:
        with rewritten(newest, "calibration") as calibration:
            calibration.clear()
    heard = listen("WARNING")
    opened = open_trained(workdir, root("tablet", new=["bolt"]))
    if calibrated:
        assert categories_of(opened.run) == {"tablet"}
    else:
        assert categories_of(opened.run) == {"tablet", "bolt"}
        assert "did not keep the names of its products" in heard()[0]


@pytest.mark.parametrize("content", ["absent", "empty"])
def test_evaluate_says_which_of_its_flags_helps(trained_run, tmp_path, content):
    """The settings of training, such as --config.data.root, are none of its flags."""
    root = tmp_path / "moved"
    if content == "empty":
        root.mkdir()
    done = call_command("evaluate", "--workdir", trained_run.workdir, "--root", root)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if "error: " in line]
    assert f"data.root='{root}' is" in line
    assert line.endswith("If they are elsewhere: --root=FOLDER.")


def test_prepared_data_sets_that_moved(tiny_config, tmp_path):
    config = prepared(tiny_config, tmp_path)
    (trains,), (evaluates,) = data_problems(config), data_problems(config, False)
    assert trains.endswith("--config.data.manual_dir=DIR")
    assert f"btad is not there in {tmp_path}" in evaluates
    assert evaluates.endswith("If it is elsewhere: --config.data.data_dir=DIR")


def test_a_place_of_another_kind_of_images(trained_run, tiny_config, tmp_path):
    with pytest.raises(UserError, match="give --root=FOLDER"):
        open_trained(trained_run.workdir, {"data.data_dir": "there"})
    workdir = tmp_path / "run"
    shutil.copytree(trained_run.workdir, workdir)
    newest = max((workdir / "checkpoints").iterdir(), key=lambda path: path.name)
    with rewritten(newest, "identity") as identity:
        identity["config"]["data"]["sources"] = ["btad"]
    with pytest.raises(UserError, match="trained on btad; give --data_dir=DIR"):
        open_trained(workdir, {"data.root": "there"})


def prepared(config, folder):
    return changed(config, "data", sources=("btad",), data_dir=str(folder), root="")


def test_a_workdir_that_is_not_text(tmp_path):
    workdir = tmp_path / os.fsdecode(b"w\xfcrk")
    with pytest.raises(UserError, match="bytes that are not UTF-8"):
        Checkpoints(workdir)
    assert not workdir.exists()
