"""Checkpoints: what is kept, what damage does, and where they can be read to."""

import contextlib
import logging
import os
import re
import resource
import shutil
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from run_helpers import assert_bitwise_equal, rewritten

import harmoniad_jax
from harmoniad_jax.checkpoints.folders import has_checkpoints
from harmoniad_jax.checkpoints.store import Checkpoints
from harmoniad_jax.data.preprocess import Preprocessor
from harmoniad_jax.devices.mesh import shardings_of
from harmoniad_jax.errors import UserError
from harmoniad_jax.evaluation.evaluate import evaluate_run
from harmoniad_jax.run.identity import Identity
from harmoniad_jax.run.run import prepare_run
from harmoniad_jax.training.loop import train_and_evaluate

ITEMS = ("calibration", "identity", "integrity", "iterator", "progress")


@flax.struct.dataclass
class State:
    """As much of a training state as `Checkpoints` knows of."""

    step: jax.Array
    params: Any


def state_at(step, size=16):
    rng = np.random.default_rng(step)
    kernel = jnp.asarray(rng.normal(size=(size, 8)), jnp.float32)
    return State(jnp.int32(step), {"kernel": kernel, "bias": kernel[0].astype("bfloat16")})


def abstract_like(state, sharding=None):
    """What to restore a state to: one device, or the sharding given for matrices."""
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    everywhere = NamedSharding(sharding.mesh, PartitionSpec()) if sharding else one
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape,
            leaf.dtype,
            sharding=sharding if sharding and leaf.ndim == 2 else everywhere,
        ),
        state,
    )


@pytest.fixture(scope="module")
def identity(tiny_config):
    return Identity(tiny_config, "encoder", "0" * 64, {}, Preprocessor(32), "")


def test_the_optimizers_state_is_left_where_it_is_not_needed(trained_run):
    run = prepare_run(trained_run.config)
    with Checkpoints(trained_run.workdir, read_only=True) as checkpoints:
        whole = checkpoints.restore(run.abstract_state).state
        part = checkpoints.restore(run.abstract_state, to_train=False).state
    assert jax.tree.leaves(whole.opt_state)
    assert_bitwise_equal(part, whole.replace(opt_state=None))


def save_steps(workdir, identity, steps, **options):
    with Checkpoints(workdir, **options) as checkpoints:
        for step in steps:
            checkpoints.save(state_at(step), {"next": step}, identity)


def restore_small(workdir, **options):
    """The restored checkpoint, which is checked to be that of its step."""
    with Checkpoints(workdir, **options) as checkpoints:
        restored = checkpoints.restore(abstract_like(state_at(0)))
        step = int(restored.state.step)
        assert checkpoints.latest_step == step
    assert_bitwise_equal(restored.state, state_at(step))
    assert restored.iterator_state == {"next": step}
    return restored


def folders(workdir):
    """Names in the checkpoint folder."""
    return {path.name for path in (workdir / "checkpoints").iterdir()} - {".lock"}


