"""Whole runs on stored features: continued, killed, two at once, of several processes."""

import json
import math
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from feature_helpers import IMAGES, LOG, on_devices, stored_bytes, train
from PIL import Image
from run_helpers import assert_bitwise_equal, changed, final_state, overrides

from harmoniad_jax.checkpoints.store import Checkpoints
from harmoniad_jax.errors import UserError
from harmoniad_jax.evaluation.evaluate import evaluate
from harmoniad_jax.features.store import FeatureCache
from harmoniad_jax.inference.restore import open_trained
from harmoniad_jax.model.encoders.encoder import Encoder
from harmoniad_jax.run.run import prepare_run
from harmoniad_jax.training.data import training_data
from harmoniad_jax.training.loop import train_and_evaluate

ROOT = Path(__file__).parents[2]


# Whole runs.


def results_of(workdir):
    return (workdir / "results.json").read_bytes()


def log_lines(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def finished(plain_config, tmp_path_factory):
    """A whole run that filled its own cache: config, workdir, results."""
    folder = tmp_path_factory.mktemp("whole")
    config = changed(plain_config, "cache", folder=str(folder / "cache"), dtype="float32")
    config = changed(config, "train", num_steps=4)
    return config, folder / "run", train_and_evaluate(config, folder / "run")


def test_a_finished_run_needs_no_cache(finished, tmp_path):
    config, workdir, results = finished
    away = tmp_path / "nothing"
    elsewhere = changed(config, "cache", folder=str(away))
    again = train_and_evaluate(elsewhere, workdir)
    assert {**again, "config_hash": results["config_hash"]} == results
    assert not away.exists()


def evaluated(workdir, output, **cache):
    """A run evaluated with other settings of the cache: what is written."""
    output.mkdir()
    changes = {f"cache.{setting}": value for setting, value in cache.items()}
    evaluate(open_trained(workdir, changes), output)
    return json.loads(results_of(output))


def test_a_run_is_evaluated_from_stored_features_as_from_images(
    finished, tmp_path, monkeypatch
):
    _, workdir, expected = finished
    stored = {"evaluation": True, "folder": str(tmp_path / "cache")}
    first = evaluated(workdir, tmp_path / "first", **stored)
    for name, figures in expected["per_category"].items():
        assert first["per_category"][name] == pytest.approx(figures, abs=1e-3)
    # Nobody encodes a test image again, and nothing changes.
    monkeypatch.setattr(Encoder, "encode", None)
    assert evaluated(workdir, tmp_path / "second", **stored) == first


def room_for(run, images):
    """What `config.cache.max_gigabytes` has to be for the features of so many images."""
    floats = sum(math.prod(shape.shape) for shape in run.encoder.feature_shapes(1))
    return images * (4 * floats + 68) / 1e9


def test_what_does_not_fit_is_evaluated_from_images(finished, tmp_path):
    """Training, held-out and test images have to fit together, or none is stored."""
    config, workdir, expected = finished
    run, away = prepare_run(config), tmp_path / "cache"
    dataset = run.dataset
    rest = len(dataset.held_out) + len(dataset.test)
    little = room_for(run, len(dataset.train) + rest - 1)
    settings = {"evaluation": True, "folder": str(away), "max_gigabytes": little}
    found = evaluated(workdir, tmp_path / "run", **settings)
    assert found["per_category"] == expected["per_category"]
    assert not list(away.glob("*/*.npy"))
    # It is enough if training images are not to be stored.
    evaluated(workdir, tmp_path / "alone", **settings, enabled=False)
    assert list(away.glob("*/*.npy"))


def test_features_of_training_images_stay(finished, tmp_path):
    """Others go first, even those that were used later."""
    config, workdir, _ = finished
    cache = tmp_path / "cache"
    shutil.copytree(config.cache.folder, cache)
    (folder,) = cache.iterdir()
    before = set(folder.glob("*.npy"))
    other = cache / ("0" * 16)
    shutil.copytree(folder, other)
    for path in before:
        os.utime(path, (0, 0))
    run = prepare_run(config)
    dataset = run.dataset
    enough = len(dataset.train) + len(dataset.held_out) + len(dataset.test) + 1
    settings = {"evaluation": True, "folder": str(cache)}
    evaluated(workdir, tmp_path / "run", **settings, max_gigabytes=room_for(run, enough))
    assert before < set(folder.glob("*.npy"))
    assert not list(other.glob("*.npy"))


def test_a_disk_that_takes_nothing_does_not_stop_an_evaluation(
    finished, tmp_path, monkeypatch, caplog
):
    _, workdir, expected = finished
    monkeypatch.setattr(FeatureCache, "write", refuse)
    settings = {"evaluation": True, "folder": str(tmp_path / "cache")}
    found = evaluated(workdir, tmp_path / "run", **settings)
    assert found["per_category"] == expected["per_category"]
    assert "disk is full. Evaluation goes on without stored features" in caplog.text


def refuse(*_):
    raise UserError("the disk is full.")


def interrupt_after(step, monkeypatch):
    """Stops a run when the checkpoint of a step is on disk."""
    save = Checkpoints.save

    def save_and_stop(self, state, *arguments):
        save(self, state, *arguments)
        if int(state.step) == step:
            self.wait()
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", save_and_stop)


@pytest.mark.parametrize(
    "first",
    [True, pytest.param(False, marks=pytest.mark.slow)],
    ids=["off", "on"],
)
def test_the_cache_may_be_turned_on_or_off_when_a_run_is_continued(
    finished, tmp_path, monkeypatch, first
):
    """The rest is trained on the same images in the same order."""
    config, workdir, _ = finished
    config = changed(config, "cache", folder=str(tmp_path / "cache"), enabled=first)
    interrupt_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train_and_evaluate(config, tmp_path / "run")
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    train_and_evaluate(changed(config, "cache", enabled=not first), tmp_path / "run")
    assert (tmp_path / "cache").exists() is not first
    lines, expected = log_lines(tmp_path / "run"), log_lines(workdir)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for name in ("loss", "gradient_norm", "learning_rate"):
        np.testing.assert_allclose(
            [line[name] for line in lines], [line[name] for line in expected], rtol=1e-4
        )


@pytest.mark.slow
def test_a_second_whole_run_is_identical_to_the_first(finished, tmp_path):
    config, workdir, _ = finished
    train_and_evaluate(config, tmp_path / "again")
    assert results_of(tmp_path / "again") == results_of(workdir)
    assert_bitwise_equal(
        final_state(config, tmp_path / "again"), final_state(config, workdir)
    )


def start(config, workdir):
    """A run as users start it, in a process of its own."""
    command = [
        *(sys.executable, "-m", "harmoniad_jax.train", "--config", "configs/demo.py"),
        *("--workdir", str(workdir)),
        *overrides(config),
    ]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def ended(process):
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return errors


@pytest.mark.slow
def test_two_runs_at_once_share_a_cache(finished, tmp_path):
    config, workdir, _ = finished
    config = changed(config, "cache", folder=str(tmp_path / "cache"))
    processes = [start(config, tmp_path / name) for name in ("one", "two")]
    for process in processes:
        ended(process)
    for name in ("one", "two"):
        assert json.loads(results_of(tmp_path / name))["per_category"]
        assert_bitwise_equal(
            final_state(config, tmp_path / name), final_state(config, workdir)
        )
    assert results_of(tmp_path / "one") == results_of(tmp_path / "two")


@pytest.mark.slow
def test_runs_that_are_killed_while_encoding_leave_a_sound_cache(
    finished, tmp_path, products
):
    """SIGKILL at moments that no one chose, many images, then an undisturbed end."""
    config, *_ = finished
    root = tmp_path / "photos"
    shutil.copytree(products, root)
    random = np.random.default_rng(0)
    for index in range(600):
        noise = random.integers(0, 256, (40, 40, 3), np.uint8)
        path = root / "tablet" / "train" / "good" / f"noise{index:03}.png"
        Image.fromarray(noise).save(path)
    config = changed(config, "data", root=str(root), check_images=False)
    config = changed(config, "train", num_steps=80, log_every_steps=20)
    config = changed(config, "cache", folder=str(tmp_path / "killed"))
    killed = 0
    for delay in (0.0, 0.02, 0.1):
        process = start(config, tmp_path / "run")
        for line in process.stderr:
            if "are to be encoded" in line:
                break
        time.sleep(delay)
        if delay:
            before = len(list((tmp_path / "killed").glob("*/*.npy")))
            deadline = time.monotonic() + 60
            while (
                len(list((tmp_path / "killed").glob("*/*.npy"))) == before
                and process.poll() is None
                and time.monotonic() < deadline
            ):
                time.sleep(0.001)
            time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    assert killed == 3
    errors = ended(start(config, tmp_path / "run"))
    (match,) = LOG.findall(errors)
    assert int(match[3]) < int(match[0])  # a fast machine may have stored all of them
    config = changed(config, "cache", folder=str(tmp_path / "undisturbed"))
    ended(start(config, tmp_path / "other"))
    assert results_of(tmp_path / "run") != b""
    assert_bitwise_equal(
        final_state(config, tmp_path / "run"), final_state(config, tmp_path / "other")
    )


# Several processes of one run.


def encode_share(config, port, index, count, results):
    """One of the processes: encodes its share, then reads all."""
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", count, index)
    run = prepare_run(config)
    written = []
    write = FeatureCache.write

    def note(self, images, arrays):
        written.extend(images)
        write(self, images, arrays)

    FeatureCache.write = note
    data = training_data(run, on_devices(run))
    read = stored_bytes(data)
    losses, _ = train(run, 2)
    results.put((index, written, sorted(read), losses))


@pytest.mark.slow
def test_processes_of_one_run_encode_disjoint_shares(plain_config, tmp_path):
    """Without dropout, whose noise goes by the place of an image in the batch."""
    config = changed(plain_config, "cache", folder=str(tmp_path / "cache"), dtype="float32")
    config = changed(config, "model", dropout=0.0)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    processes = [
        spawn.Process(target=encode_share, args=(config, port, index, 2, results))
        for index in range(2)
    ]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=300) for _ in processes)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    (_, first, read_first, losses), (_, second, read_second, other_losses) = found
    assert len(first) == len(second) == IMAGES // 2
    assert not set(first) & set(second)
    assert read_first == read_second == sorted([*first, *second])
    assert losses == other_losses
    # As one process trains.
    config = changed(config, "cache", folder=str(tmp_path / "alone"))
    alone, _ = train(prepare_run(config), 2)
    np.testing.assert_allclose(losses, alone, rtol=1e-5)
