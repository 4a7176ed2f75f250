"""A whole run: train, checkpoint, continue, evaluate."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image, ImageOps
from run_helpers import assert_bitwise_equal, changed, final_state, rewritten, shallow

from harmoniad_jax.checkpoints.store import Checkpoints
from harmoniad_jax.config import Config
from harmoniad_jax.errors import UserError
from harmoniad_jax.evaluation.evaluate import evaluate_run
from harmoniad_jax.metrics import METRIC_NAMES
from harmoniad_jax.run.run import prepare_run
from harmoniad_jax.training.loop import train_and_evaluate

ROOT = Path(__file__).parents[2]


def log_of(workdir: Path) -> list[dict]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_config):
    """An uninterrupted run: its config, its folder and its results."""
    workdir = tmp_path_factory.mktemp("finished")
    return tiny_config, workdir, train_and_evaluate(tiny_config, workdir)


def test_a_run_leaves_what_the_readme_says(finished):
    config, workdir, results = finished
    left = {path.name for path in workdir.iterdir()}
    assert left == {
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "results.json",
        "tensorboard",
    }
    stored = json.loads((workdir / "results.json").read_text())
    assert stored == results
    assert set(stored["per_category"]) == {"fabric", "tablet", "washer"}
    assert set(stored["mean"]) == {*METRIC_NAMES, "num_images"}
    assert all(0 <= stored["mean"][name] <= 1 for name in METRIC_NAMES)
    assert stored["step"] == config.train.num_steps
    assert list((workdir / "tensorboard").iterdir())
    log = log_of(workdir)
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(list(line.values())).all() for line in log)


def evaluated_with(config: Config, workdir: Path, folder: Path, **values):
    """Results of a copy of a finished run, evaluated with other settings."""
    shutil.copytree(workdir, folder)
    return train_and_evaluate(changed(config, "evaluation", **values), folder)


def test_a_report_shows_every_category(finished, tmp_path):
    config, workdir, results = finished
    again = evaluated_with(config, workdir, tmp_path / "run", report=True)
    assert again["per_category"] == results["per_category"]
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert all(category in page for category in results["per_category"])
    images = re.findall(r'src="(images/[^"]+)"', page)
    assert images
    assert all((tmp_path / "run" / "report" / name).is_file() for name in images)


def test_streamed_figures_are_within_their_bounds(finished, tmp_path):
    config, workdir, exact = finished
    streamed = evaluated_with(config, workdir, tmp_path / "run", streaming=True)
    for category, figures in exact["per_category"].items():
        bounds = streamed["error_bounds"][category]
        for name in METRIC_NAMES:
            found = streamed["per_category"][category][name]
            assert abs(found - figures[name]) <= bounds[name] + 1e-12, (category, name)
            assert bounds[name] < 0.01
    for got, whole in zip(
        streamed["defect_sizes"]["all"], exact["defect_sizes"]["all"], strict=True
    ):
        assert got["num_defects"] == whole["num_defects"]
        assert got["overlap"] == pytest.approx(whole["overlap"], abs=0.03)


def test_defects_of_all_sizes_are_counted_and_their_mean_is_aupro(finished):
    _, workdir, results = finished
    sizes = results["defect_sizes"]
    assert json.loads((workdir / "results.json").read_text())["defect_sizes"] == sizes
    for category, figures in results["per_category"].items():
        quartiles = sizes["per_category"][category]
        count = sum(quartile["num_defects"] for quartile in quartiles)
        overlap = sum(
            quartile["num_defects"] * quartile["overlap"]
            for quartile in quartiles
            if quartile["num_defects"]
        )
        assert overlap / count == pytest.approx(figures["pixel_aupro"])
    # Nothing was held out, so there is no threshold that could find them.
    assert all(quartile["recall"] is None for quartile in sizes["all"])


def test_training_lowers_the_loss(tiny_config, tmp_path):
    config = changed(shallow(tiny_config), "train", num_steps=25)
    config = changed(config, "sharding", data=1)
    config = changed(config, "data", categories=("fabric",))
    train_and_evaluate(config, tmp_path)
    losses = [line["loss"] for line in log_of(tmp_path)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_evaluating_again_gives_the_same(finished):
    _, workdir, _ = finished
    before = (workdir / "results.json").read_bytes()
    (workdir / "results.json").unlink()
    evaluate_run(workdir)
    assert (workdir / "results.json").read_bytes() == before


def test_a_finished_run_is_not_trained_again(finished):
    config, workdir, results = finished
    log = (workdir / "metrics.jsonl").read_text()
    assert train_and_evaluate(config, workdir) == results
    assert (workdir / "metrics.jsonl").read_text() == log


def test_an_interrupted_run_ends_as_an_undisturbed_one(finished, tmp_path, monkeypatch):
    """Stopped after a step without a checkpoint, in the middle of an epoch."""
    config, workdir, results = finished
    saved = Checkpoints.save

    def save_and_stop(self, state, *arguments):
        saved(self, state, *arguments)
        if int(state.step) == 4:
            self.wait()
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train_and_evaluate(config, tmp_path)
    monkeypatch.undo()
    # What a killed run logged beyond its checkpoint, and a line it did not finish.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 1.0}\n{"step": 6, "lo')
    assert train_and_evaluate(config, tmp_path) == results
    assert_bitwise_equal(final_state(config, tmp_path), final_state(config, workdir))
    assert [line["step"] for line in log_of(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_the_encoder_is_in_no_checkpoint_and_stays_as_it_was(finished):
    config, workdir, _ = finished
    run = prepare_run(config)
    state = final_state(config, workdir)
    names = {
        part
        for path, _ in jax.tree_util.tree_leaves_with_path(state)
        for part in re.findall(r"\w+", jax.tree_util.keystr(path))
    }
    assert "vision_model" not in names
    with Checkpoints(workdir, read_only=True) as checkpoints:
        assert checkpoints.read_identity().weight_hash == run.encoder.weight_hash


@pytest.mark.parametrize(
    ("section", "values", "named"),
    [
        ("model", {"dropout": 0.3}, "config.model.dropout is 0.3 but was 0.2"),
        ("train", {"num_steps": 9}, "config.train.num_steps is 9 but was 6"),
        ("encoder", {"dtype": "bfloat16"}, "but was 'float32'"),
        ("data", {"categories": ("fabric",)}, "training images"),
    ],
)
def test_another_config_is_refused(finished, section, values, named):
    config, workdir, _ = finished
    with pytest.raises(UserError, match=re.escape(named)) as error:
        train_and_evaluate(changed(config, section, **values), workdir)
    assert "new --workdir" in str(error.value)


def test_another_encoder_is_refused(finished):
    config, workdir, _ = finished
    untrained = dataclasses.replace(config.encoder.untrained, seed=1)
    with pytest.raises(UserError, match="encoder"):
        train_and_evaluate(changed(config, "encoder", untrained=untrained), workdir)


def test_settings_that_do_not_touch_training_may_change(finished):
    config, workdir, results = finished
    other = changed(config, "evaluation", smoothing_sigma=0.0)
    assert train_and_evaluate(other, workdir)["mean"] != results["mean"]
    # And back again: the last call decides what is in the folder.
    assert train_and_evaluate(config, workdir) == results


def test_evaluation_follows_the_settings_of_the_last_call(finished, tmp_path):
    config, workdir, _ = finished
    shutil.copytree(workdir, tmp_path / "copy")
    other = changed(config, "evaluation", smoothing_sigma=0.0)
    results = train_and_evaluate(other, tmp_path / "copy")
    assert evaluate_run(tmp_path / "copy") == results


@pytest.mark.slow
def test_weighting_groups_otherwise_is_as_if_it_had_been_so_from_the_start(
    finished, tmp_path
):
    """Thresholds too are those of the new scores."""
    config, workdir, _ = finished
    other = changed(config, "evaluation", map_decay=1.0, score_decay=0.0)
    shutil.copytree(workdir, tmp_path / "copy")
    afterwards = train_and_evaluate(other, tmp_path / "copy")
    assert afterwards == train_and_evaluate(other, tmp_path / "fresh")


def test_a_finished_run_is_evaluated_though_its_training_images_changed(
    finished, products, tmp_path
):
    _, workdir, results = finished
    shutil.copytree(products, tmp_path / "photos")
    (tmp_path / "photos" / "tablet" / "train" / "good" / "000.png").unlink()
    shutil.copytree(workdir, tmp_path / "copy")
    again = evaluate_run(tmp_path / "copy", root=str(tmp_path / "photos"))
    assert again["per_category"] == results["per_category"]


def test_two_processes_cannot_train_in_one_folder(finished):
    config, workdir, _ = finished
    with Checkpoints(workdir):
        with pytest.raises(UserError, match="another process"):
            train_and_evaluate(config, workdir)
        evaluate_run(workdir)


def test_a_checkpoint_of_another_version_says_so(finished, tmp_path):
    config, workdir, _ = finished
    shutil.copytree(workdir, tmp_path / "copy")
    for path in (tmp_path / "copy" / "checkpoints").glob("[0-9]*"):
        with rewritten(path, "identity") as identity:
            model = identity["config"]["model"]
            model["halving"] = model.pop("decimate")
    with pytest.raises(UserError, match="another version"):
        train_and_evaluate(config, tmp_path / "copy")


def test_good_images_alone_are_enough_to_train(products, tiny_config, tmp_path):
    for path in (products / "tablet" / "train" / "good").iterdir():
        target = tmp_path / "photos" / "tablet" / "train" / "good" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    config = changed(shallow(tiny_config), "data", root=str(tmp_path / "photos"))
    config = changed(config, "model", variant="plain")
    results = train_and_evaluate(config, tmp_path / "run")
    assert results["per_category"] == {}
    assert (tmp_path / "run" / "results.json").is_file()


def test_a_lost_mask_is_reported(finished, products, tmp_path, capsys):
    _, workdir, _ = finished
    root = tmp_path / "photos"
    shutil.copytree(workdir, tmp_path / "run")
    shutil.copytree(products, root)
    (root / "tablet" / "ground_truth" / "spot" / "000_mask.png").unlink()
    results = evaluate_run(tmp_path / "run", root=str(root))
    assert results["lost_masks"] == 1
    assert "1 defective image has no mask" in capsys.readouterr().out


@pytest.mark.parametrize("streaming", [False, True])
def test_masks_of_the_background_are_noticed(
    products, tiny_config, tmp_path, capsys, streaming
):
    """Once in training and once in evaluation, with the product and the likely cause."""
    root = tmp_path / "photos"
    shutil.copytree(products, root)
    for path in (root / "tablet" / "ground_truth").rglob("*.png"):
        ImageOps.invert(Image.open(path).convert("L")).save(path)
    config = changed(shallow(tiny_config), "data", root=str(root), categories=("tablet",))
    config = changed(config, "sharding", data=1)
    config = changed(config, "train", num_steps=1)
    config = changed(config, "evaluation", streaming=streaming)
    results = train_and_evaluate(config, tmp_path / "run")
    (share,) = results["covering_masks"].values()
    assert 0.5 < share < 1.0
    for again in (False, True):
        if again:
            evaluate_run(tmp_path / "run")
        output = capsys.readouterr().out
        assert output.count(f"the masks of tablet mark {share:.0%} of an image") == 1
        assert output.count("inverted") == output.count("white background") == 1
