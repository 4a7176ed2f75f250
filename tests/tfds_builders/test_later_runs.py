"""Runs on the data sets with validation images, several masks, views and domains."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import tifffile
from later_miniatures import real_iad
from PIL import Image
from run_helpers import call_command, changed, shallow
from test_later_builders import DRAWN, write

from harmoniad_jax.data.mask_files import read_mask
from harmoniad_jax.data.masks import resize_mask
from harmoniad_jax.data.prepared import prepared_dataset
from harmoniad_jax.errors import UserError
from harmoniad_jax.evaluation.evaluate import evaluate_run
from harmoniad_jax.evaluation.protocols import kinds_of, samples_of
from harmoniad_jax.inference.predictor import Predictor
from harmoniad_jax.inference.restore import open_trained
from harmoniad_jax.inference.submission import submit
from harmoniad_jax.report.notes import notes_on, notes_on_protocols
from harmoniad_jax.report.pictures import resize
from harmoniad_jax.run.datasets import split_records
from harmoniad_jax.run.run import prepare_run
from harmoniad_jax.training.loop import train_and_evaluate

FOLDERS = {"anomaly_images": "tiff", "anomaly_images_thresholded": "png"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder that holds `manual` and, once a run has prepared them, the data sets."""
    folder = tmp_path_factory.mktemp("later")
    for name in DRAWN:
        write(name, "folder", folder / "manual")
    return folder


@pytest.fixture(scope="module")
def config(tiny_config, data):
    """All five in one model; a third of the training images is held out where need be."""
    config = changed(
        shallow(tiny_config),
        "data",
        sources=tuple(DRAWN),
        manual_dir=str(data / "manual"),
        data_dir=str(data),
    )
    config = changed(config, "model", variant="plain", plain_depth=1)
    config = changed(config, "train", num_steps=2, checkpoint_every_steps=2)
    config = changed(config, "evaluation", fpr_limit=0.05)
    return changed(config, "calibration", holdout=0.33)


@pytest.fixture(scope="module")
def results(config, data):
    """What a run on all five measured; its folder is `run`."""
    return train_and_evaluate(config, data / "run")


def test_a_joined_run_measures_each_as_its_publisher_does(results, data, config):
    assert json.loads((data / "run/results.json").read_text()) == results
    assert list(results["per_dataset"]) == sorted(DRAWN)
    assert results["fpr_limit"] == 0.05
    kinds = results["kinds"]["per_category"]
    assert sorted(kinds) == ["mvtec_loco/juice_bottle", "mvtec_loco/pushpins"]
    for found in kinds.values():
        assert list(found) == ["logical_anomalies", "structural_anomalies"]
        assert all(0 <= metrics["au_spro"] <= 1 for metrics in found.values())
        assert [metrics["num_images"] for metrics in found.values()] == [3, 3]
    means = results["kinds"]["mean"]
    both = [
        means[kind]["au_spro"] for kind in ("logical_anomalies", "structural_anomalies")
    ]
    assert means["all kinds"]["au_spro"] == pytest.approx(np.mean(both))
    samples = results["samples"]["per_category"]
    assert sorted(samples) == ["real_iad/audiojack", "real_iad/toy_brick"]
    assert {metrics["num_samples"] for metrics in samples.values()} == {3}
    # Of RobustAD those under the conditions of training alone.
    assert results["per_category"]["robust_ad/PCB"]["num_images"] == 4
    assert results["per_category"]["mvtec_ad_2/can"]["num_images"] == 5


def test_the_report_says_what_single_data_sets_are_measured_by(results):
    samples, kinds, pixels = notes_on_protocols(results)
    assert samples.startswith("6 products, each judged by its highest view: AUROC ")
    for kind in ("logical anomalies", "structural anomalies", "all kinds"):
        assert f"{kind}: I-AUROC " in kinds
    assert f"{100 * results['pixel_decisions']['mean']['f1']:.1f}." in pixels
    (limit,) = [note for note in notes_on(results) if "up to 5 %" in note]
    assert limit.startswith("AUPRO ")
    assert list(notes_on_protocols({"per_category": {}})) == []


