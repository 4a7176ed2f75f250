"""The campaign: what it keeps and shows, and a tiny one that is cut and goes on."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import gpu
import pytest
from campaign.keep import Deadline, Kept
from campaign.measure import MATMUL, REHEARSAL, measurements
from campaign.page import page
from campaign.sizes import FULL, TINY

ROOT = Path(__file__).parents[2]


def test_results_are_found_again(tmp_path):
    kept = Kept(tmp_path)
    assert kept.get("head ViT-S/14, 16 images") is None
    assert not kept.is_done("head ViT-S/14, 16 images")
    kept.put("head ViT-S/14, 16 images", {"seconds": 1.5})
    kept.put("head ViT-S/14, 160 images", {"error": "does not fit"})
    kept.put(REHEARSAL, {"steps": 3, "unfinished": True})
    again = Kept(tmp_path)
    assert again.get("head ViT-S/14, 16 images")["seconds"] == 1.5
    assert again.is_done("head ViT-S/14, 160 images")
    assert not again.is_done(REHEARSAL)
    assert not list(tmp_path.rglob("*.unfinished"))


def test_names_are_different_files(tmp_path):
    kept = Kept(tmp_path)
    names = [one.name for one in measurements(FULL)]
    for name in names:
        kept.put(name, {})
    assert len(list((tmp_path / "parts").iterdir())) == len(set(names)) == len(names)


def test_everything_that_is_asked_for_is_measured():
    names = [one.name for one in measurements(FULL)]
    assert names[0] == MATMUL
    assert REHEARSAL in names
    for architecture in ("ViT-L/14-336", "ViT-S/14-224"):
        for batch in (16, 64, 256):
            for what in (
                *("harmoniad, float32", "harmoniad, bfloat16", "plain, float32"),
                "plain, bfloat16",
            ):
                assert f"head {architecture}, {what}, {batch} images" in names
            for attention in ("library", "fused"):
                for kind in ("encoder", "evaluation"):
                    name = f"{kind} {architecture}, {attention} attention, {batch} images"
                    assert name in names
    # What is cut off first matters least.
    assert all("256 images" not in name for name in names[:20])
    # A group is a process: its measurements follow each other.
    groups = [one.group for one in measurements(FULL)]
    assert len(set(groups)) == 1 + sum(
        a != b for a, b in zip(groups, groups[1:], strict=False)
    )


def test_a_deadline_is_a_moment():
    assert 9 < Deadline(time.time() + 10).left <= 10


REHEARSED = {
    "images": 3629,
    "batch": 16,
    "steps": 5000,
    "all_steps": 10_000,
    "seconds": 90.0,
    "ready_seconds": 40.0,
    "pieces": 2,
    "peak_bytes": 2_000_000_000,
    "unfinished": True,
}


def timed(**changes):
    return {
        "seconds": 0.02,
        "images": 160,
        "compile_seconds": 12.0,
        "memory_bytes": 3_000_000_000,
        "flops": 2e12,
        "dtype": "bfloat16",
        **changes,
    }


def test_the_page_shows_shares_and_what_is_missing():
    figures = {
        "date": "2026-01-01",
        "device": {"device": "H100", "devices": 1, "jax": "0.10.2"},
        "results": {
            MATMUL: {"flops_per_second": {"float32": 4e14, "bfloat16": 8e14}},
            "head big, harmoniad, bfloat16, 16 images": timed(steps=10),
            "head big, plain, float32, 256 images": {"error": "does not fit"},
            "encoder big, fused attention, 16 images": timed(flops=None),
            REHEARSAL: REHEARSED,
            "profile big": {"busiest": [], "steps": 1},
        },
        "missing": ["split big, fft, 16 images"],
    }
    text = page(figures, FULL)
    assert "1 H100, jax 0.10.2, 2026-01-01" in text
    assert "400.0 TFLOP/s in float32 and 800.0 TFLOP/s in bfloat16" in text
    # 2e12 operations at 8e14 a second take 2.5 ms of 20.
    row = "| big, harmoniad, bfloat16, 16 images | 2.00 | 8,000 | 100.0 | 12% | 3.00 GB | "
    assert row in text
    assert "| big, plain, float32, 256 images | does not fit | - |" in text
    assert "| big, fused attention, 16 images | 20.00 | 8,000 | - | - | 3.00 GB |" in text
    assert "5,000 of 10,000 steps in 90.0 s, 18.00 ms a step." in text
    assert "Measured in 2 calls" in text
    assert text.endswith("## Not measured\n\n- split big, fft, 16 images\n")


def test_a_page_of_nothing_lists_everything():
    names = [one.name for one in measurements(TINY)]
    figures = {"date": "today", "device": {}, "results": {}, "missing": names}
    assert page(figures, TINY).count("\n- ") == len(names)


def campaign(out, scratch, *arguments):
    fast = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    return subprocess.run(
        [
            *("bash", "benchmarks/gpu.sh", "--tiny"),
            *("--out", out, "--scratch", scratch, *arguments),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable, "XLA_FLAGS": fast},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_a_tiny_campaign_measures_everything_and_goes_on(tmp_path):
    out, scratch = tmp_path / "gpu", tmp_path / "scratch"
    kept = Kept(out)
    # As a campaign leaves it that was cut: a measurement, and steps that are left.
    kept.put(MATMUL, {"flops_per_second": {"float32": 1e9, "bfloat16": 2e9}})
    kept.put(REHEARSAL, {**REHEARSED, "steps": 2, "seconds": 5.0, "pieces": 1})
    done = campaign(out, scratch)
    assert done.returncode == 0, done.stderr
    figures = json.loads((out / "campaign.json").read_text())
    assert figures["missing"] == []
    results = figures["results"]
    assert set(results) == {one.name for one in measurements(TINY)}
    assert results[MATMUL]["flops_per_second"]["float32"] == 1e9
    rehearsal = results[REHEARSAL]
    assert (rehearsal["steps"], rehearsal["pieces"]) == (TINY.steps, 2)
    assert rehearsal["seconds"] > 5.0
    for name, one in results.items():
        if name.split()[0] in ("head", "encoder", "evaluation", "split"):
            assert one["seconds"] > 0
            assert one["compile_seconds"] > 0
            assert one["images"] % 2 == 0
    (profile,) = [
        r for n, r in results.items() if n.startswith("profile of the head tiny, float32")
    ]
    assert profile["busiest"]
    assert done.stdout == (out / "campaign.md").read_text()
    before = {path: path.stat().st_mtime for path in (out / "parts").iterdir()}
    again = campaign(out, scratch)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime for path in (out / "parts").iterdir()} == before


def test_only_what_is_asked_for_is_measured(tmp_path, capsys):
    options = ["--out", str(tmp_path), "--tiny", "--only", "no such measurement"]
    gpu.main(options)
    assert not (tmp_path / "parts").exists()
    assert "- matmul" in capsys.readouterr().out


@pytest.mark.slow
def test_programs_are_compiled_at_the_same_time_and_that_is_what_is_kept(
    tmp_path, monkeypatch
):
    """In this process, as a campaign has others do."""
    monkeypatch.setattr(gpu, "CORES_TO_COMPILE", 1)
    monkeypatch.setattr(gpu.os, "cpu_count", lambda: 2)
    out, until = tmp_path / "gpu", time.time() + 600
    (group,) = {m.group for m in measurements(TINY) if m.name.startswith("encoder")}
    options = ["--tiny", "--only", "^encoder", "--group", group, "--until", str(until)]
    gpu.main(["--out", str(out), "--scratch", str(tmp_path), *options])
    kept = Kept(out)
    for attention in ("library", "fused"):
        name = f"encoder tiny, {attention} attention, 2 images"
        ahead = kept.get(f"compiling {name}")
        assert kept.get(name)["compile_seconds"] == ahead["compile_seconds"] > 0


def test_without_time_nothing_is_measured_and_the_page_says_so(tmp_path, capsys):
    gpu.main(["--out", str(tmp_path), "--budget", "1"])
    assert "## Not measured" in capsys.readouterr().out
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "3"], "the following arguments are required: --out"),
        (["--out", "gpu", "--budget", "0"], "--budget=0 must be above 0."),
        (["--out", "gpu", "--tiney"], "unrecognized arguments: --tiney"),
    ],
)
def test_bad_options_are_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        gpu.main(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_machine_without_accelerator_and_wheels_is_told_what_to_do(tmp_path):
    """Another name of the interpreter: the one of the project would be found first."""
    done = subprocess.run(
        ["bash", "benchmarks/gpu.sh", "--out", tmp_path / "gpu"],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHON": sys.executable,
            "JAX_PLATFORMS": "cpu",
            "WHEELS": str(tmp_path / "none"),
            "VENV": str(tmp_path / "venv"),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: no Python here has JAX with an accelerator")
