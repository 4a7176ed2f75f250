"""Ablations: variants and seeds trained, compared, and taken up where they ended."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from run_helpers import overrides, shallow
from scipy import stats

from configs import demo
from harmoniad_jax.config import parse_config, with_settings
from harmoniad_jax.errors import UserError
from harmoniad_jax.locks import lock
from harmoniad_jax.metrics import METRIC_NAMES
from harmoniad_jax.run.run import describe, resolve_config
from harmoniad_jax.studies.ablation import Ablation
from harmoniad_jax.studies.ablation_tables import leave_one_out, over_seeds, variants_table
from harmoniad_jax.studies.travelling import paired_interval, travels, travels_table
from harmoniad_jax.studies.variants import (
    REFERENCE,
    VARIANTS,
    choose,
    tap_variants,
    trained_as,
)
from harmoniad_jax.training.loop import train_and_evaluate

ROOT = Path(__file__).parents[2]


def command(config, workdir, *arguments):
    """What to give to subprocess."""
    flags = os.environ["XLA_FLAGS"].split()
    one_device = " ".join(flag for flag in flags if "device_count" not in flag)
    program = [sys.executable, "-m", "harmoniad_jax.ablate", "--config=configs/demo.py"]
    return {
        "args": [*program, f"--workdir={workdir}", *overrides(config), *arguments],
        "cwd": ROOT,
        "env": {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": one_device},
        "text": True,
    }


def ablate(config, workdir, *arguments):
    return subprocess.run(**command(config, workdir, *arguments), capture_output=True)


def kept(workdir):
    return {path.parent.name for path in workdir.glob("*/kept.json")}


def run_of(**figures):
    """What is kept of a run: every figure 0.5 but these, on categories a, b and c."""
    mean = dict.fromkeys(METRIC_NAMES, 0.5) | figures
    per_category = {name: dict(mean) for name in "abc"}
    return {
        "mean": mean,
        "per_category": per_category,
        "parameters": 1234,
        "flops": 2e9,
        "seconds": 90.0,
    }


@pytest.mark.parametrize("encoder", ["untrained-2", "untrained-12"])
def test_every_variant_is_one_that_can_be_trained(encoder):
    depth = int(encoder.partition("-")[2])
    base = parse_config(demo.get_config())
    base = with_settings(base, {"encoder.untrained.depth": depth})
    if depth == 2:  # too few blocks for three groups
        names = [name for name in VARIANTS if name != "groups-3"]
    else:
        names = [*VARIANTS, *tap_variants(describe(base))]
    for name in names:
        settings = (VARIANTS | tap_variants(describe(base)))[name]
        resolve_config(with_settings(base, settings), with_data=False)


def test_the_reference_is_always_made_and_first():
    assert list(choose(["plain"], VARIANTS)) == [REFERENCE, "plain"]
    assert list(choose([], VARIANTS)) == list(VARIANTS)
    with pytest.raises(UserError, match=r"'plane' is unknown.*Did you mean 'plain'"):
        choose(["plane"], VARIANTS)


def test_variants_of_the_evaluation_need_no_training():
    sources = {name: trained_as(name, VARIANTS) for name in VARIANTS}
    assert {name: source for name, source in sources.items() if source} == {
        "groups-equal": "harmoniad",
        "shallow-group-only": "harmoniad",
        "plain-groups-equal": "plain",
        "with-branch-maps": "harmoniad",
        "score-is-maximum": "harmoniad",
        "background-kept": "harmoniad",
        "plain-background-kept": "plain",
        "earlier-scoring": "harmoniad",
        "smoothing-4": "harmoniad",
        "map-decay-0.1": "harmoniad",
        "map-decay-0.5": "harmoniad",
        "score-of-fewer-cells": "harmoniad",
    }
    # What they evaluate is made before them.
    assert list(choose(["plain-groups-equal"], VARIANTS)) == [
        *("harmoniad", "plain", "plain-groups-equal")
    ]


def test_mean_and_deviation_over_seeds():
    assert over_seeds([1.0]) == (1.0, None)
    mean, deviation = over_seeds([1.0, 2.0, 3.0])
    assert (mean, deviation) == (2.0, 1.0)


def test_the_table_compares_seed_by_seed():
    results = {
        "harmoniad": {0: run_of(pixel_ap=0.40), 1: run_of(pixel_ap=0.60)},
        # Better than the reference of the same seed, though below its mean.
        "plain": {0: run_of(pixel_ap=0.45)},
    }
    reference, plain = variants_table(results, "harmoniad").splitlines()[2:]
    assert "50.0 ± 14.1 |" in reference and " 1,234 |" in reference
    assert "45.0 (+5.0)" in plain and plain.rstrip(" |").endswith("1.5")


def test_a_choice_is_looked_at_where_it_was_not_made():
    """What is best on a and b alone is chosen for c, and what it costs there is seen."""
    results = {"harmoniad": {0: run_of()}, "fits-a-and-b": {0: run_of()}}
    figures = results["fits-a-and-b"][0]["per_category"]
    figures["a"]["pixel_ap"] = figures["b"]["pixel_ap"] = 0.7
    figures["c"]["pixel_ap"] = 0.2
    rows = leave_one_out(results, "harmoniad")
    assert [row["left_out"] for row in rows] == ["a", "b", "c"]
    assert [row["chosen"] for row in rows] == ["harmoniad", "harmoniad", "fits-a-and-b"]
    assert rows[2]["gain"]["pixel_ap"] == pytest.approx(-0.3)
    assert rows[0]["gain"]["pixel_ap"] == 0


def test_a_choice_is_made_over_the_seeds_of_both():
    """A lucky seed of a variant is compared with that seed of the reference."""
    results = {
        "harmoniad": {0: run_of(pixel_ap=0.2), 1: run_of(pixel_ap=0.9)},
        "lucky": {1: run_of(pixel_ap=0.8)},
    }
    assert {row["chosen"] for row in leave_one_out(results, "harmoniad")} == {"harmoniad"}


def test_one_category_leaves_nothing_to_choose_on():
    run = run_of()
    run["per_category"] = {"a": run["per_category"]["a"]}
    assert leave_one_out({"harmoniad": {0: run}}, "harmoniad") == []


def test_what_fits_one_product_does_not_travel():
    """Chosen on c's gain, it would lose on a and b."""
    results = {"harmoniad": {0: run_of()}, "fits-c": {0: run_of(pixel_ap=0.48)}}
    results["fits-c"][0]["per_category"]["c"]["pixel_ap"] = 0.9
    row = travels(results, "harmoniad")["fits-c"]
    # Without c nobody would choose it; without a or b, for the sake of c, they would.
    assert (row["gaining"], row["chosen"], row["products"]) == (1, 2, 3)
    assert row["left_out"] == pytest.approx(2 * (-0.02 / 4) / 3)
    mean, low, high = row["metrics"]["pixel_ap"]
    assert mean == pytest.approx((0.4 - 0.02 - 0.02) / 3) and low < 0 < high


