"""The smallest run with a cache of its own, its images, and what it says."""

import logging
import shutil

import pytest
from feature_helpers import with_settings
from run_helpers import changed

from harmoniad_jax.run.run import prepare_run


@pytest.fixture(scope="session")
def plain_config(tiny_config):
    """The smallest network: these tests are about what it is given."""
    return changed(tiny_config, "model", variant="plain", plain_depth=2)


@pytest.fixture(scope="session")
def plain_run(plain_config):
    return prepare_run(plain_config)


@pytest.fixture
def run(plain_run, tmp_path):
    """A run whose cache is empty, float32."""
    folder = str(tmp_path / "cache")
    return with_settings(plain_run, "cache", folder=folder, dtype="float32")


@pytest.fixture
def photos(products, tmp_path):
    """A copy of the images that a test may change."""
    shutil.copytree(products, tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture
def log(listen):
    """The messages since it was last asked."""
    return listen(logging.INFO)
