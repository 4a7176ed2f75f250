"""A miniature data set and run for every test."""

import contextlib
import fcntl
import gc
import io
import json
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import environment  # noqa: F401  (before anything that imports JAX)
import hypothesis  # noqa: F401  (it looks for referrers, and finds none of what is frozen)
import pytest

from harmoniad_jax.config import Config, default_config, parse_config
from harmoniad_jax.data.synthetic import DemoSpec, write_demo_dataset

SHARED = Path(__file__).parents[2] / "shared"


def pytest_collection_finish():
    """Tracing makes many objects, and each search for garbage would visit all of JAX."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(autouse=True)
def no_watch_for_signals(monkeypatch):
    """A command that is called in this process would end it at the next test's signal."""
    monkeypatch.setattr("harmoniad_jax.signals.install", lambda end: None)


@pytest.fixture(scope="session")
def products(tmp_path_factory) -> Path:
    """Three drawn categories in the MVTec layout: 8 training, 6 test images each."""
    root = tmp_path_factory.mktemp("products") / "demo"
    spec = DemoSpec(
        side=48, train_per_category=8, test_good_per_category=2, test_per_defect=1
    )
    write_demo_dataset(root, spec)
    return root


@pytest.fixture(scope="session")
def tiny_config(products) -> Config:
    """The smallest run that has every part: a few seconds on one core."""
    config = default_config()
    config.data.root = str(products)
    config.data.image_side = 32
    config.encoder.name = "untrained"
    config.encoder.untrained.width = 32
    config.model.head_width = 16
    config.model.high_depth = config.model.low_depth = 2
    config.train.num_steps = 6
    config.train.batch_size = 8
    config.train.log_every_steps = 1
    config.train.checkpoint_every_steps = 2
    config.evaluation.batch_size = 8
    config.evaluation.map_side = 32
    config.evaluation.smoothing_sigma = 1.0
    config.evaluation.calibration_images = 16
    # Tests of thresholds and of the report switch these on.
    config.evaluation.report = False
    config.calibration.holdout = 0.0
    return parse_config(config)


class TrainedRun(NamedTuple):
    """A finished run: its settings, its folder and what training returned."""

    config: Config
    workdir: Path
    results: dict[str, Any]


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory, tiny_config) -> TrainedRun:
    """A run that holds out 3 of the 8 images of each category.

    The checkpoints of its steps 4 and 6 are kept. Its features are in a cache of its own.
    Read it, or copy it: others use it too, in the other workers as well.
    """
    # Imported late: most tests need no training.
    from harmoniad_jax.training.loop import train_and_evaluate

    config = default_config()
    config.update(tiny_config.to_dict())
    config.calibration.holdout = 0.4
    config.cache.folder = str(tmp_path_factory.mktemp("features"))
    config.evaluation.report = False
    config = parse_config(config)

    def train():
        workdir = tmp_path_factory.mktemp("runs") / "trained"
        return config, workdir, train_and_evaluate(config, workdir)

    return TrainedRun(*made_once(tmp_path_factory, "trained_run", train))


class Exported(NamedTuple):
    """An exported file, and what the command printed of it."""

    path: Path
    printed: str

    def changed(self, folder, *, description=None, **changes):
        """A copy with another description: JSON, or a function of its values."""
        import onnx

        from harmoniad_runtime.description import METADATA_KEY

        model = onnx.load(self.path)
        (entry,) = model.metadata_props
        assert entry.key == METADATA_KEY
        if description is None:
            description = json.dumps({**json.loads(entry.value), **changes})
        entry.value = description
        onnx.save(model, folder / "changed.onnx")
        return folder / "changed.onnx"


@pytest.fixture(scope="session")
def exported(trained_run, tmp_path_factory) -> Exported:
    """The trained run as a file; OpenVINO is left to a test of its own."""
    from harmoniad_jax.exporting.onnx_file import export_onnx

    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(
            "harmoniad_jax.exporting.onnx_file.openvino_runtime", lambda path: None
        )
        export_onnx(trained_run.workdir, path, images=8)
    return Exported(path, printed.getvalue())


def made_once(tmp_path_factory, name: str, make: Callable[[], Any]) -> Any:
    """What `make` returns in the worker that is first; the others wait for it."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return make()
    made = tmp_path_factory.getbasetemp().parent / name
    with made.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            made.write_bytes(pickle.dumps(make()))
        return pickle.loads(made.read_bytes())


@pytest.fixture
def listen(caplog, monkeypatch) -> Callable[[int], Callable[[], list[str]]]:
    """`listen(level)` gives a function: the messages logged since it was last asked."""
    # A run of the command line before this test may have cut the logger off.
    monkeypatch.setattr(logging.getLogger("harmoniad_jax"), "propagate", True)

    def start(level):
        caplog.set_level(level, "harmoniad_jax")

        def take():
            found = [record.getMessage() for record in caplog.records]
            caplog.clear()
            return found

        return take

    return start


@pytest.fixture(scope="session")
def real_products() -> Path:
    """Real product images, where they are at hand."""
    root = SHARED / "data" / "industrial"
    if not root.is_dir():
        pytest.skip(f"no real images at {root}")
    return root


@pytest.fixture(scope="session")
def real_encoder() -> Path:
    """A real pretrained encoder, where it is at hand."""
    folder = SHARED / "weights" / "dinov2-small"
    if not folder.is_dir():
        pytest.skip(f"no pretrained encoder at {folder}")
    return folder
