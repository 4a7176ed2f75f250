"""Steps in parts, with recomputation, from device memory; and steps that are skipped."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_helpers import assert_bitwise_equal, changed, final_state

from harmoniad_jax.data.preprocess import load_image
from harmoniad_jax.errors import UserError
from harmoniad_jax.model.backbone import Encoder, Features
from harmoniad_jax.training.loop import train_and_evaluate
from harmoniad_jax.training.setup import prepare_run
from harmoniad_jax.training.step import in_parts


def losses_of(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def noiseless(tiny_config):
    """Without dropout, whose noise is drawn for each part by itself."""
    return changed(tiny_config, "model", dropout=0.0)


@pytest.fixture(scope="module")
def features(noiseless):
    shapes = prepare_run(noiseless).encoder.feature_shapes(8)
    draw = np.random.default_rng(0)
    return Features(*[draw.normal(size=s.shape).astype(np.float32) for s in shapes])


def updated(config, features):
    """The state and the metrics after one step on one device."""
    config = changed(config, "sharding", data=1)
    run = prepare_run(config, for_training=True)
    return jax.device_get(jax.jit(run.steps.update)(run.initial_state(), features))


@pytest.fixture(scope="module")
def plain_step(noiseless, features):
    return updated(noiseless, features)


@pytest.mark.parametrize("settings", [{"micro_batches": 4}, {"remat": True}])
def test_less_memory_gives_the_same_step(noiseless, features, plain_step, settings):
    """The hard mining's threshold is that of the whole batch in both."""
    state, metrics = updated(changed(noiseless, "train", **settings), features)
    for name, value in plain_step[1].items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
    moments, expected = state.opt_state[1].mu, plain_step[0].opt_state[1].mu
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-8),
        moments,
        expected,
    )


def test_parts_are_joined_in_order():
    batch = {"a": jnp.arange(12.0).reshape(12, 1), "b": jnp.arange(12)}
    seen = []

    def double(part):
        seen.append(part["b"].shape)
        return jax.tree.map(lambda leaf: 2 * leaf, part)

    jax.tree.map(
        np.testing.assert_array_equal,
        in_parts(3, double, batch),
        jax.tree.map(lambda leaf: 2 * leaf, batch),
    )
    assert seen == [(4,)]


