"""Drift: seldom reported where there is none, soon where the light has changed."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image, ImageEnhance

import harmoniad_runtime
from harmoniad_jax.data.appearance import PROPERTIES, measure_appearance
from harmoniad_jax.errors import UserError
from harmoniad_jax.inference.drift import LEVEL
from harmoniad_jax.inference.image_model import Query, Question
from harmoniad_jax.run.normality import GoodImages, Normality
from harmoniad_jax.run.run import prepare_run
from harmoniad_jax.serving.drift import WINDOW, Drift


class Result:
    def __init__(self, score, category=None, appearance=None):
        self.score, self.category, self.appearance = score, category, appearance


class Model:
    def __init__(self, scores, appearance=()):
        maps = len(scores) * [np.zeros((1, 1))]
        normality = Normality.of(maps, np.array(scores), appearance)
        self.calibration = GoodImages({}, normality, {"a": normality})


def windows(rng, *, good_images, count, move=0.0, defective=0.0):
    """The share of windows that are reported; each has a calibration of its own."""
    moved = 0
    for _ in range(count):
        drift = Drift(Model(rng.gamma(4.0, size=good_images)))
        scores = rng.gamma(4.0, size=WINDOW) + move
        scores[: round(defective * WINDOW)] += 50
        for score in scores:
            drift.note(Result(score))
        (latest,) = drift.latest()
        moved += latest.moved
        words = f"with {'higher' if move > 0 else 'lower'} scores"
        (score,) = latest.compared
        assert not latest.moved or move == 0 or score.in_words == words
    return moved / count


@pytest.mark.parametrize("good_images", [10, 30, 100])
def test_at_most_one_window_in_a_hundred_is_a_false_alarm(good_images):
    rng = np.random.default_rng(0)
    # Three deviations of 500 draws above the level.
    limit = LEVEL + 3 * (LEVEL * (1 - LEVEL) / 500) ** 0.5
    assert windows(rng, good_images=good_images, count=500) <= limit


@pytest.mark.parametrize("move", [2.5, -2.5])
def test_a_move_is_seen(move):
    """Of a little more than a deviation, which is 2."""
    assert windows(np.random.default_rng(0), good_images=30, count=50, move=move) > 0.9


def test_some_defects_are_no_drift():
    rng = np.random.default_rng(0)
    assert windows(rng, good_images=30, count=50, defective=0.2) <= 0.1
    assert windows(rng, good_images=30, count=50, defective=0.8) > 0.9


def test_products_are_told_apart_and_errors_do_not_count():
    drift = Drift(Model(np.arange(30.0)))
    for place in range(WINDOW):
        drift.note(Result(place % 30, "a"))
        drift.note(Result(100.0, None))
        drift.note(UserError("unreadable"))
    found = {one.category: one.moved for one in drift.latest()}
    assert found == {"a": False, None: True}
    (family,) = drift.collect()
    assert {sample.labels["category"] for sample in family.samples} == {"a", ""}
    assert {sample.labels["of"] for sample in family.samples} == {"score"}
    drift.restart()
    assert drift.latest() == []


def test_a_product_is_not_compared_with_the_look_of_another():
    """Of which no image was held out: it is darker, and always was."""
    looks = [dict.fromkeys(PROPERTIES, float(place)) for place in range(30)]
    model = Model(np.arange(30.0), looks)
    model.calibration = dataclasses.replace(model.calibration, others=("b",))
    drift = Drift(model)
    for place in range(WINDOW):
        for category, light in (("a", place % 30), ("b", -100.0)):
            look = dict.fromkeys(PROPERTIES, float(light))
            drift.note(Result(place % 30, category, look))
    found = {one.category: (one.moved, len(one.compared)) for one in drift.latest()}
    assert found == {"a": (False, 1 + len(PROPERTIES)), "b": (False, 1)}


def test_darker_images_are_reported(exported, trained_run):
    """Half of the light, through a real network: its own images are not reported."""
    model = harmoniad_runtime.load(exported.path, threads=1)
    dataset = prepare_run(trained_run.config).dataset
    good = [one.image for one in [*dataset.train, *dataset.held_out]]
    good = [path for path in good if "tablet" in str(path)]
    photos = [Image.open(path).convert("RGB") for path in good]
    asked = Question(appearance=True)

    def judge(brightness):
        changed = [ImageEnhance.Brightness(one).enhance(brightness) for one in photos]
        return list(model.stream([Query(np.asarray(one)) for one in changed], asked))

    before = judge(1.0)
    known = Model([one.score for one in before], [one.appearance for one in before])
    for brightness, moved in ((1.0, False), (0.4, True)):
        results = judge(brightness)
        drift = Drift(known)
        for place in range(WINDOW):
            drift.note(results[place % len(results)])
        (latest,) = drift.latest()
        assert latest.moved == moved
        words = [one.in_words for one in latest.compared if one.moved]
        assert ("darker" in words) == moved
        assert len(latest.compared) == 1 + len(PROPERTIES)


def test_a_run_and_its_file_know_what_good_images_look_like(exported, trained_run):
    good = harmoniad_runtime.load(exported.path, threads=1).calibration
    run = prepare_run(trained_run.config)
    for category in run.dataset.categories:
        looks = [
            measure_appearance(run.load_image(record))
            for record in run.dataset.held_out
            if record.category == category
        ]
        for name in PROPERTIES:
            expected = tuple(sorted(look[name] for look in looks))
            assert good.of(category).appearance[name] == expected


def test_a_file_of_an_earlier_version_has_its_scores_compared(exported, tmp_path):
    values = json.loads(exported.path.with_suffix(".json").read_text())["calibration"]
    for part in values["per_category"].values():
        assert part.pop("appearance")
    path = exported.changed(tmp_path, calibration=values)
    drift = Drift(harmoniad_runtime.load(path, threads=1))
    look = dict.fromkeys(PROPERTIES, 0.0)
    for _ in range(WINDOW):
        drift.note(Result(0.0, "tablet", look))
    (latest,) = drift.latest()
    assert [one.name for one in latest.compared] == ["score"]