def test_thresholds_are_set_on_validation_images_where_there_are_any(results, config):
    own = results["decisions"]["per_category"]
    assert own["mvtec_ad_2/can"]["held_out"] == own["mvtec_loco/pushpins"]["held_out"] == 3
    dataset = prepare_run(config).dataset
    paths = [r.image.path for r in dataset.held_out if r.category == "mvtec_ad_2/can"]
    assert paths == [f"can/validation/good/{i:03}_regular.png" for i in range(3)]
    kept = [r.category for r in dataset.train]
    assert kept.count("mvtec_ad_2/can") == kept.count("mvtec_loco/pushpins") == 6
    assert kept.count("mpdd/tubes") == 4


def test_all_views_of_a_product_are_held_out_or_none(results, config):
    dataset = prepare_run(config).dataset
    held_out, train = (
        {r.sample for r in records if r.category == "real_iad/audiojack"}
        for records in (dataset.held_out, dataset.train)
    )
    assert len(held_out) == 1
    assert held_out | train == {f"OK/S{number:04}" for number in range(1, 5)}
    assert not held_out & train


def test_pixels_are_decided_on_at_the_level_of_good_images(results):
    pixels = results["pixel_decisions"]
    assert pixels["per_category"].keys() == results["per_category"].keys()
    for metrics in pixels["per_category"].values():
        precision, recall, f1 = (metrics[k] for k in ("precision", "recall", "f1"))
        if precision and recall:
            assert f1 == pytest.approx(2 / (1 / precision + 1 / recall))
    # PiledBags has no masks.
    assert pixels["per_category"]["robust_ad/PiledBags"]["recall"] is None


def test_another_domain_is_evaluated_by_its_split(results, data, config):
    """One that all sources of a run have; here there is none but "test"."""
    with pytest.raises(UserError) as error:
        evaluate_run(data / "run", test_split="test1")
    for part in ("'test1'", "mpdd", "can be tested on test."):
        assert part in str(error.value)
    folder = data / "robust_ad" / "1.0.0"
    domain = prepared_dataset(folder, "test1")
    assert {r.image.path.split("/")[1] for r in domain.test} == {
        "pcb_data_dir_test1",
        "piled_bags_data_dir_test1",
    }
    assert domain.train == prepared_dataset(folder).train
    for split in ("validation", "train", "test7"):
        with pytest.raises(UserError, match="can be tested on test, test1, test2"):
            prepared_dataset(folder, split)


def test_results_of_other_domains_lie_beside_those_of_the_first(config, data, tmp_path):
    """A run on RobustAD: the conditions of training, and two others."""
    config = changed(config, "data", sources=("robust_ad",))
    first = train_and_evaluate(config, tmp_path / "run")
    other = evaluate_run(tmp_path / "run", test_split="test2")
    for name, results in (("results", first), ("results-test2", other)):
        assert json.loads((tmp_path / "run" / f"{name}.json").read_text()) == results
    assert (first["test_split"], other["test_split"]) == ("test", "test2")
    scores = [results["per_category"]["PCB"]["pixel_auroc"] for results in (first, other)]
    assert scores[0] != scores[1]
    assert (
        first["decisions"]["per_category"]["PCB"]["threshold"]
        == (other["decisions"]["per_category"]["PCB"]["threshold"])
    )


def test_in_a_stream_the_same_is_decided(results, data, config, tmp_path):
    """But for sPRO, which needs all maps of a category."""
    shutil.copytree(data / "run", tmp_path / "run")
    config = changed(config, "evaluation", streaming=True)
    streamed = train_and_evaluate(config, tmp_path / "run")
    for name in ("pixel_decisions", "decisions", "samples"):
        assert streamed[name] == results[name]
    assert streamed["kinds"] == {}
    for category, figures in results["per_category"].items():
        bound = streamed["error_bounds"][category]["pixel_aupro"]
        found = streamed["per_category"][category]["pixel_aupro"]
        if figures["pixel_aupro"] is not None:
            assert abs(found - figures["pixel_aupro"]) <= bound + 1e-12


# The figures themselves.