def damage(path):
    """Flips all bits of a byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


# What is kept.


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, {"8"}),
        ({"keep": 2}, {"7", "8"}),
        ({"keep": 2, "keep_every": 3}, {"3", "6", "7", "8"}),
        ({"keep_every": 4}, {"4", "8"}),
    ],
)
def test_the_newest_and_every_nth_are_kept(identity, tmp_path, options, kept):
    save_steps(tmp_path, identity, range(1, 9), **options)
    assert folders(tmp_path) == kept
    assert int(restore_small(tmp_path, read_only=True).state.step) == 8


def test_those_of_an_earlier_start_count(identity, tmp_path):
    save_steps(tmp_path, identity, [2, 4, 6], keep=2, keep_every=2)
    assert folders(tmp_path) == {"2", "4", "6"}
    save_steps(tmp_path, identity, [7], keep=2, keep_every=4)
    assert folders(tmp_path) == {"4", "6", "7"}


def test_the_last_checkpoint_says_that_it_is(identity, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(3), {"next": 3}, identity)
        assert not checkpoints.finished
    assert not restore_small(tmp_path).finished
    with Checkpoints(tmp_path) as checkpoints:
        # Steps were trained to the end, but not calibrated.
        checkpoints.save(state_at(3, size=24), {"next": 4}, identity, finished=True)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        restored = checkpoints.restore(abstract_like(state_at(3, size=24)))
        assert checkpoints.finished
    assert restored.finished
    assert restored.iterator_state == {"next": 4}
    assert_bitwise_equal(restored.state, state_at(3, size=24))
    assert folders(tmp_path) == {"3"}


def test_a_checkpoint_stays_until_its_replacement_is_complete(identity, tmp_path):
    """What a process leaves that is killed while it saves a step again."""
    save_steps(tmp_path, identity, [3])
    folder = tmp_path / "checkpoints"
    (folder / "3").rename(folder / "3.replaced")
    (folder / "3.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    assert has_checkpoints(tmp_path)
    left = folders(tmp_path)
    restore_small(tmp_path, read_only=True)
    assert folders(tmp_path) == left
    restore_small(tmp_path)
    assert folders(tmp_path) == {"3"}
    # Killed a moment later: both are complete.
    shutil.copytree(folder / "3", folder / "3.replaced")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step == 3
    assert folders(tmp_path) == {"3"}


def test_an_unfinished_save_is_no_checkpoint(tmp_path):
    (tmp_path / "checkpoints/2.orbax-checkpoint-tmp").mkdir(parents=True)
    assert not has_checkpoints(tmp_path)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.latest_step is None
        with pytest.raises(UserError, match="no complete checkpoint; train a while"):
            checkpoints.read_identity()
    assert folders(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step is None
    assert not folders(tmp_path)


# Where they are read to.


def placements():
    devices = jax.devices()
    for count in (1, 2, 8):
        mesh = jax.make_mesh(
            (count,), ("data",), devices=devices[:count], axis_types=(AxisType.Auto,)
        )
        yield NamedSharding(mesh, PartitionSpec())
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=2 * (AxisType.Auto,))
    yield NamedSharding(mesh, PartitionSpec("model"))
    yield NamedSharding(mesh, PartitionSpec(None, "model"))


def test_any_mesh_writes_and_reads_the_same(identity, tmp_path):
    seals = []
    for number, sharding in enumerate(placements()):
        state = state_at(5)
        abstract = abstract_like(state, sharding)
        placed = jax.device_put(state, shardings_of(abstract))
        workdir = tmp_path / str(number)
        with Checkpoints(workdir) as checkpoints:
            checkpoints.save(placed, {"next": 5}, identity)
        seals.append((workdir / "checkpoints/5/integrity/metadata").read_text())
    assert len(set(seals)) == 1
    for number in (0, 2, 3):
        for sharding in placements():
            with Checkpoints(tmp_path / str(number), read_only=True) as checkpoints:
                restored = checkpoints.restore(abstract_like(state_at(5), sharding))
            assert_bitwise_equal(restored.state, state_at(5))
            assert restored.state.params["kernel"].sharding == sharding


def test_another_network_is_refused_and_no_damage(identity, tmp_path):
    save_steps(tmp_path, identity, [2])
    for other, named in [
        (state_at(2, size=24), r"kernel is float32\[16, 8\], expected float32\[24, 8\]"),
        (State(jnp.int32(2), {}), "params/bias is bfloat16.* expected None"),
    ]:
        with (
            Checkpoints(tmp_path) as checkpoints,
            pytest.raises(UserError, match=f"of another network: .*{named}"),
        ):
            checkpoints.restore(abstract_like(other))
    assert folders(tmp_path) == {"2"}


# Damage.


@pytest.fixture(scope="module")
def abstract(trained_run):
    run = prepare_run(trained_run.config)
    return abstract_like(jax.eval_shape(run.initial_state))


def restored_run(abstract, workdir):
    """What is restored from a run, all of it on the host, and its identity."""
    with Checkpoints(workdir, read_only=True) as checkpoints:
        restored = checkpoints.restore(abstract)
        identity = checkpoints.read_identity()
        assert checkpoints.latest_step == int(restored.state.step)
        assert checkpoints.finished == restored.finished
        assert checkpoints.read_calibration() == restored.calibration
    return restored._replace(state=jax.device_get(restored.state)), identity


@pytest.fixture(scope="module")
def intact(abstract, trained_run, tmp_path_factory):
    """Step -> what the run saved there."""
    workdir = tmp_path_factory.mktemp("intact")
    shutil.copytree(trained_run.workdir / "checkpoints/4", workdir / "checkpoints/4")
    return {
        4: restored_run(abstract, workdir),
        6: restored_run(abstract, trained_run.workdir),
    }


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def each_file_broken(folder, break_file):
    """Yields every file of a folder while it is broken."""
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        break_file(path)
        yield str(path.relative_to(folder))
        path.write_bytes(content)


BREAK_FILE = [Path.unlink, truncate, damage]


@pytest.mark.parametrize("break_file", BREAK_FILE)
def test_damage_to_any_file_never_gives_wrong_values(
    identity, tmp_path, caplog, break_file
):
    """It is found, or the file did not matter: there is nothing in between."""
    save_steps(tmp_path, identity, [2, 4], keep=2)
    passed_over = set()
    for name in each_file_broken(tmp_path / "checkpoints/4", break_file):
        caplog.clear()
        if int(restore_small(tmp_path, read_only=True).state.step) == 2:
            passed_over.add(name)
        warned = "the checkpoint of step 4 in" in caplog.text
        assert warned == (name in passed_over)
    assert int(restore_small(tmp_path).state.step) == 4
    # What must matter does.
    assert passed_over > {f"{item}/metadata" for item in ITEMS}
    assert "state/manifest.ocdbt" in passed_over
    assert any("/d/" in name for name in passed_over)
    assert "_CHECKPOINT_METADATA" not in passed_over


@pytest.mark.slow
@pytest.mark.parametrize("break_file", BREAK_FILE)
def test_damage_to_the_arrays_of_a_run_is_found(
    abstract, trained_run, intact, tmp_path, break_file
):
    shutil.copytree(trained_run.workdir / "checkpoints", tmp_path / "checkpoints")
    steps = []
    for _ in each_file_broken(tmp_path / "checkpoints/6/state", break_file):
        restored, identity = restored_run(abstract, tmp_path)
        steps.append(int(restored.state.step))
        expected, expected_identity = intact[steps[-1]]
        assert_bitwise_equal(restored.state, expected.state)
        assert restored[1:] == expected[1:]
        assert identity == expected_identity
    assert set(steps) == {4, 6}
    assert restored_run(abstract, tmp_path)[0].finished


def test_a_flipped_bit_anywhere_in_the_json_is_found(trained_run, tmp_path):
    """At some places in each item; one that changes no value may go unseen."""
    shutil.copytree(trained_run.workdir / "checkpoints", tmp_path / "checkpoints")
    newest = tmp_path / "checkpoints/6"
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        before = checkpoints.read_identity(), checkpoints.read_calibration()
    for item in ITEMS:
        path = newest / item / "metadata"
        content = path.read_bytes()
        for place in range(0, len(content), max(1, len(content) // 25)):
            changed = bytearray(content)
            changed[place] ^= 1 << place % 8
            path.write_bytes(changed)
            with Checkpoints(tmp_path, read_only=True) as checkpoints:
                after = checkpoints.read_identity(), checkpoints.read_calibration()
                assert checkpoints.latest_step == 4 or after == before, (item, place)
        path.write_bytes(content)


def test_swapped_and_renamed_checkpoints_are_found(identity, tmp_path, caplog):
    save_steps(tmp_path, identity, [2, 4], keep=2)
    shutil.copytree(tmp_path / "checkpoints/2", tmp_path / "checkpoints/9")
    assert int(restore_small(tmp_path, read_only=True).state.step) == 4
    assert "step 9" in caplog.text
    assert "it is that of step 2" in caplog.text
    # Arrays of another checkpoint, each of them whole.
    shutil.rmtree(tmp_path / "checkpoints/4/state")
    shutil.copytree(tmp_path / "checkpoints/2/state", tmp_path / "checkpoints/4/state")
    assert int(restore_small(tmp_path, read_only=True).state.step) == 2
    assert "differs from what was saved" in caplog.text


@pytest.mark.parametrize("name", ["state/manifest.ocdbt", "iterator/metadata"])
def test_a_damaged_checkpoint_is_set_aside_and_saved_again(identity, tmp_path, name):
    for aside in ({"4.damaged"}, {"4.damaged", "4.damaged-2"}):
        save_steps(tmp_path, identity, [2, 4], keep=2)
        damage(tmp_path / "checkpoints/4" / name)
        with Checkpoints(tmp_path, keep=2) as checkpoints:
            restored = checkpoints.restore(abstract_like(state_at(0)))
            assert int(restored.state.step) == checkpoints.latest_step == 2
            assert folders(tmp_path) == {"2", *aside}
            checkpoints.save(state_at(4), {"next": 4}, identity)
        assert folders(tmp_path) == {"2", "4", *aside}
        assert int(restore_small(tmp_path).state.step) == 4


@pytest.mark.parametrize("break_file", [Path.unlink, truncate, damage])
def test_what_orbax_notes_for_itself_stops_no_training(identity, tmp_path, break_file):
    """Nothing that is restored is in there, but a writer reads it too."""
    save_steps(tmp_path, identity, [2, 4], keep=2)
    for step in (2, 4):
        break_file(tmp_path / f"checkpoints/{step}/_CHECKPOINT_METADATA")
    assert int(restore_small(tmp_path).state.step) == 4
    save_steps(tmp_path, identity, [4, 6], keep=2)
    assert folders(tmp_path) == {"4", "6"}


def test_nothing_is_renamed_by_those_who_only_read(identity, tmp_path):
    save_steps(tmp_path, identity, [2, 4], keep=2)
    damage(tmp_path / "checkpoints/4/state/manifest.ocdbt")
    assert int(restore_small(tmp_path, read_only=True).state.step) == 2
    assert folders(tmp_path) == {"2", "4"}


def test_going_back_does_not_lead_to_another_run(identity, tmp_path):
    save_steps(tmp_path, identity, [2, 4], keep=2)
    with rewritten(tmp_path / "checkpoints/2", "identity") as stored:
        stored["weight_hash"] = "1" * 64
    damage(tmp_path / "checkpoints/4/state/manifest.ocdbt")
    with pytest.raises(UserError, match="checkpoint of another run: .*other weights"):
        restore_small(tmp_path)
    assert folders(tmp_path) == {"2", "4"}


def test_if_none_is_good_training_does_not_begin_anew(trained_run, tmp_path):
    shutil.copytree(trained_run.workdir, tmp_path / "run")
    folder = tmp_path / "run/checkpoints"
    (folder / "4/identity/metadata").unlink()
    damage(folder / "6/state/manifest.ocdbt")
    assert has_checkpoints(tmp_path / "run")
    commands = (
        lambda: train_and_evaluate(trained_run.config, tmp_path / "run"),
        lambda: evaluate_run(tmp_path / "run"),
        lambda: harmoniad_jax.load(tmp_path / "run"),
    )
    for command in commands:
        with pytest.raises(UserError, match="every checkpoint in .* is damaged") as error:
            command()
        assert re.search(r"step 6: .*; step 4: identity is missing\.", str(error.value))
        assert folders(tmp_path / "run") == {"4", "6"}


def test_a_model_is_not_loaded_from_an_earlier_step(trained_run, tmp_path):
    """Though that the last one is damaged shows only when its arrays are read."""
    shutil.copytree(trained_run.workdir, tmp_path / "run")
    damage(tmp_path / "run/checkpoints/6/state/manifest.ocdbt")
    with pytest.raises(UserError, match="is at step 4 of 6: finish its training"):
        harmoniad_jax.load(tmp_path / "run")


def test_what_is_no_damage_is_not_taken_for_it(identity, tmp_path, monkeypatch):
    """A machine without memory must not set good checkpoints aside."""
    save_steps(tmp_path, identity, [2])

    def fail(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr("harmoniad_jax.checkpoints.store._read_state", fail)
    with pytest.raises(jax.errors.JaxRuntimeError):
        restore_small(tmp_path)
    assert folders(tmp_path) == {"2"}


# Saves that fail.

FULL = 2**20  # bytes at which every file ends, as if the disk were full
TOO_LARGE = {"next": FULL * "0"}  # the state of an iterator, written as text


@contextlib.contextmanager
def full_disk():
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def leave(checkpoints):
    """Nothing: the context is left."""


@pytest.mark.parametrize(
    "then",
    [
        Checkpoints.wait,
        lambda checkpoints: checkpoints.latest_step,
        lambda checkpoints: checkpoints.save(state_at(4), {}, None),
        leave,
    ],
    ids=["wait", "latest_step", "save", "leave"],
)
def test_a_full_disk_is_reported_and_leaves_the_last_good_one(identity, tmp_path, then):
    save_steps(tmp_path, identity, [2])
    expected = (
        rf"step 3 cannot be written to {tmp_path}/checkpoints \(File too large\); the "
        "checkpoint of step 2 is there"
    )
    with (
        full_disk(),
        pytest.raises(UserError, match=expected),
        Checkpoints(tmp_path) as checkpoints,
    ):
        checkpoints.save(state_at(3), TOO_LARGE, identity)
        then(checkpoints)
    assert folders(tmp_path) == {"2"}
    assert int(restore_small(tmp_path).state.step) == 2
    save_steps(tmp_path, identity, [3])
    assert folders(tmp_path) == {"3"}


def test_the_first_save_may_fail_too(identity, tmp_path):
    with (
        full_disk(),
        pytest.raises(UserError, match="no checkpoint is there to continue from"),
        Checkpoints(tmp_path) as checkpoints,
    ):
        checkpoints.save(state_at(3), TOO_LARGE, identity)
    assert not folders(tmp_path)
    assert not has_checkpoints(tmp_path)


def test_a_replacement_that_fails_leaves_what_it_was_to_replace(identity, tmp_path):
    save_steps(tmp_path, identity, [3])
    with (
        full_disk(),
        pytest.raises(UserError, match="the checkpoint of step 3 is there"),
        Checkpoints(tmp_path) as checkpoints,
    ):
        checkpoints.save(state_at(3), TOO_LARGE, identity, finished=True)
    assert folders(tmp_path) == {"3"}
    assert not restore_small(tmp_path).finished


def test_a_failed_save_does_not_hide_what_else_went_wrong(identity, tmp_path, caplog):
    save_steps(tmp_path, identity, [2])
    with (
        full_disk(),
        pytest.raises(KeyError, match="something else"),
        Checkpoints(tmp_path) as checkpoints,
    ):
        checkpoints.save(state_at(3), TOO_LARGE, identity)
        raise KeyError("something else")
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.getMessage() == "the checkpoint of step 3 was not saved: File too large"
    assert folders(tmp_path) == {"2"}
    # The lock is free again.
    restore_small(tmp_path)


def test_a_folder_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--workdir=.*file cannot be used"):
        Checkpoints(tmp_path / "file")
