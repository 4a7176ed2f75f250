"""The export command: a proven file or none, and a line for whatever is in the way."""

import dataclasses
import errno
import json
import shutil
from types import SimpleNamespace

import jax.export
import numpy as np
import onnx
import pytest
from run_helpers import call_command, changed, shallow

import harmoniad_jax
import harmoniad_runtime
from harmoniad_jax.data.preprocess import Preprocessor
from harmoniad_jax.errors import UserError
from harmoniad_jax.export import _check_installed
from harmoniad_jax.exporting import onnx_file as module
from harmoniad_jax.exporting import proof
from harmoniad_jax.exporting.measure import measured_calibration, with_latest_thresholds
from harmoniad_jax.exporting.onnx_file import export_onnx
from harmoniad_jax.exporting.program import input_shape
from harmoniad_jax.exporting.proof import Bound, Differences, compare, openvino_runtime
from harmoniad_jax.exporting.stablehlo_file import export_stablehlo
from harmoniad_jax.inference import new_thresholds
from harmoniad_jax.inference.image_model import Query
from harmoniad_jax.inference.trained import Trained
from harmoniad_jax.run.calibration import Calibration
from harmoniad_jax.run.run import prepare_run
from harmoniad_jax.training.loop import train_and_evaluate
from harmoniad_runtime.description import METADATA_KEY


@pytest.fixture(autouse=True)
def without_openvino(monkeypatch):
    monkeypatch.setattr(module, "openvino_runtime", lambda path: None)


@pytest.fixture
def converted(exported, monkeypatch):
    """Converting takes seconds: where something else is tested, it was done before."""
    monkeypatch.setattr(module, "to_onnx", lambda *_, **__: onnx.load(exported.path))


def test_the_file_and_its_description(exported, trained_run):
    assert {path.name for path in exported.path.parent.iterdir()} == {
        "model.onnx",
        "model.json",
    }
    model = onnx.load(exported.path)
    onnx.checker.check_model(model, full_check=True)
    (entry,) = model.metadata_props
    values = json.loads(entry.value)
    assert entry.key == METADATA_KEY
    assert values == json.loads(exported.path.with_suffix(".json").read_text())
    assert values["format_version"] == 1
    assert values["categories"] == ["fabric", "tablet", "washer"]
    assert values["rates"]["false_positive_rate"] == 0.01
    assert values["input"]["height"] == values["input"]["width"] == 32
    assert len(values["calibration"]["overall"]["scores"]) == 9
    assert len(values["encoder"]["weight_hash"]) == 64
    assert "'untrained'" in values["licence"]
    assert values["proof"]["source"] == "test images"
    # The batch is free, and no threshold is in the graph.
    (images,) = model.graph.input
    sizes = images.type.tensor_type.shape.dim
    assert [size.dim_param or size.dim_value for size in sizes] == ["batch", 32, 32, 3]
    assert [output.name for output in model.graph.output] == [
        "anomaly_maps",
        "image_scores",
    ]


def test_what_is_printed_of_the_proof(exported):
    lines = exported.printed.splitlines()
    assert "8 images (test images)" in lines[0]
    for line, batch in zip(lines[1:3], (1, 3), strict=True):
        assert f"batch {batch}: maps" in line and "0 verdicts flip, " in line
        assert line.endswith(" ms an image")
    assert f"{exported.path}: " in lines[3]


def test_a_file_that_differs_too_much_is_not_given_out(
    trained_run, tmp_path, monkeypatch, converted
):
    monkeypatch.setitem(proof.BOUNDS, "float32", Bound(0.0, 0.0))
    with pytest.raises(UserError, match="nothing was written.*differs from the run"):
        export_onnx(trained_run.workdir, tmp_path / "model.onnx", images=3)
    assert list(tmp_path.iterdir()) == []


