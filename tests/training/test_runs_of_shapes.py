"""Whole runs on products that are not square: trained, evaluated, predicted."""

import re
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from run_helpers import (
    assert_bitwise_equal,
    changed,
    final_state,
    rewritten,
    shallow,
)
from test_stepper import StopAfter, losses_of

import harmoniad_jax
from harmoniad_jax.data.shapes import COMPOSITION
from harmoniad_jax.errors import UserError
from harmoniad_jax.evaluation.evaluate import evaluate_run
from harmoniad_jax.evaluation.gallery import category_content
from harmoniad_jax.evaluation.measure import measure
from harmoniad_jax.inference.image_model import Query
from harmoniad_jax.inference.predictor import Predictor
from harmoniad_jax.inference.restore import open_trained
from harmoniad_jax.model.scoring import map_shape
from harmoniad_jax.run.run import prepare_run
from harmoniad_jax.training.data import batch_of, training_data
from harmoniad_jax.training.loop import train_and_evaluate
from harmoniad_jax.training.stepper import Stepper, make_stepper

# The shapes of an input of 32 px and patches of 8: 2 x 7 is the nearest to 1:3.
WIDE, SQUARE = (16, 56), (32, 32)


@pytest.fixture(scope="module")
def strips(products, tmp_path_factory):
    """The drawn products, of which one is cut to a strip, images and masks alike."""
    root = tmp_path_factory.mktemp("strips") / "demo"
    shutil.copytree(products, root)
    for path in (root / "fabric").rglob("*.png"):
        image = Image.open(path)
        width, height = image.size
        image.crop((0, height // 3, width, 2 * height // 3)).save(path)
    return root


@pytest.fixture(scope="module")
def config(tiny_config, strips, tmp_path_factory):
    """One device, and features in its memory."""
    config = changed(shallow(tiny_config), "data", root=str(strips), fit="aspect")
    folder = str(tmp_path_factory.mktemp("features"))
    config = changed(config, "cache", folder=folder, on_device="always")
    config = changed(config, "sharding", data=1)
    config = changed(
        config, "train", batch_size=12, log_every_steps=3, checkpoint_every_steps=100
    )
    # Little is mined in six steps: a position that crosses the threshold by rounding would
    # change its gradient tenfold.
    config = changed(config, "loss", easy_within=0.0)
    return changed(config, "calibration", holdout=0.4)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "strips"
    return workdir, train_and_evaluate(config, workdir)


@pytest.fixture(scope="module")
def trained(finished):
    return open_trained(finished[0])


def on_squares(config, products, fit):
    return changed(config, "data", root=str(products), fit=fit)


def test_square_products_are_seen_as_if_they_were_squashed(config, products):
    """The same inputs in the same order, the same weights, the same programs."""
    squash, aspect = (
        prepare_run(on_squares(config, products, fit)) for fit in ("squash", "aspect")
    )
    assert squash.preprocessor.all_shapes == aspect.preprocessor.all_shapes == (SQUARE,)
    record = squash.dataset.test[0]
    np.testing.assert_array_equal(squash.load_image(record), aspect.load_image(record))
    assert_bitwise_equal(squash.encoder.params, aspect.encoder.params)
    programs = []
    for run in (squash, aspect):
        state = jax.eval_shape(run.initial_state)
        images = np.zeros((8, *run.load_image(record).shape), np.uint8)
        train = jax.make_jaxpr(run.steps.train_step)
        predict = jax.make_jaxpr(run.steps.predict_step)
        programs.append(
            (
                str(train(state, run.encoder.params, images)),
                str(predict(state.params, state.statistics, run.encoder.params, images)),
            )
        )
    assert programs[0] == programs[1]


@pytest.mark.slow
def test_square_products_give_what_squashing_gives(config, products, tmp_path):
    """To the last bit."""
    results, states = [], []
    for fit in ("squash", "aspect"):
        one = on_squares(config, products, fit)
        results.append(train_and_evaluate(one, tmp_path / fit) | {"config_hash": ""})
        states.append(final_state(one, tmp_path / fit))
    assert results[0] == results[1]
    assert_bitwise_equal(*states)


def test_each_category_is_seen_in_its_shape(trained):
    run = trained.run
    shapes = {"fabric": WIDE, "tablet": SQUARE, "washer": SQUARE}
    assert run.preprocessor.shapes == shapes
    for category, shape in shapes.items():
        records = [r for r in run.dataset.test if r.category == category]
        assert run.load_image(records[0]).shape == (*shape, 3)
        prediction = Predictor(trained)(records, "")
        grid = run.encoder.grid_of(shape)
        assert prediction.distance_maps["fused"].shape[1:] == grid
        side = run.config.evaluation.map_side
        assert prediction.anomaly_maps.shape[1:] == map_shape(grid, side)
    assert map_shape((2, 7), 32) == (17, 60)


def test_records_of_two_shapes_are_not_one_batch(trained):
    with pytest.raises(ValueError, match="allowed is one"):
        Predictor(trained)(trained.run.dataset.test, "")


def test_what_is_stored_is_of_each_shape(config, trained):
    config = changed(config, "cache", on_device="never")
    run = prepare_run(config, preprocessor=trained.run.preprocessor, for_training=True)
    data = training_data(run, trained.encoder_params)
    assert data.is_encoded and list(data.batch.rows) == [WIDE, SQUARE]
    encode = jax.jit(run.encoder.encode)
    for record in {data.order[i].category: data.order[i] for i in range(48)}.values():
        image = run.load_image(record)[None]
        expected = encode(run.encoder.params, image).patches[0]
        read = data.load(record)["patches"]
        assert read.shape == expected.shape
        np.testing.assert_allclose(read, expected, rtol=2e-3, atol=2e-3)


def test_evaluation_again_gives_the_same(finished):
    workdir, results = finished
    again = evaluate_run(workdir)["per_category"]
    assert set(again) == {"fabric", "tablet", "washer"}
    for category, figures in results["per_category"].items():
        assert all(value is not None for value in figures.values())
        # On all devices, and not on the one of training: sums are in another order.
        assert again[category] == pytest.approx(figures, abs=1e-3)


def test_samples_of_the_report_are_in_their_shape(trained):
    records = [r for r in trained.run.dataset.test if r.category == "fabric"]
    predictor = Predictor(trained)
    one, maps = measure(predictor, "fabric", records)
    content = category_content(predictor, "fabric", one, maps, None)
    # Where no maps were kept, the chosen images are predicted once more.
    again = category_content(predictor, "fabric", one, None, None)
    for sample, other in zip(content.samples, again.samples, strict=True):
        assert sample.image.shape == (17, 60, 3)
        assert sample.anomaly_map.shape == sample.mask.shape == (17, 60)
        np.testing.assert_array_equal(sample.mask, other.mask)
        np.testing.assert_array_equal(sample.image, other.image)


@pytest.mark.slow
def test_the_report_shows_the_products_in_their_shape(config, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    train_and_evaluate(changed(config, "evaluation", report=True), tmp_path / "run")
    folder = tmp_path / "run" / "report"
    found = re.findall(
        r'<img src="(images/[^"]+)"[^>]* width="(\d+)" height="(\d+)"',
        (folder / "index.html").read_text(),
    )
    for name, width, height in found:
        with Image.open(folder / name) as image:
            assert image.size == (int(width), int(height))
    sizes = {(width, height) for _, width, height in found}
    assert sizes == {("60", "17"), ("32", "32")}


def test_new_images_are_judged_as_in_evaluation(finished, trained):
    """Mixed, with a broken file among them, more than fit into a batch: in their order."""
    workdir, _ = finished
    model = harmoniad_jax.load(workdir)
    records = sorted(trained.run.dataset.test, key=lambda record: record.image.name)
    expected = {}
    for category in ("fabric", "tablet", "washer"):
        some = [record for record in records if record.category == category]
        prediction = Predictor(trained)(some, "")
        pairs = zip(prediction.anomaly_maps, prediction.image_scores, strict=True)
        expected |= dict(zip(some, pairs, strict=True))
    paths = [record.image for record in records]
    # The product is not known: that of the nearest shape is taken, which is its own.
    for record, result in zip(records, model.predict(paths), strict=True):
        anomaly_map, score = expected[record]
        np.testing.assert_array_equal(result.anomaly_map, anomaly_map)
        assert result.score == score
        width, height = result.size
        for box in result.boxes:
            assert 0 <= box.left < box.right <= width
            assert 0 <= box.top < box.bottom <= height
    # As a category that it is not of, an image is seen in the shape of that one.
    (strip,) = [r.image for r in records if r.category == "fabric"][:1]
    (result,) = model.predict([strip], category="tablet")
    assert result.anomaly_map.shape == (32, 32)


def test_errors_keep_their_places_among_shapes(finished, trained, tmp_path):
    model = harmoniad_jax.load(finished[0])
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    images = {r.category: r.image for r in trained.run.dataset.test}
    paths = [images["fabric"], broken, images["tablet"], images["fabric"]]
    queries = [Query(path) for path in paths]
    results = list(model.stream(queries))
    assert [hasattr(result, "score") for result in results] == [True, False, True, True]
    np.testing.assert_array_equal(results[0].anomaly_map, results[3].anomaly_map)
    assert results[0].score == results[3].score


def test_statistics_and_thresholds_are_of_all_shapes(finished, trained):
    """Against numpy on the distances of every held-out image, one by one."""
    run, state = trained.run, trained.state
    distance = jax.jit(run.steps.distance_step)
    values = []
    for record in run.dataset.held_out:
        images = run.load_image(record)[None]
        maps = distance(state.params, trained.encoder_params, images)["fused"]
        values.append(np.asarray(maps[0]).reshape(maps.shape[1], -1))
    values = np.concatenate(values, axis=1)
    got = jax.device_get(state.statistics)
    np.testing.assert_allclose(got.mean["fused"], values.mean(axis=1), rtol=1e-4)
    np.testing.assert_allclose(got.deviation["fused"], values.std(axis=1), rtol=1e-4)
    calibration = trained.calibration
    for category, known in calibration.per_category.items():
        records = [r for r in run.dataset.held_out if r.category == category]
        scores = Predictor(trained)(records, "").image_scores
        np.testing.assert_allclose(known.scores, np.sort(scores), rtol=1e-4, atol=1e-5)
    total = sum(len(known.scores) for known in calibration.per_category.values())
    assert len(calibration.overall.scores) == total


def assert_same_lesson(workdir, finished):
    np.testing.assert_allclose(losses_of(workdir), losses_of(finished[0]), rtol=2e-3)


@pytest.mark.slow
def test_four_devices_learn_the_same(config, finished, tmp_path):
    """A whole run. The shapes have 4 and 8 rows, of which all devices have equally many."""
    train_and_evaluate(changed(config, "sharding", data=4), tmp_path)
    assert_same_lesson(tmp_path, finished)


@pytest.mark.slow
def test_images_that_are_encoded_in_every_step_teach_the_same(config, finished, tmp_path):
    train_and_evaluate(changed(config, "cache", enabled=False), tmp_path)
    assert_same_lesson(tmp_path, finished)


def stepped(stepper, calls):
    """Losses after each of several calls, and the final state, from the beginning."""
    state, losses = stepper.begin(stepper.run.new_state()), []
    for steps in calls:
        # As if the program had been started again.
        stepper.batches.set_state(stepper.batches.get_state())
        state, metrics = stepper.advance(state, steps)
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(stepper.end(state))


@pytest.mark.parametrize(
    ("on_device", "whole", "interrupted"),
    [("never", 6 * [1], 6 * [1]), ("always", [3, 3], [1, 2, 2, 1])],
)
def test_steps_are_the_same_however_they_are_called(
    config, trained, finished, on_device, whole, interrupted
):
    """To the last bit; and the two ways to read features teach the same."""
    config = changed(config, "cache", on_device=on_device)
    run = prepare_run(config, preprocessor=trained.run.preprocessor, for_training=True)
    stepper = make_stepper(run, trained.encoder_params)
    start = stepper.batches.get_state()
    losses, state = stepped(stepper, whole)
    stepper.batches.set_state(start)
    again, other = stepped(stepper, interrupted)
    assert losses[-1] == again[-1]
    assert_bitwise_equal(state, other)
    assert losses[-1] == pytest.approx(losses_of(finished[0])[-1], rel=2e-3)


READ = {
    "from images": {"enabled": False},
    "from features": {"on_device": "never"},
    "from tables": {"on_device": "always"},
}


@pytest.fixture(scope="module")
def run_on(config, trained):
    """Makes a run: how images are read, devices, parts, dropout -> run."""

    def make(read, devices, parts=1, dropout=0.2):
        one = changed(config, "cache", **READ[read])
        one = changed(one, "sharding", data=devices)
        one = changed(one, "train", micro_batches=parts)
        one = changed(one, "model", dropout=dropout)
        return prepare_run(one, preprocessor=trained.run.preprocessor, for_training=True)

    return make


@pytest.mark.parametrize(
    ("read", "devices"), [("from images", 3), ("from features", 6), ("from tables", 3)]
)
def test_rows_that_do_not_divide_teach_the_same(run_on, finished, read, devices):
    """4 and 8 rows. Dropout draws for each row what it draws on one device."""
    run = run_on(read, devices)
    batch = batch_of(run)
    assert list(batch.rows.values()) == [4, 8] and batch.filled != batch.rows
    stepper = make_stepper(run, run.place_encoder())
    calls = 6 * [1] if stepper.steps_per_call == 1 else [3, 3]
    losses, _ = stepped(stepper, calls)
    written = losses[len(calls) // 2 - 1 :: len(calls) // 2]
    np.testing.assert_allclose(written, losses_of(finished[0]), rtol=2e-3)


def test_parts_that_rows_do_not_divide_into_teach_the_same(run_on):
    """Without dropout, which every part draws on its own."""
    found = []
    for devices, parts in ((1, 1), (3, 2)):
        run = run_on("from tables", devices, parts, dropout=0.0)
        losses, state = stepped(make_stepper(run, run.place_encoder()), [1, 1])
        found.append((losses, state.opt_state[1].mu))
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(
            one, other, rtol=1e-4, atol=1e-3 * np.abs(one).max()
        ),
        *found,
    )


def test_other_devices_go_on_with_the_same_images(run_on):
    """Whatever is filled up for them."""
    runs = [run_on("from tables", devices) for devices in (1, 6)]
    one, many = (
        Stepper(run, training_data(run, run.place_encoder())).batches for run in runs
    )
    for _ in range(3):
        next(one)
    many.set_state(one.get_state())
    for _ in range(3):
        for alone, filled in zip(next(one), next(many), strict=True):
            assert len(filled) % 6 == 0
            np.testing.assert_array_equal(filled[: len(alone)], alone)
            assert set(filled[len(alone) :]) <= {alone[-1]}


def test_a_batch_without_a_row_for_each_shape_is_refused_early(config, tmp_path):
    """Before images are read; but a run that is trained needs no batch any more."""
    cache = tmp_path / "features"
    config = changed(config, "cache", folder=str(cache))
    with pytest.raises(UserError, match="have 2 shapes and each needs a row"):
        train_and_evaluate(changed(config, "train", batch_size=1), tmp_path / "run")
    assert not cache.exists() and not (tmp_path / "run").exists()


def test_a_trained_run_is_not_refused(config, finished, tmp_path, monkeypatch):
    """Its steps may have been made by a version that shared rows in another way."""

    def refuse(*_):
        raise UserError("the batch is too small")

    shutil.copytree(finished[0], tmp_path / "run")
    monkeypatch.setattr("harmoniad_jax.training.data.share_rows", refuse)
    # On more devices than could have had rows of both shapes each.
    on_many = changed(config, "sharding", data=6)
    again = train_and_evaluate(on_many, tmp_path / "run")
    assert again["per_category"].keys() == finished[1]["per_category"].keys()


def interrupt(config, workdir, monkeypatch):
    """Trains for two calls."""
    with monkeypatch.context() as patch:
        patch.setattr("harmoniad_jax.training.loop.Agreement", StopAfter)
        with pytest.raises(KeyboardInterrupt):
            train_and_evaluate(config, workdir)


def test_a_run_that_goes_on_with_other_batches_says_so(
    config, tmp_path, monkeypatch, caplog
):
    """Once: what it saves is of this version."""
    config = changed(config, "train", log_every_steps=2)
    interrupt(config, tmp_path, monkeypatch)
    (path,) = (tmp_path / "checkpoints").glob("[0-9]*")
    with rewritten(path, "identity") as identity:
        assert identity.pop("composition") == COMPOSITION
    for _ in range(2):
        train_and_evaluate(config, tmp_path)
    assert caplog.text.count("begun by another version") == 1


@pytest.mark.slow
def test_an_interrupted_run_ends_as_an_undisturbed_one(
    config, finished, tmp_path, monkeypatch, caplog
):
    """To the last bit."""
    config = changed(config, "train", log_every_steps=2)
    interrupt(config, tmp_path, monkeypatch)
    assert final_state(config, tmp_path).step == 4
    assert train_and_evaluate(config, tmp_path) == finished[1] | {
        "config_hash": prepare_run(config).config.hash
    }
    assert_bitwise_equal(final_state(config, tmp_path), final_state(config, finished[0]))
    assert "another version" not in caplog.text


def test_a_run_cannot_be_continued_with_another_fit(config, finished):
    with pytest.raises(UserError, match="data.fit is 'squash' but was"):
        train_and_evaluate(changed(config, "data", fit="squash"), finished[0])
