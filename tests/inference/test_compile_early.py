"""What is compiled early is what evaluation calls."""

import dataclasses
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from run_helpers import changed

from harmoniad_jax.features.encode import evaluation_inputs
from harmoniad_jax.inference.compile_early import compile_evaluation
from harmoniad_jax.inference.predictor import Predictor
from harmoniad_jax.inference.restore import open_trained
from harmoniad_jax.inference.trained import measured_on_good_images


@pytest.fixture
def entries(tmp_path, monkeypatch):
    """A function: what is in a compilation cache of this test's own."""
    folder = tmp_path / "compiled"
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(folder))
    reset_cache()
    yield lambda: sorted(
        path.name
        for name in ("distance", "predict")
        for path in Path(folder).glob(f"jit_{name}_step-*-cache")
    )
    jax.config.update("jax_compilation_cache_dir", before)
    reset_cache()


@pytest.mark.parametrize("stored", [False, True])
def test_evaluation_compiles_nothing_that_was_not_compiled_early(
    trained_run, entries, stored, tmp_path
):
    trained = open_trained(trained_run.workdir)
    config = changed(
        trained.run.config, "cache", evaluation=stored, folder=str(tmp_path / "features")
    )
    run = dataclasses.replace(trained.run, config=config)
    jax.clear_caches()
    compile_evaluation(run, trained.encoder_params)
    early = entries()
    assert len(early) == 2
    inputs = evaluation_inputs(run, trained.encoder_params)
    trained = dataclasses.replace(trained, run=run, inputs=inputs)
    trained = measured_on_good_images(trained)
    Predictor(trained)(run.dataset.test[:3], "predicting")
    assert entries() == early


def test_without_a_cache_nothing_is_compiled():
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        # Would fail if it looked at the run.
        compile_evaluation(None, None)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
