"""Steps in parts, with recomputation, from device memory; and steps that are skipped.

Compiling is what takes time here, so the network is as small as one can be.
"""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_helpers import assert_bitwise_equal, changed, final_state, shallow

from harmoniad_jax.errors import UserError
from harmoniad_jax.model.encoders.encoder import Encoder, Features
from harmoniad_jax.run.run import prepare_run
from harmoniad_jax.steps.step import in_parts
from harmoniad_jax.training import stepper
from harmoniad_jax.training.loop import _check_finite, train_and_evaluate
from harmoniad_jax.training.progress import Fetched
from harmoniad_jax.training.stepper import carried_shapes, carried_steps, several_steps


def losses_of(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def smallest(tiny_config):
    """One block in each branch, one device; no dropout, whose noise each part draws."""
    config = changed(shallow(tiny_config), "model", dropout=0.0)
    return changed(config, "sharding", data=1)


@functools.cache
def prepared(config):
    return prepare_run(config, for_training=True)


@functools.cache
def compiled_update(config):
    run = prepared(config)
    shapes = run.encoder.feature_shapes(config.train.batch_size)
    return jax.jit(run.steps.update).lower(run.abstract_state, shapes).compile()


@functools.cache
def new_state(config):
    return prepared(config).new_state()


def drawn_features(config, batch, seed=0):
    draw = np.random.default_rng(seed)
    shapes = prepared(config).encoder.feature_shapes(batch)
    return Features(*[draw.normal(size=s.shape).astype(np.float32) for s in shapes])


def assert_close(first, second):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7), first, second
    )


@pytest.mark.parametrize("settings", [{"micro_batches": 8}, {"remat": True}])
def test_less_memory_gives_the_same_step(smallest, settings):
    """The hard mining's threshold is that of the whole batch in both."""
    whole = changed(smallest, "train", batch_size=32)
    config = changed(whole, "train", **settings)
    features, state = drawn_features(whole, 32), new_state(whole)
    plain, lean = compiled_update(whole), compiled_update(config)
    (expected, metrics), (found, others) = plain(state, features), lean(state, features)
    assert_close(others, metrics)
    assert_close(found.opt_state[1].mu, expected.opt_state[1].mu)
    if "micro_batches" in settings:
        needed = [c.memory_analysis().temp_size_in_bytes for c in (lean, plain)]
        assert needed[0] < 0.7 * needed[1]


def test_parts_are_joined_in_order():
    batch = {"a": jnp.arange(12.0).reshape(12, 1), "b": jnp.arange(12)}
    seen = []

    def double(part):
        seen.append(part["b"].shape)
        return jax.tree.map(lambda leaf: 2 * leaf, part)

    expected = jax.tree.map(lambda leaf: 2 * leaf, batch)
    assert_bitwise_equal(in_parts(3, double, batch), expected)
    assert seen == [(4,)]


def test_parts_get_their_own_element():
    keys = jnp.arange(4)
    result = in_parts(4, lambda part, key: part * 0 + key, jnp.zeros(8), each=keys)
    assert sorted(result.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]


# Features in device memory.

IMAGES, MOST = 12, 4


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(1).integers(0, IMAGES, (MOST, 8)).astype(np.int32)


@pytest.fixture(scope="module")
def several(smallest, rows):
    """Takes steps on a table of features: (state, first row, number) -> as an update."""
    table = drawn_features(smallest, IMAGES)
    function = jax.jit(several_steps(prepared(smallest), MOST))

    def take(state, first, count):
        chosen = np.zeros_like(rows)
        chosen[:count] = rows[first : first + count]
        return function(state, (table,), (chosen,), np.int32(count))

    return take


def test_steps_from_device_memory_are_the_same_steps(smallest, rows, several):
    table, update = drawn_features(smallest, IMAGES), compiled_update(smallest)
    state = new_state(smallest)
    for step in range(MOST):
        state, metrics = update(state, jax.tree.map(lambda a, s=step: a[rows[s]], table))
    found, others = several(new_state(smallest), 0, MOST)
    assert_close(others, metrics)
    assert_close(found.params, state.params)
    assert found.step == MOST


def test_steps_may_be_called_in_any_numbers(smallest, several):
    """To the last bit: an interrupted run makes other calls than an undisturbed one."""
    whole, metrics = several(new_state(smallest), 0, 4)
    state = new_state(smallest)
    for first, count in ((0, 1), (1, 2), (3, 1)):
        state, others = several(state, first, count)
    assert_bitwise_equal((state, others), (whole, metrics))


def test_steps_on_stacks_are_the_same_steps(smallest, rows, several, monkeypatch):
    """As on an accelerator, and up to rounding: there the state is carried in stacks."""
    run = prepared(smallest)
    assert carried_steps(run) is run.steps
    monkeypatch.setattr(stepper.jax, "default_backend", lambda: "gpu")
    own = carried_steps(run)
    assert own.stacks is not None
    stacked = own.stacks.stack_state(jax.device_get(new_state(smallest)))
    shapes = carried_shapes(run, own)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), stacked, shapes)
    assert len(jax.tree.leaves(stacked)) < len(jax.tree.leaves(run.abstract_state)) / 2
    table = drawn_features(smallest, IMAGES)
    take = jax.jit(several_steps(run, MOST, own))
    found, metrics = take(stacked, (table,), (rows,), np.int32(MOST))
    monkeypatch.undo()
    expected, others = several(new_state(smallest), 0, MOST)
    assert_close(metrics, others)
    found = own.stacks.unstack_state(jax.device_get(found))
    assert_close(found.opt_state[1].mu, expected.opt_state[1].mu)
    assert_close(found.opt_state[1].nu, expected.opt_state[1].nu)

    def is_where_it_moved_to(found, expected, before):
        # The optimizer makes much of a gradient that is hardly more than rounding.
        assert np.abs(found - expected).max() < 0.02 * np.abs(expected - before).max()

    before = new_state(smallest).params
    jax.tree.map(is_where_it_moved_to, found.params, expected.params, before)


