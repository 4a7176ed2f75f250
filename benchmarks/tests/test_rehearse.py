"""The rehearsal: its arithmetic on made-up figures, and a tiny one from end to end."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from rehearsal.command import Command, progress
from rehearsal.costs import (
    Stage,
    bytes_text,
    constant_seconds,
    extrapolated_table,
    measured_table,
)
from rehearsal.device_memory import peak_bytes
from rehearsal.full import full_size, padded
from rehearsal.watch import Mark, Watched, watch

from harmoniad_jax.config import parse_config
from harmoniad_jax.config_files import load_config
from harmoniad_jax.errors import UserError

ROOT = Path(__file__).parents[2]


# Arithmetic.


def test_a_stage_is_a_constant_and_a_pace():
    """30 s of compilation, then 2 s for each of 10 images."""
    points = [(100.0, 0), *((130.0 + 2 * n, n) for n in range(1, 11))]
    constant = constant_seconds(100.0, 150.0, points)
    assert constant == pytest.approx(30)
    stage = Stage("encode", 50.0, "image", 10, 1000, constant)
    assert stage.full_seconds == pytest.approx(30 + 2 * 1000)
    assert stage.rule == "30.0 s + 2 s per image"


def test_a_slow_beginning_is_not_taken_for_the_pace():
    points = [(0.0, 0), (50.0, 1), (80.0, 2), (81.0, 3), (82.0, 4)]
    assert constant_seconds(0.0, 82.0, points) == pytest.approx(82 - 4 * 1)


@pytest.mark.parametrize("points", [[(0.0, 0), (9.0, 4)], [(9.0, 4)]])
def test_without_a_second_look_nothing_is_constant(points):
    assert constant_seconds(0.0, 10.0, points) == 0.0


def test_a_fast_beginning_makes_no_negative_constant():
    assert constant_seconds(0.0, 11.0, [(0.0, 0), (1.0, 1), (11.0, 2)]) == 0.0


def test_disk_and_seconds_grow_with_what_each_grows_with():
    stage = Stage("save", 3.0, "save", 1, 50).leaves(1_000_000, 1, 2)
    assert (stage.full_seconds, stage.full_disk_bytes) == (150.0, 2_000_000)
    fixed = Stage("start", 20.0)
    assert (fixed.full_seconds, fixed.full_disk_bytes) == (20.0, 0)
    assert (fixed.rule, fixed.is_full, stage.is_full) == ("constant", True, False)


def test_tables_keep_measured_and_extrapolated_figures_apart():
    stages = [
        Stage("start", 20.0, host_bytes=2_000_000_000),
        Stage("encode", 50.0, "image", 10, 1000, 30.0).leaves(7_000_000, 10, 1000),
        Stage("prepare", 8.0, "image", 40, 40),
    ]
    measured, extrapolated = measured_table(stages), extrapolated_table(stages)
    assert "| encode | 10 images | 50.0 | - | - | 7.0 MB |" in measured
    assert "| all |  | 78.0 | 2.00 GB | - | 7.0 MB |" in measured
    assert "| encode | 1,000 images | 2,030 | 700.0 MB | 30.0 s + 2 s per image |" in (
        extrapolated
    )
    assert "| prepare | 40 images | 8 | - | measured |" in extrapolated
    assert "| all |  | 2,058 | 700.0 MB |  |" in extrapolated


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "-"), (512, "0.5 kB"), (2.5e6, "2.5 MB"), (7.712e9, "7.71 GB")],
)
def test_bytes_text(size, text):
    assert bytes_text(size) == text


def test_full_size_is_that_of_mvtec_ad():
    full = full_size(parse_config(load_config("mvtec")))
    assert full.images == 3629 + 467 + 1258
    held_out = full.images - 467 - 1258 - full.encoded
    assert 0.09 * 3629 < held_out < 0.11 * 3629
    assert full.calibrated_rows == padded(held_out, 16)
    assert full.trained == 10_000 * 16
    assert (full.saves, full.kept, full.log_lines) == (50, 2, 500)
    # Up to three of each kind for the report; in fifteen categories, in one batch each.
    assert full.pictures == 15 * 9
    assert 1725 <= full.evaluated_rows < 1725 + 15 * 16


def test_padded():
    assert [padded(count, 4) for count in (0, 1, 4, 5)] == [0, 4, 4, 8]


# Watching.


def test_bars_are_counted_together_and_one_after_the_other():
    marks = [
        Mark(1.0, "bottle", 0, 2),
        Mark(2.0, "bottle", 2, 2),
        Mark(3.0, "report", 0, 3),
        Mark(4.0, "report", 3, 3),
        Mark(5.0, "report", 0, 1),
        Mark(6.0, "report", 1, 1),
    ]
    assert [done for _, done in progress(marks)] == [0, 2, 2, 5, 5, 6]
    assert [done for _, done in progress(marks, 2)] == [0, 2, 2, 6, 6, 8]


def test_stages_follow_one_another_and_have_their_own_memory(tmp_path):
    notes = tmp_path / "notes"
    notes.write_text("21.0 500\n45.0 900\n")
    watched = Watched(
        begin=10.0,
        end=60.0,
        marks=[
            Mark(20.0, "encoding", 0, 2),
            Mark(30.0, "encoding", 2, 2),
            Mark(31.0, "training", 0, 3),
            Mark(46.0, "training", 1, 3),
            Mark(48.0, "training", 2, 3),
            Mark(50.0, "training", 3, 3),
        ],
        lines=[],
        resident=[(15.0, 7), (25.0, 3), (40.0, 5), (55.0, 4)],
        largest=8,
    )
    command = Command(watched, notes)
    start = command.until("start", ["encoding"])
    encode = command.through("encode", ["encoding"], 100, batch=4, unit="row")
    steps = command.through("steps", ["training"], 80, each=16)
    assert (start.seconds, start.host_bytes, start.device_bytes) == (10.0, 7, 0)
    assert (encode.seconds, encode.count, encode.host_bytes) == (10.0, 4, 3)
    assert (encode.device_bytes, steps.device_bytes) == (500, 900)
    assert (steps.seconds, steps.count, steps.host_bytes) == (20.0, 48, 5)
    assert steps.constant == pytest.approx(14.0)  # 20 s less 3 steps of 2 s
    with pytest.raises(UserError, match="no progress of bottle, but of encoding, training"):
        command.through("evaluate", ["bottle"], 1)


BARS = """
import sys, time
from tqdm import tqdm
print("to the reader", flush=True)
held = bytearray(64_000_000)
with tqdm(desc="first part", total=3, unit="image", disable=None) as bar:
    for _ in range(3):
        time.sleep(0.2)
        bar.update()