def test_the_score_of_a_product_is_that_of_its_worst_view(results, data):
    test = prepared_dataset(data / "real_iad" / "1.0.0").test
    records = [record for record in test if record.category == "audiojack"]
    # By sample: a good one below all others but for one of its views.
    scores = {"OK/S0009": [0.1, 0.2, 0.6], "NG/BX/S0001": [0.1, 0.7, 0.1]}
    scores["NG/HS/S0001"] = [0.3, 0.5]
    taken = {name: iter(values) for name, values in scores.items()}
    values = np.float32([next(taken[record.sample]) for record in records])
    metrics = samples_of(records, values)
    assert metrics["num_samples"] == 3
    assert metrics["sample_auroc"] == 0.5  # 0.7 is above 0.6, 0.5 is not
    alone = [dataclasses.replace(record, sample="") for record in records]
    assert samples_of(alone, values) == {}
    drawn = {d.path: d.defect for d in real_iad()[0].expected}
    assert [record.defect for record in test] == [drawn[r.image.path] for r in test]


def test_a_map_that_marks_all_that_is_needed_has_a_perfect_spro(results, data, config):
    test = prepared_dataset(data / "mvtec_loco" / "1.0.0").test
    records = [record for record in test if record.category == "pushpins"]
    settings = changed(config, "evaluation", map_side=44).evaluation
    maps = np.zeros((len(records), 44, 44), np.float32)
    for row, record in enumerate(records):
        if record.mask is not None:
            maps[row] = resize_mask(read_mask(record.mask), (44, 44))[0]
    scores = maps.max(axis=(1, 2))
    kinds = kinds_of(records, maps, scores, settings)
    assert kinds["logical_anomalies"]["au_spro"] == 1.0
    assert kinds["logical_anomalies"]["image_auroc"] == 1.0
    # The mask of the third is lost: its score is that of a good image.
    assert kinds["structural_anomalies"]["au_spro"] == 1.0
    assert kinds["structural_anomalies"]["image_auroc"] == pytest.approx((2 + 0.5) / 3)
    assert kinds_of(records, -maps, -scores, settings)["logical_anomalies"]["au_spro"] < 0.2


# Private test sets.


def test_private_images_are_predicted_for_their_server(results, data, config, tmp_path):
    """Of a joined run, too; the maps are those of `Predictor`, in the image's size."""
    output = tmp_path / "submission"
    output.mkdir()
    made = call_command("submit", "--workdir", data / "run", "--output", output)
    assert made.returncode == 0, made.stderr
    assert f"8 images in {output}" in made.stderr
    drawn = [d for d in DRAWN["mvtec_ad_2"]().expected if d.defect == "unlabelled"]
    files = {str(f.relative_to(output)) for f in output.rglob("*.*")}
    assert files == {
        f"{folder}/{d.path.removesuffix('png')}{suffix}"
        for d in drawn
        for folder, suffix in FOLDERS.items()
    }
    assert [path.name for path in tmp_path.iterdir()] == ["submission"]
    records = split_records(config.data, "mvtec_ad_2", "test_private")
    trained = open_trained(data / "run")
    maps = Predictor(trained)(records, "private").anomaly_maps
    for record, anomaly_map in zip(records, maps, strict=True):
        size = (20, 14) if "vial" in record.category else (16, 24)
        wanted = resize(anomaly_map, size)
        name = record.image.path.removesuffix("png")
        found = tifffile.imread(output / f"anomaly_images/{name}tiff")
        assert (found.dtype, found.shape) == (np.float16, size)
        np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-3)
        level = trained.calibration.of(record.category).pixel_threshold(0.001)
        marked = np.asarray(Image.open(output / f"anomaly_images_thresholded/{name}png"))
        np.testing.assert_array_equal(marked, (wanted > level) * np.uint8(255))


def test_a_submission_replaces_nothing(results, data, tmp_path):
    (tmp_path / "kept.txt").write_text("kept")
    for output in (tmp_path, tmp_path / "kept.txt"):
        with pytest.raises(UserError, match="name an empty folder"):
            submit(data / "run", output)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_a_run_on_other_images_has_nothing_to_submit(trained_run, tmp_path):
    with pytest.raises(UserError, match="was trained on folder; the server takes"):
        submit(trained_run.workdir, tmp_path / "submission")
    assert not list(tmp_path.iterdir())


def test_images_without_labels_are_not_tested_on(results, config):
    """Which is said before anything is learnt."""
    values = {"sources": ("mvtec_ad_2",), "test_split": "test_private"}
    with pytest.raises(UserError, match="4 images have no label.*harmoniad_jax.submit"):
        prepare_run(changed(config, "data", **values))