def test_where_the_images_are_gone_drawn_ones_are_compared(
    trained_run, tmp_path, monkeypatch, capsys, converted
):
    def gone(config):
        raise UserError("data.root='/gone' is not a folder")

    monkeypatch.setattr("harmoniad_jax.exporting.proof.open_dataset", gone)
    export_onnx(trained_run.workdir, tmp_path / "model.onnx", images=3)
    assert "3 images (drawn images)" in capsys.readouterr().out
    with pytest.raises(UserError, match="/gone"):
        places = {"data.root": "/gone"}
        export_onnx(trained_run.workdir, tmp_path / "other.onnx", places=places)
    assert not (tmp_path / "other.onnx").exists()


def test_a_full_disk_leaves_nothing(trained_run, tmp_path, monkeypatch, converted):
    def full(path, content):
        path.write_bytes(content[:100])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(module, "write_bytes", full)
    with pytest.raises(OSError):  # `terminal.run` says so in one line
        export_onnx(trained_run.workdir, tmp_path / "model.onnx", images=3)
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_there_stay(trained_run, tmp_path):
    for name in ("model.onnx", "model.json"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(UserError, match=f"{name} is there already.*--overwrite"):
            export_onnx(trained_run.workdir, tmp_path / "model.onnx")
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("model", "must end with .onnx"),
        ("model.pt", "must end with .onnx"),
        ("folder.onnx", "is a folder; name a file"),
        ("file/model.onnx", "--output cannot be written.*file"),
    ],
)
def test_places_that_cannot_be_written(trained_run, tmp_path, output, message):
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=message) as error:
        export_onnx(trained_run.workdir, tmp_path / output)
    assert "\n" not in str(error.value)


def test_an_encoder_that_is_not_there(trained_run, tmp_path):
    encoder = str(tmp_path / "no-encoder")
    with pytest.raises(UserError, match="no-encoder.*there is no such folder") as error:
        export_onnx(trained_run.workdir, tmp_path / "model.onnx", encoder=encoder)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_in_one_line_what_is_missing(tmp_path):
    done = call_command(
        *("export", "--workdir", tmp_path / "none", "--output", tmp_path / "model.onnx")
    )
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert f"{tmp_path}/none" in line
    assert list(tmp_path.iterdir()) == []


def test_what_has_to_be_installed():
    _check_installed("json", "onnx")
    with pytest.raises(UserError, match=r"no_such must be installed.*jax\[export\]"):
        _check_installed("onnx", "no_such")


