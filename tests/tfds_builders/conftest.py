"""A manual folder and a folder for prepared data; what a test started ends with it."""

import pytest
from miniatures import mvtec, write_tar
from prepare_helpers import STARTED


@pytest.fixture(autouse=True)
def no_process_outlives_its_test():
    yield
    while STARTED:
        with STARTED.pop() as command:
            command.kill()


@pytest.fixture
def manual(tmp_path):
    """A manual folder with a miniature of MVTec AD in its archive."""
    path = tmp_path / "manual/mvtec_anomaly_detection.tar.gz"
    write_tar(mvtec().files, path, "mvtec_anomaly_detection/")
    return path.parent


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"