def test_what_travels_leads_and_is_sorted():
    results = {
        "harmoniad": {seed: run_of() for seed in range(2)},
        "worse": {seed: run_of(pixel_ap=0.4) for seed in range(2)},
        "better": {seed: run_of(pixel_ap=0.6) for seed in range(2)},
    }
    rows = travels_table(travels(results, "harmoniad")).splitlines()[2:]
    better, worse = (" ".join(row.split()) for row in rows)
    assert better.startswith("| better | 2 | 3 of 3 | 3 of 3 | +2.5 | +0.0 [+0.0, +0.0] |")
    assert worse.startswith("| worse | 2 | 0 of 3 | 0 of 3 | +0.0 |")


def test_the_interval_of_one_seed_is_that_of_a_t_test():
    values = np.random.default_rng(0).normal(size=(7, 1))
    mean, low, high = paired_interval(values)
    expected = stats.ttest_1samp(values[:, 0], 0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((values.mean(), *expected))
    assert paired_interval(values[:1]) == (values[0, 0], None, None)


def test_the_interval_holds_the_mean_of_all_products_and_seeds():
    """Drawn with effects of the product, of the seed and of both: 95 of 100 hold it."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        product, seed = rng.normal(size=(6, 1)), rng.normal(0, 0.7, (1, 3))
        _, low, high = paired_interval(product + seed + rng.normal(0, 0.5, (6, 3)))
        held += low <= 0 <= high
    assert 0.93 <= held / 400


def test_undefined_figures_are_left_out():
    results = {"harmoniad": {0: run_of(pixel_ap=None)}}
    assert "| - |" in " ".join(variants_table(results, "harmoniad").split())
    assert "pixel_ap" not in leave_one_out(results, "harmoniad")[0]["gain"]


def test_variants_are_trained_compared_and_kept(tiny_config, tmp_path):
    config = with_settings(
        shallow(tiny_config),
        {
            "train.num_steps": 2,
            "data.categories": ("fabric", "tablet"),
            "cache.folder": str(tmp_path / "features"),
        },
    )
    workdir = tmp_path / "ablation"
    # Another process is at the first run, so to say, and then it is gone: the others are
    # made first, and that one in the end.
    first = workdir / f"{REFERENCE}-0"
    first.mkdir(parents=True)
    log = tmp_path / "log"
    asked = command(config, workdir, "--variants=plain", "--seeds=0,1")
    with lock(first / ".lock") as at_work, log.open("w") as file:
        made = subprocess.Popen(**asked, stdout=file, stderr=subprocess.STDOUT)
        try:
            while made.poll() is None and "waiting for another" not in log.read_text():
                time.sleep(0.1)
            assert made.poll() is None, log.read_text()
            assert kept(workdir) == {"plain-0", "plain-1", f"{REFERENCE}-1"}
            at_work.close()
            assert made.wait() == 0, log.read_text()
        finally:
            made.kill()
            made.wait()
    assert kept(workdir) == {"plain-0", "plain-1", f"{REFERENCE}-0", f"{REFERENCE}-1"}
    figures = json.loads((workdir / "ablation.json").read_text())
    assert set(figures["runs"]) == {"harmoniad", "plain"}
    assert all(set(runs) == {"0", "1"} for runs in figures["runs"].values())
    first, second = figures["runs"]["plain"].values()
    assert first["parameters"] > 0 and first["flops"] > 0 and first["seconds"] > 0
    assert first["mean"] != second["mean"]
    table = (workdir / "ablation.md").read_text()
    assert table in log.read_text() and "± " in table

    # Nothing is made twice, and what is asked for later comes beside it. Runs of versions
    # that had other settings do not stop the others.
    def rewrite(name, change):
        path = workdir / name / "kept.json"
        run = json.loads(path.read_text())
        change(run["config"])
        path.write_text(json.dumps(run))

    rewrite("plain-1", lambda config: config["model"].update(removed=True))
    rewrite("harmoniad-1", lambda config: config["evaluation"].pop("map_decay"))
    made = ablate(config, workdir, "--variants=plain,score-is-maximum", "--seeds=0")
    assert made.returncode == 0, made.stderr
    assert "variant score-is-maximum, seed 0" in made.stderr
    assert "variant plain" not in made.stderr and "variant harmoniad" not in made.stderr
    assert "plain-1 is left out: config.model.removed is no setting" in made.stderr
    # It was not scored as the default says now.
    assert "harmoniad-1 is left out: config.evaluation.map_decay did not" in made.stderr
    del figures["runs"]["plain"]["1"], figures["runs"]["harmoniad"]["1"]
    again = json.loads((workdir / "ablation.json").read_text())["runs"]
    assert again == figures["runs"] | {"score-is-maximum": again["score-is-maximum"]}
    # The evaluation alone: of the same run, with the same pixels.
    reference, maximum = again["harmoniad"]["0"], again["score-is-maximum"]["0"]
    assert maximum["mean"]["pixel_ap"] == reference["mean"]["pixel_ap"]
    assert maximum["seconds"] == 0

    # Where the images are may change; how they are trained on may not.
    other = with_settings(config, {"train.batch_size": 16, "data.threads": 1})
    changed = "config.train.batch_size is 16 but was 8. Give another"
    with pytest.raises(UserError, match=changed) as error:
        Ablation(other, workdir, ["plain"], [0]).run()
    assert "threads" not in str(error.value)


def test_a_run_that_began_with_another_scoring_is_refused(tiny_config, tmp_path):
    """It would go on so, and be kept as one with today's scoring."""
    base = with_settings(
        shallow(tiny_config),
        {"train.num_steps": 1, "cache.folder": str(tmp_path / "features")},
    )
    earlier = with_settings(base, {"evaluation.map_decay": 0.1})
    workdir = tmp_path / "ablation"
    folder = workdir / f"{REFERENCE}-0"
    # Its metrics were not kept yet.
    train_and_evaluate(Ablation(earlier, workdir, [], [0])._config(REFERENCE, 0), folder)
    expected = (
        f"{folder} was begun with other settings: config.evaluation.map_decay is 0.1, "
        "wanted 0.25. Give another --workdir, or delete it."
    )
    with pytest.raises(UserError, match=re.escape(expected)):
        Ablation(base, workdir, ["plain"], [0]).run()
    assert not kept(workdir) and not (workdir / "plain-0").exists()

    Ablation(earlier, workdir, [REFERENCE], [0]).run()
    # Another evaluation since does not change what is evaluated of it.
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["evaluation"]["smoothing_sigma"] = 0.0
    path.write_text(json.dumps(config))
    Ablation(earlier, workdir, ["score-is-maximum"], [0]).run()
    runs = json.loads((workdir / "ablation.json").read_text())["runs"]
    reference, maximum = (runs[n]["0"]["mean"] for n in (REFERENCE, "score-is-maximum"))
    assert maximum["pixel_ap"] == reference["pixel_ap"]


def test_a_mistake_is_one_line(tiny_config, tmp_path):
    made = ablate(tiny_config, tmp_path / "ablation", "--seeds=a")
    assert made.returncode == 2
    assert made.stderr.startswith("error: --seeds=a is not a list of numbers")
    assert made.stderr.count("\n") == 1
    assert not (tmp_path / "ablation").exists()


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("plane", "variant 'plane' is unknown"),
        ("groups-3", "variant 'groups-3': config.encoder.groups is 3"),
    ],
)
def test_a_variant_that_cannot_be_made_leaves_nothing_behind(
    tiny_config, tmp_path, variant, message
):
    with pytest.raises(UserError, match=message):
        Ablation(tiny_config, tmp_path / "ablation", [variant], [0])
    assert not (tmp_path / "ablation").exists()


def test_a_folder_that_cannot_be_made_is_reported(tiny_config):
    ablation = Ablation(tiny_config, Path("/dev/null/runs"), ["plain"], [0])
    with pytest.raises(UserError, match="--workdir=/dev/null/runs cannot be made"):
        ablation.run()
