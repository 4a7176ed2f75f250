"""The benchmark of growth: what it draws, its tables, and a tiny run from end to end."""

import json
import time
from collections import Counter

import numpy as np
import pytest
import time_scale
from at_scale import draw as drawing
from at_scale.memory import Peak, memory_now

from harmoniad_jax.data.folder import folder_dataset
from harmoniad_jax.data.images import open_image
from harmoniad_jax.data.mask_files import read_mask


def test_the_largest_plan_has_categories_of_1000_to_5000_images():
    planned = drawing.plan(150_000, 30)
    assert (planned.train[0], planned.train[-1]) == (1000, 5000)
    assert (planned.good, planned.defective) == (1000, 1000)
    assert abs(planned.images - 150_000) <= 30


@pytest.mark.parametrize("images", [1, 100, 1500])
def test_every_category_can_be_trained_and_tested_on(images):
    planned = drawing.plan(images, 3)
    assert min(planned.train) >= 2
    assert min(planned.good, planned.defective) >= 1


def test_what_is_drawn_is_what_was_planned(tmp_path):
    planned = drawing.draw(tmp_path / "set", 90, 3, 32)
    dataset = folder_dataset(tmp_path / "set")
    counts = Counter(record.category for record in dataset.train)
    assert tuple(counts[name] for name in dataset.categories) == planned.train
    assert len(dataset.test) == 3 * (planned.good + planned.defective)
    for record in dataset.test:
        assert np.asarray(open_image(record.image).image).shape == (32, 32, 3)
        assert (record.mask is not None) == record.is_anomalous
        assert record.mask is None or read_mask(record.mask).any()
    before = sorted((tmp_path / "set").rglob("*"))
    assert drawing.draw(tmp_path / "set", 90, 3, 32) == planned
    assert sorted(tmp_path.rglob("*"))[1:] == before  # nothing new, nothing unfinished


def test_a_peak_that_has_gone_is_seen():
    before = memory_now()
    with Peak() as peak:
        block = np.ones(30_000_000, np.uint8)
        time.sleep(0.3)  # longer than the watch looks away
        del block
    assert peak.most.own >= before.own + 25_000_000
    assert peak.most.resident >= peak.most.own


def run(images, seconds):
    memory = {"resident_bytes": 3 * 10**9, "own_bytes": 2 * 10**6}
    stages = [
        {"name": name, "seconds": s, "processor_seconds": 2 * s, **memory}
        for name, s in zip(("list", "calibrate"), seconds, strict=True)
    ]
    return {"images": images, "stages": stages, "bytes": {"report": 12_000_000}}


def test_tables_have_a_column_for_each_size():
    text = time_scale.tables([run(100, (0.1, 2)), run(1000, (0.5, 1234.56))])
    assert "| seconds | 100 images | 1,000 images |" in text
    assert "| calibrate | 2.0 | 1,234.6 |" in text
    assert "| calibrate | 4.0 | 2,469.1 |" in text
    assert "| list | 2.0 MB | 2.0 MB |" in text
    assert "| all | 3.00 GB | 3.00 GB |" in text
    assert "| report | 12.0 MB | 12.0 MB |" in text


@pytest.mark.parametrize("arguments", [["--sizes", "0"], ["--sise", "3"]])
def test_bad_options_are_one_line(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        time_scale.main(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")


@pytest.mark.slow
def test_a_tiny_run_has_every_stage(tmp_path, capsys):
    path = tmp_path / "figures.json"
    time_scale.main(
        [
            "--sizes",
            "60",
            "--categories",
            "2",
            "--folder",
            str(tmp_path),
            "--json",
            str(path),
        ]
    )
    (figures,) = json.loads(path.read_text())
    names = [stage["name"] for stage in figures["stages"]]
    assert names[0] == "list images"
    assert {"calibrate", "save a checkpoint", "evaluate in a stream", "report"} < set(names)
    for stage in figures["stages"]:
        assert stage["seconds"] > 0 <= stage["processor_seconds"]
        assert stage["resident_bytes"] >= stage["own_bytes"] > 10_000_000
    assert all(size > 0 for size in figures["bytes"].values())
    printed = capsys.readouterr().out
    assert all(printed.count(f"| {name} |") >= 3 for name in names)