def test_weights_that_are_split_over_devices_are_not_stacked(tiny_config, monkeypatch):
    config = changed(shallow(tiny_config), "sharding", data=0, model=2)
    run = prepare_run(config, for_training=True)
    monkeypatch.setattr(stepper.jax, "default_backend", lambda: "gpu")
    assert carried_steps(run) is run.steps


class StopAfter:
    """Asks for a stop at the third question: after the second call."""

    def __init__(self, mesh):
        self._questions = 0

    def __call__(self, asked):
        self._questions += 1
        return self._questions == 3


def test_an_interrupted_run_from_device_memory_ends_as_an_undisturbed_one(
    tiny_config, tmp_path, monkeypatch
):
    """With the state in stacks between its calls, as on an accelerator."""
    monkeypatch.setattr(stepper, "carried_steps", lambda run: run.stacked_steps)
    config = shallow(tiny_config)
    config = changed(config, "cache", on_device="always", folder=str(tmp_path / "f"))
    config = changed(config, "train", log_every_steps=4, checkpoint_every_steps=100)
    config = changed(config, "sharding", data=1)
    config = changed(config, "variation", views=1)
    results = train_and_evaluate(config, tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        patch.setattr("harmoniad_jax.training.loop.Agreement", StopAfter)
        with pytest.raises(KeyboardInterrupt):
            train_and_evaluate(config, tmp_path / "interrupted")
    assert final_state(config, tmp_path / "interrupted").step == 6
    # Stopped after its last step: what is left is to calibrate.
    assert train_and_evaluate(config, tmp_path / "interrupted") == results
    assert losses_of(tmp_path / "interrupted") == losses_of(tmp_path / "undisturbed")
    assert_bitwise_equal(
        final_state(config, tmp_path / "interrupted"),
        final_state(config, tmp_path / "undisturbed"),
    )


# Steps that are not finite.


def test_a_step_that_is_not_finite_changes_nothing(smallest):
    update, features = compiled_update(smallest), drawn_features(smallest, 8)
    state, _ = update(new_state(smallest), features)
    broken = features._replace(class_token=features.class_token * np.inf)
    after, metrics = update(state, broken)
    assert not np.isfinite(metrics["loss"])
    assert (after.step, after.skipped, after.skipped_in_a_row) == (2, 1, 1)
    assert_bitwise_equal((after.params, after.opt_state), (state.params, state.opt_state))
    again, metrics = update(after, features)
    assert np.isfinite(metrics["loss"])
    assert (again.step, again.skipped, again.skipped_in_a_row) == (3, 1, 0)


def test_a_run_stops_at_the_first_number_that_is_not_finite_if_asked_to(
    smallest, tmp_path, monkeypatch
):
    """And says which array it is in, at which step, and of which images."""
    encode = Encoder.encode

    def broken(self, params, images):
        features = encode(self, params, images)
        return features._replace(patches=features.patches.at[0, 0, 1, 1, 5].set(jnp.nan))

    monkeypatch.setattr(Encoder, "encode", broken)
    config = changed(smallest, "cache", enabled=False)
    config = changed(config, "train", check_numerics=True)
    with pytest.raises(UserError) as error:
        train_and_evaluate(config, tmp_path)
    text = str(error.value)
    assert "1 steps in a row, 1 to 1;" in text
    assert "Not finite are features.patches, gradient" in text
    assert len(re.findall(r"\S+/train/good/\d+\.png", text)) == config.train.batch_size
    # Not numbers, which JSON does not have. The second step ran before the first was seen.
    assert losses_of(tmp_path) == [None, None]


class FakeRun:
    """As much of a run, its stepper and its checkpoints as `_check_finite` asks for."""

    latest_step = 40

    def __init__(self, config):
        self.config = config

    def images_of(self, step):
        return [f"image {step}"]


@pytest.mark.parametrize(("in_a_row", "stops"), [(0, False), (2, False), (3, True)])
def test_a_run_stops_after_so_many_skipped_steps(tiny_config, in_a_row, stops):
    run = FakeRun(changed(tiny_config, "train", max_skipped_steps=3))
    values = {"loss": np.nan, "gradient_norm": np.nan, "skipped_in_a_row": in_a_row}
    check = functools.partial(_check_finite, run, run, run, Fetched(50, values))
    if not stops:
        check()
        return
    with pytest.raises(UserError) as error:
        check()
    text = str(error.value)
    assert "3 steps in a row, 48 to 50;" in text
    assert "last good checkpoint is that of step 40" in text
    assert "images of step 50 are image 50" in text
    assert "check_numerics" in text


def test_the_check_of_numerics_is_in_float32(tiny_config):
    config = changed(tiny_config, "encoder", dtype="bfloat16")
    config = changed(config, "train", check_numerics=True)
    assert prepare_run(config).config.encoder.dtype == "float32"
