"""The smallest settings, and names that are not text, from training to the table."""

import os
import shutil

import pytest
from run_helpers import changed, shallow

import harmoniad_jax
from harmoniad_jax import terminal
from harmoniad_jax.evaluation.evaluate import evaluate_run
from harmoniad_jax.inference.predict import predict_files
from harmoniad_jax.report.summary import read_run, write_summary
from harmoniad_jax.training.loop import train_and_evaluate


@pytest.fixture
def config(tiny_config, tmp_path):
    config = changed(shallow(tiny_config), "cache", folder=str(tmp_path / "features"))
    config = changed(config, "sharding", data=1)
    return changed(config, "calibration", holdout=0.1)


@pytest.mark.parametrize(("cached", "balanced"), [(True, False), (False, True)])
def test_batches_of_one_image(config, tmp_path, cached, balanced):
    config = changed(config, "train", batch_size=1, num_steps=2)
    config = changed(config, "evaluation", batch_size=1)
    config = changed(config, "cache", enabled=cached)
    config = changed(config, "data", class_balanced=balanced)
    results = train_and_evaluate(config, tmp_path / "run")
    assert results["step"] == 2
    # And it goes on from there.
    assert train_and_evaluate(config, tmp_path / "run") == results


@pytest.mark.parametrize("images", [1, 2])
def test_products_of_one_or_two_images(config, products, tmp_path, images):
    """With one, nothing can be held out, so there is no threshold and no verdict."""
    for product in ("fabric", "tablet"):
        folder = tmp_path / "few" / product / "train" / "good"
        folder.mkdir(parents=True)
        for image in sorted((products / product / "train/good").iterdir())[:images]:
            shutil.copy(image, folder)
    shutil.copytree(products / "tablet/test", tmp_path / "few/tablet/test")
    config = changed(config, "data", root=str(tmp_path / "few"))
    config = changed(config, "train", batch_size=1, num_steps=1)
    results = train_and_evaluate(config, tmp_path / "run")
    assert set(results["per_category"]) == {"tablet"}
    assert bool(results["decisions"]) == (images == 2)
    model = harmoniad_jax.load(tmp_path / "run")
    (verdict,) = model.predict([next((tmp_path / "few/fabric/train/good").iterdir())])
    assert (verdict.is_defective is None) == (images == 1)


def test_names_that_are_not_text(config, products, tmp_path):
    """Archives made on Windows leave Latin-1 bytes in the names of folders and files."""
    terminal.configure_output()
    root = tmp_path / "latin"
    product = os.fsdecode(b"k\xfchlk\xf6rper")
    shutil.copytree(products / "tablet", root / product)
    shutil.copytree(products / "fabric", root / "fabric")
    for part in ("train/good", "test/good"):
        image = min((root / product / part).iterdir())
        image.rename(image.with_name(os.fsdecode(b"pr\xfcf.png")))
    config = changed(config, "data", root=str(root))
    config = changed(config, "train", num_steps=1)
    config = changed(config, "evaluation", report=True)
    workdir = tmp_path / "run"
    results = train_and_evaluate(config, workdir)
    assert set(results["per_category"]) == {"fabric", product}
    assert set(evaluate_run(workdir)["per_category"]) == {"fabric", product}
    assert "k\\udcfchlk\\udcf6rper" in (workdir / "report/index.html").read_text("utf-8")
    assert predict_files(workdir, f"{root}/{product}/test", tmp_path / "out") == 0
    assert "pr\\udcfcf.png" in (tmp_path / "out/predictions.csv").read_text("utf-8")
    assert str(workdir) in write_summary([read_run(workdir)], "csv")