def test_parts_get_their_own_element():
    keys = jnp.arange(4)
    result = in_parts(4, lambda part, key: part * 0 + key, jnp.zeros(8), each=keys)
    assert sorted(result.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_parts_need_less_memory(noiseless, features):
    def working_memory(**settings):
        config = changed(changed(noiseless, "train", **settings), "sharding", data=1)
        run = prepare_run(config, for_training=True)
        state = jax.eval_shape(run.initial_state)
        compiled = jax.jit(run.steps.update).lower(state, features).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert working_memory(micro_batches=8) < 0.7 * working_memory()


@pytest.fixture(scope="module")
def read_from_disk(tiny_config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("from_disk")
    config = changed(tiny_config, "cache", folder=str(workdir / "features"))
    config = changed(config, "train", num_steps=9, steps_per_call=4)
    return config, workdir, train_and_evaluate(config, workdir)


def on_device(config):
    return changed(config, "cache", on_device="always")


def test_features_in_device_memory_give_the_same_run(read_from_disk, tmp_path):
    config, workdir, results = read_from_disk
    found = train_and_evaluate(on_device(config), tmp_path)
    np.testing.assert_allclose(losses_of(tmp_path), losses_of(workdir), rtol=1e-4)
    for name, value in results["mean"].items():
        assert found["mean"][name] == pytest.approx(value, abs=0.02), name


def test_calls_of_several_steps_may_begin_anywhere(read_from_disk, tmp_path, monkeypatch):
    """Interrupted in the middle of where calls of an undisturbed run would be."""
    config = changed(on_device(read_from_disk[0]), "train", log_every_steps=4)
    config = changed(config, "train", checkpoint_every_steps=100)
    train_and_evaluate(config, tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        patch.setattr("harmoniad_jax.training.loop.Agreement", StopAfter)
        with pytest.raises(KeyboardInterrupt):
            train_and_evaluate(
                changed(config, "train", steps_per_call=3), tmp_path / "interrupted"
            )
    train_and_evaluate(config, tmp_path / "interrupted")
    assert_bitwise_equal(
        final_state(config, tmp_path / "interrupted"),
        final_state(config, tmp_path / "undisturbed"),
    )
    assert (
        losses_of(tmp_path / "interrupted")[-2:] == losses_of(tmp_path / "undisturbed")[1:]
    )


class StopAfter:
    """Asks for a stop at the third question: after the second call."""

    def __init__(self, mesh):
        self._questions = 0

    def __call__(self, asked):
        self._questions += 1
        return self._questions == 3


def break_features(monkeypatch, broken):
    """Lets the encoder give NaN for whole images of which `broken(images)` says so."""
    encode = Encoder.encode

    def broken_encode(self, params, images):
        features = encode(self, params, images)
        bad = broken(images)
        return features._replace(
            patches=jnp.where(bad[:, None, None, None, None], jnp.nan, features.patches)
        )

    monkeypatch.setattr(Encoder, "encode", broken_encode)


def test_a_step_that_is_not_finite_changes_nothing(tiny_config, features):
    config = changed(tiny_config, "sharding", data=1)
    run = prepare_run(config, for_training=True)
    update = jax.jit(run.steps.update)
    state, _ = update(run.initial_state(), features)
    broken = features._replace(class_token=features.class_token * np.inf)
    after, metrics = update(state, broken)
    assert not np.isfinite(metrics["loss"])
    assert (after.step, after.skipped, after.skipped_in_a_row) == (2, 1, 1)
    assert_bitwise_equal((after.params, after.opt_state), (state.params, state.opt_state))
    again, metrics = update(after, features)
    assert np.isfinite(metrics["loss"])
    assert (again.step, again.skipped, again.skipped_in_a_row) == (3, 1, 0)


def test_a_run_goes_on_after_a_step_that_is_not_finite(tiny_config, tmp_path, monkeypatch):
    """One image is bad: the steps that hold it are skipped, and counted."""
    config = changed(tiny_config, "cache", enabled=False)
    first = prepare_run(config).dataset.train[0]
    bad = jnp.asarray(load_image(first.image, config.data.image_side))
    break_features(monkeypatch, lambda images: (images == bad).all(axis=(1, 2, 3)))
    train_and_evaluate(config, tmp_path)
    losses = losses_of(tmp_path)
    skipped = losses.count(None)  # 24 images in steps of 8: twice in six steps
    assert skipped == 2
    state = final_state(config, tmp_path)
    assert (state.step, state.skipped) == (6, 2)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_a_run_that_stays_not_finite_stops_and_says_where(
    tiny_config, tmp_path, monkeypatch
):
    config = changed(tiny_config, "cache", enabled=False)
    train_and_evaluate(changed(config, "train", num_steps=4), tmp_path / "short")
    config = changed(config, "train", max_skipped_steps=3, num_steps=20)
    break_features(monkeypatch, lambda images: jnp.ones(len(images), bool))
    with pytest.raises(UserError) as error:
        train_and_evaluate(config, tmp_path / "run")
    text = str(error.value)
    assert "3 steps in a row, 1 to 3" in text
    assert "last good checkpoint is that of step 2" in text
    named = re.findall(r"\S+/train/good/\d+\.png", text)
    assert len(named) == config.train.batch_size
    assert "check_numerics" in text


def test_the_check_of_numerics_names_what_broke(tiny_config, tmp_path, monkeypatch):
    config = changed(tiny_config, "cache", enabled=False)
    config = changed(config, "train", check_numerics=True)
    break_features(monkeypatch, lambda images: jnp.ones(len(images), bool))
    with pytest.raises(UserError) as error:
        train_and_evaluate(config, tmp_path)
    assert "1 steps in a row, 1 to 1" in str(error.value)
    assert "Not finite are features.patches, gradient" in str(error.value)


def test_the_check_of_numerics_is_in_float32(tiny_config):
    config = changed(tiny_config, "encoder", dtype="bfloat16")
    config = changed(config, "train", check_numerics=True)
    assert prepare_run(config).config.encoder.dtype == "float32"