print("the end", file=sys.stderr)
"""


def test_a_command_is_watched_as_at_a_terminal(tmp_path):
    done = watch([sys.executable, "-c", BARS], tmp_path, tmp_path / "log")
    counts = [mark.done for mark in done.marks_of(["first part"])]
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert set(counts) == {0, 1, 2, 3}
    first, last = done.marks[0].time, done.marks[-1].time
    assert 0.5 < last - first < done.seconds
    assert list(done.lines) == ["to the reader", "the end"]
    assert done.largest > 64_000_000
    assert "the end" in (tmp_path / "log").read_text()
    if Path("/proc/self/statm").exists():
        assert 64_000_000 < done.resident_between(first, last) <= done.largest


def test_a_failed_command_is_one_line(tmp_path):
    script = "import sys; print('error: no room.'); sys.exit(3)"
    with pytest.raises(UserError, match="status 3: no room. All that it said is in ") as e:
        watch([sys.executable, "-c", script], tmp_path, tmp_path / "log")
    assert "\n" not in str(e.value)


def test_peak_of_the_fullest_device():
    def device(stats):
        return types.SimpleNamespace(memory_stats=lambda: stats)

    devices = [device(None), device({"peak_bytes_in_use": 5}), device({"other": 9})]
    assert peak_bytes(devices) == 5
    assert peak_bytes([device(None)]) == 0


# The whole.

TINY = (
    *("--share", "0.001", "--side", "64", "--steps", "4", "--batch_size", "2"),
    *("--image_side", "32", "--width", "32", "--depth", "2", "--heads", "2"),
    *("--patch", "8", "--workers", "1"),
    "--config.model.head_width=16",
    "--config.model.high_depth=2",
    "--config.model.low_depth=2",
    "--config.evaluation.map_side=32",
    "--config.data.categories=bottle,grid,zipper",
)
# Of the flags of the tests, without eight devices: what makes compilation short.
FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def rehearse(*arguments):
    return subprocess.run(
        [sys.executable, "benchmarks/rehearse.py", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": FAST},
        capture_output=True,
        text=True,
        timeout=600,
    )


STAGES = [
    "draw",
    "prepare",
    "train: start",
    "train: encode",
    "train: steps",
    "train: calibrate",
    "train: evaluate",
    "evaluate: start",
    "evaluate: images, report",
    "restore a checkpoint",
    "save checkpoints",
]


@pytest.mark.slow
def test_a_tiny_rehearsal_measures_every_stage(tmp_path):
    done = rehearse("--folder", tmp_path, *TINY)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*/rehearsal.json")
    figures = json.loads(path.read_text())
    stages = {stage["name"]: stage for stage in figures["stages"]}
    assert list(stages) == STAGES
    for stage in stages.values():
        assert stage["seconds"] > 0
        assert 0 <= stage["constant"] < stage["seconds"]
        assert stage["host_bytes"] > 10_000_000
        assert stage["extrapolated"]["seconds"] >= stage["seconds"] * 0.999
    for name in ("draw", "prepare", "train: encode", "train: steps", STAGES[8], STAGES[10]):
        assert stages[name]["disk_bytes"] > 0
        assert stages[name]["extrapolated"]["disk_bytes"] > stages[name]["disk_bytes"]
    assert stages["draw"]["count"] == stages["prepare"]["count"] == 15 * 4
    # Three categories, with one training image each that is not held out.
    assert stages["train: encode"]["count"] == padded(3, 2)
    assert stages["train: steps"]["count"] == 4 * 2
    assert stages["train: steps"]["full"] == 160_000
    # The other is held out.
    assert stages["train: calibrate"]["count"] == padded(3, 2)
    # Two test images of each category.
    assert stages["evaluate: images, report"]["count"] == 3 * 2
    assert figures["settings"]["train"]["num_steps"] == 4
    for name in STAGES:
        assert done.stdout.count(f"| {name} |") == 2
    assert done.stdout.startswith((path.parent / "rehearsal.md").read_text())
    images = sorted(path.parent.glob("images/*/t*/*/*.png"))
    assert len(images) == 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--share", "0"], "--share=0 must be above 0"),
        (["--steps", "0"], "argument --steps: 0 must be at least 1; see --help."),
        (["--stpes", "3"], "'--stpes' is no option"),
        (["--config.train"], "'--config.train' is no option"),
    ],
)
def test_bad_options_are_one_line(tmp_path, arguments, message):
    done = rehearse("--folder", tmp_path, *arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not list(tmp_path.iterdir())
