"""A trained model, the test images of its run, and what evaluation makes of them."""

import pytest

import harmoniad_jax
from harmoniad_jax.training.checkpoints import Checkpoints
from harmoniad_jax.training.prediction import Predictor
from harmoniad_jax.training.setup import prepare_run
from harmoniad_jax.training.sharding import replicate


@pytest.fixture(scope="session")
def run(trained_run):
    return prepare_run(trained_run.config)


@pytest.fixture(scope="session")
def model(trained_run):
    return harmoniad_jax.load(trained_run.workdir)


@pytest.fixture(scope="session")
def paths(run):
    """Test images of all categories, good and defective: more than two batches."""
    found = [record.image for record in run.dataset.test]
    assert len(found) > 2 * run.config.evaluation.batch_size
    return found


@pytest.fixture(scope="session")
def evaluated(run, trained_run):
    """What evaluation makes of the test images."""
    with Checkpoints(trained_run.workdir, read_only=True) as checkpoints:
        state = checkpoints.restore(run.abstract_state()).state
    predictor = Predictor(run, state, replicate(run.mesh, run.encoder.params))
    return predictor(run.dataset.test, "test")