def test_a_run_that_is_not_finished(trained_run, tmp_path):
    shutil.copytree(trained_run.workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/6")
    with pytest.raises(UserError, match="step 4 of 6: finish"):
        export_onnx(tmp_path / "run", tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_a_verdict_that_flips_is_beyond_any_bound():
    close = Differences(0.0, 0.0, 0.0, 0.0, flipped=0)
    assert close.within(Bound(1e-4, 1e-4))
    assert close._replace(flipped=None).within(Bound(1e-4, 1e-4))
    assert not close._replace(flipped=1).within(Bound(1e-4, 1e-4))
    assert close._replace(flipped=1).within(Bound(1e-4, 1e-4, may_flip=True))
    assert not close._replace(relative_maps=2e-4).within(Bound(1e-4, 1e-4))
    assert not close._replace(relative_scores=2e-4).within(Bound(1e-4, 1e-4))


@pytest.mark.parametrize("wrong", [lambda m: m * np.nan, lambda m: m[:, :-1]])
def test_maps_of_no_use_are_beyond_any_bound(wrong):
    maps, scores = np.ones((2, 4, 4), np.float32), np.ones(2, np.float32)
    samples = SimpleNamespace(maps=maps, scores=scores)
    found = compare(SimpleNamespace(calibration=None), samples, wrong(maps), scores)
    assert not found.within(Bound(1e6, 1e6))


@pytest.mark.slow
def test_weights_in_half_the_room(trained_run, exported, tmp_path, capsys):
    path = tmp_path / "model.onnx"
    export_onnx(trained_run.workdir, path, precision="float16", images=6)
    assert "  float16, ONNX Runtime" in capsys.readouterr().out
    values = json.loads(path.with_suffix(".json").read_text())
    assert values["precision"] == "float16"
    assert path.stat().st_size < 0.8 * exported.path.stat().st_size
    of_run = json.loads(exported.path.with_suffix(".json").read_text())
    assert values["calibration"] == of_run["calibration"]
    assert values["score_tolerance"] > of_run["score_tolerance"]


@pytest.mark.slow
def test_stablehlo_for_services_that_run_jax(trained_run, exported, tmp_path):
    path = tmp_path / "model.stablehlo"
    export_stablehlo(trained_run.workdir, path, images=3)
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    expected = harmoniad_runtime.load(exported.path).predict_batch(images)
    for found, wanted in zip(program.call(images), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    values, onnx_values = (
        json.loads(one.with_suffix(".json").read_text()) for one in (path, exported.path)
    )
    different = {name for name in values if values[name] != onnx_values[name]}
    assert different <= {"proof", "score_tolerance"}
    assert {one.name for one in tmp_path.iterdir()} == {"model.stablehlo", "model.json"}


@pytest.mark.slow
def test_stablehlo_has_one_precision(tmp_path):
    done = call_command(
        *("export", "--workdir", tmp_path, "--output", tmp_path / "model.stablehlo"),
        *("--format=stablehlo", "--precision=int8"),
    )
    assert done.returncode == 2
    assert "--precision=int8 is for --format=onnx" in done.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:Warning:onnxruntime")
def test_a_file_in_8_bits_has_thresholds_of_its_own(trained_run, tmp_path, monkeypatch):
    monkeypatch.setitem(proof.BOUNDS, "int8", Bound(np.inf, np.inf))
    monkeypatch.setattr(Differences, "within", lambda self, bound: True)
    path = tmp_path / "model.onnx"
    export_onnx(trained_run.workdir, path, precision="int8", images=4)
    values = json.loads((tmp_path / "model.json").read_text())
    trained = harmoniad_jax.load(trained_run.workdir)
    own = values["calibration"]["per_category"]["tablet"]["scores"]
    of_run = trained._calibration.of("tablet").scores
    assert len(own) == len(of_run) and not np.allclose(own, of_run, rtol=1e-6)
    np.testing.assert_allclose(own, of_run, atol=0.5)
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert {"MatMulInteger", "DynamicQuantizeLinear", "MatMul"} <= kinds
    # An image's score does not depend on those beside it.
    model = harmoniad_runtime.load(path)
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(3)]
    images[1][:] = 0
    alone = [model.predict([image])[0].score for image in images]
    assert [result.score for result in model.predict(images)] == alone
    # Held-out images are good, as with the run.
    records = prepare_run(trained_run.config).dataset.held_out
    queries = [Query(record.image, record.category) for record in records]
    assert not any(result.is_defective for result in model.stream(queries))
    gone = {"data.root": str(tmp_path / "gone")}
    with pytest.raises(UserError, match="gone"):
        export_onnx(trained_run.workdir, tmp_path / "b.onnx", precision="int8", places=gone)


def recalibrated(folder, own):
    """Stores other thresholds in a folder, of twice the scores, and gives them."""
    one = own.of("tablet")
    doubled = dataclasses.replace(one, scores=tuple(2 * score for score in one.scores))
    good = own.with_category("tablet", doubled)
    entry = new_thresholds.Entry("2026-01-02T03:04:05+00:00", "photos", {"tablet": 3}, good)
    new_thresholds.add(folder, own, entry)
    return good


@pytest.mark.parametrize(
    ("precision", "dtype", "carried"),
    [
        ("float32", "float32", True),
        ("int8", "float32", False),
        ("float32", "bfloat16", False),
    ],
)
def test_the_latest_thresholds_are_those_of_the_file(
    exported, tmp_path, capsys, precision, dtype, carried
):
    values = json.loads(exported.path.with_suffix(".json").read_text())["calibration"]
    own = Calibration.from_json(values)
    run = SimpleNamespace(config=SimpleNamespace(encoder=SimpleNamespace(dtype=dtype)))
    trained = Trained(run, None, None, None, own)
    assert with_latest_thresholds(trained, tmp_path, precision) is trained
    good = recalibrated(tmp_path, own)
    found = with_latest_thresholds(trained, tmp_path, precision).calibration
    assert found.to_json() == (good if carried else own).to_json()
    assert isinstance(found, Calibration)
    printed = capsys.readouterr().out
    assert "2026-01-02" in printed and ("by photos" in printed) == carried


def test_thresholds_beside_an_earlier_file_are_pointed_out(
    trained_run, tmp_path, monkeypatch, converted, capsys
):
    """They hold for the same run exported again, but not once it was calibrated."""
    folder, path = tmp_path / "run", tmp_path / "model.onnx"
    shutil.copytree(trained_run.workdir, folder)
    monkeypatch.setattr(module, "_runtimes", lambda path, **_: {})
    monkeypatch.setattr(module, "tolerance_of", lambda *_: 1e-5)

    def export():
        export_onnx(folder, path, images=3, overwrite=True)
        return capsys.readouterr().out

    assert "thresholds.json" not in export()
    own = harmoniad_runtime.load(path).own_calibration
    recalibrated(path, own)
    (line,) = (one for one in export().splitlines() if "thresholds.json" in one)
    assert "holds for it too" in line
    harmoniad_runtime.load(path)
    recalibrated(folder, own)
    (line,) = (one for one in export().splitlines() if "thresholds.json" in one)
    beside = new_thresholds.path_beside(path)
    assert line.startswith(f"{beside} belongs to an earlier file") and "Delete it" in line
    with pytest.raises(UserError, match="another training or export"):
        harmoniad_runtime.load(path)
    beside.unlink()
    assert harmoniad_runtime.load(path).own_calibration != own


@pytest.mark.slow
def test_a_file_has_the_thresholds_that_were_set_last(trained_run, tmp_path):
    folder = shutil.copytree(trained_run.workdir, tmp_path / "run")
    good = recalibrated(folder, harmoniad_jax.load(folder).own_calibration)
    export_onnx(folder, tmp_path / "model.onnx", images=3)
    found = harmoniad_runtime.load(tmp_path / "model.onnx").own_calibration
    assert found.to_json() == good.to_json()


@pytest.mark.slow
def test_thresholds_need_the_held_out_images(trained_run, tmp_path):
    gone = {"data.root": str(tmp_path / "gone")}
    with pytest.raises(UserError, match="held-out images, and they are not at hand.*gone"):
        measured_calibration(trained_run.workdir, gone, runtime=None)


@pytest.mark.slow
def test_a_run_in_bfloat16_gets_thresholds_in_float32(tiny_config, tmp_path):
    config = shallow(changed(tiny_config, "encoder", dtype="bfloat16"))
    config = changed(config, "calibration", holdout=0.4)
    config = changed(config, "cache", folder=str(tmp_path / "cache"))
    train_and_evaluate(config, tmp_path / "run")
    export_onnx(tmp_path / "run", tmp_path / "model.onnx", images=6)
    model = harmoniad_runtime.load(tmp_path / "model.onnx")
    records = prepare_run(config).dataset.held_out
    queries = [Query(record.image, record.category) for record in records]
    scores = sorted(result.score for result in model.stream(queries))
    np.testing.assert_allclose(scores, model._calibration.overall.scores, atol=1e-5)
    assert not any(result.is_defective for result in model.stream(queries))


@pytest.mark.slow
def test_openvino_says_the_same(exported):
    pytest.importorskip("openvino")
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    expected = harmoniad_runtime.load(exported.path).predict_batch(images)
    name, run = openvino_runtime(exported.path)
    assert name.startswith("OpenVINO ")
    for found, wanted in zip(run(images), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_run_of_several_shapes_is_refused():
    shapes = {"rail": (28, 56), "cap": (28, 28)}
    run = SimpleNamespace(preprocessor=Preprocessor(28, shapes=shapes))
    with pytest.raises(UserError, match="inputs of 2 shapes.*data.fit=squash"):
        input_shape(SimpleNamespace(run=run))
    run.preprocessor = Preprocessor(28, shapes=dict.fromkeys(shapes, (28, 56)))
    assert input_shape(SimpleNamespace(run=run)) == (28, 56)
