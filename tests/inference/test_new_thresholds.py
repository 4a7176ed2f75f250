"""Thresholds by new good photos: what changes, what stays, and what is warned of."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from hostile_images import noise
from PIL import Image
from scipy import stats

import harmoniad_jax
import harmoniad_runtime
from harmoniad_jax.calibrate import main
from harmoniad_jax.errors import UserError
from harmoniad_jax.inference import new_thresholds
from harmoniad_jax.inference.calibrate import (
    calibrate,
    expected_false_alarms,
    suspicious,
)
from harmoniad_jax.run.normality import PIXEL_SHARES, Normality, merged

CATEGORY = "tablet"


@pytest.fixture
def file(exported, tmp_path):
    """A copy of the exported file, since calibrations are stored beside it."""
    return shutil.copy(exported.path, tmp_path / "model.onnx")


@pytest.fixture
def good(tmp_path):
    """Eight photos unlike those of training."""
    folder = tmp_path / "good"
    folder.mkdir()
    for seed in range(8):
        Image.fromarray(noise(48, 48, seed)).save(folder / f"{seed}.png")
    return folder


def load(path):
    return harmoniad_runtime.load(path, threads=1)


def test_new_photos_set_the_thresholds_of_their_product_alone(file, good):
    before = load(file)
    scores = [one.score for one in before.predict(sorted(good.iterdir()))]
    said = []
    calibrate(before, file, good, CATEGORY, said.append)
    after = load(file)
    known = after.calibration.of(CATEGORY)
    assert known.scores == pytest.approx(sorted(scores), rel=1e-5)
    for name in set(after.categories) - {CATEGORY}:
        assert after.calibration.of(name) == before.calibration.of(name)
    count = sum(len(one.scores) for one in after.calibration.per_category.values())
    assert len(after.calibration.overall.scores) == count
    assert after.categories == before.categories
    (one,) = after.predict([good / "0.png"], category=CATEGORY)
    assert one.threshold == known.threshold(after.rates.false_positive_rate)
    assert one.is_defective is False
    # The network and what it was made with stay as they are.
    assert after.own_calibration == before.own_calibration
    text = "\n".join(said)
    assert "8 good photos" in text and "calls 8 of these photos defective" in text
    # Three images of training are too few to see a change; these eight are not.
    assert "are unlike" not in text
    for path in good.iterdir():
        Image.new("L", (48, 48), 100 + int(path.stem)).save(path)
    calibrate(after, file, good, CATEGORY, said.append)
    text = "\n".join(said)
    assert "are unlike" in text and "with less contrast" in text and "less sharp" in text


def test_a_calibration_is_undone_and_kept(file, good, capsys):
    own = load(file).calibration
    flags = [str(file), "--good", str(good), "--category", CATEGORY]
    for _ in range(2):
        assert main(flags) == 0
    assert load(file).calibration != own
    for left in (1, 0):
        assert main([str(file), "--undo"]) == 0
        assert (load(file).calibration == own) == (left == 0)
    entries = new_thresholds.read(file, own)
    assert [entry.undone for entry in entries] == [True, True]
    assert entries[0].images == {CATEGORY: 8} and entries[0].source == str(good)
    with pytest.raises(SystemExit) as exit:
        main([str(file), "--undo"])
    assert exit.value.code == 2 and "nothing to undo" in capsys.readouterr().err


def test_a_run_is_calibrated_as_its_file_is(trained_run, good, tmp_path):
    folder = shutil.copytree(trained_run.workdir, tmp_path / "run")
    model = harmoniad_jax.load(folder)
    changed = calibrate(model, folder, good, CATEGORY, lambda line: None)
    assert harmoniad_jax.load(folder).calibration == changed
    assert (folder / "thresholds.json").is_file()


def test_thresholds_stay_those_of_a_run_that_is_older_than_a_setting(file):
    stored = load(file).own_calibration

    def own(**settings):
        return dataclasses.replace(stored, settings={"map_decay": 0.1, **settings})

    entry = new_thresholds.Entry("", "", {}, own())
    new_thresholds.add(file, own(), entry)
    assert new_thresholds.read(file, own(background_share=0.0)) == [entry]
    with pytest.raises(UserError, match="another training"):
        new_thresholds.read(file, own(background_share=0.75))


def test_products_are_taken_from_folders_and_copies_once(file, good, tmp_path):
    model = load(file)
    other = next(name for name in model.categories if name != CATEGORY)
    for name in (CATEGORY, other):
        shutil.copytree(good, tmp_path / "sorted" / name)
    shutil.copy(good / "0.png", tmp_path / "sorted" / CATEGORY / "again.png")
    (tmp_path / "sorted" / CATEGORY / "bad.png").write_bytes(b"no image")
    said = []
    # The same photos lie in both folders, and each content is taken once.
    for path in (tmp_path / "sorted" / other).iterdir():
        Image.fromarray(noise(40, 40, int(path.stem) + 100)).save(path)
    changed = calibrate(model, file, tmp_path / "sorted", None, said.append)
    assert changed.held_out(CATEGORY) == changed.held_out(other) == 8
    assert any(line.startswith("left out:") and "bad.png" in line for line in said)


def test_what_cannot_be_used_is_left_out_and_the_rest_is_measured(file, good, tmp_path):
    model = load(file)
    other = next(name for name in model.categories if name != CATEGORY)
    photos = tmp_path / "mixed"
    shutil.copytree(good, photos / CATEGORY)
    (photos / other).mkdir()
    Image.fromarray(noise(48, 48, 50)).save(photos / other / "lonely.png")
    Image.fromarray(noise(48, 48, 51)).save(photos / "whose.png")
    said = []
    changed = calibrate(model, file, photos, None, said.append)
    assert changed.held_out(CATEGORY) == 8
    assert changed.of(other) == model.calibration.of(other)
    left_out = [line for line in said if line.startswith("left out:")]
    assert len(left_out) == 2
    assert "whose.png" in left_out[0] and f"1 readable photo of {other}" in left_out[1]
    (entry,) = new_thresholds.read(file, model.own_calibration)
    assert entry.images == {CATEGORY: 8}


def test_a_defective_photo_is_named(file, good):
    model = load(file)
    for path in good.iterdir():
        Image.new("L", (48, 48), 100 + int(path.stem)).save(path)
    Image.fromarray(noise(48, 48)).save(good / "scratch.png")
    said = []
    calibrate(model, file, good, CATEGORY, said.append)
    (line,) = (line for line in said if "may show a defect" in line)
    assert "scratch.png" in line and "0.png" not in line


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--good", "nosuch"], "not a folder"),
        (["--good", "{good}", "--category", "nosuch"], "nosuch"),
        (["--good", "{good}"], "--category"),
        (["--good", "{few}", "--category", CATEGORY], "5 are the least"),
        (["--good", "{empty}", "--category", CATEGORY], "no photos"),
        ([], "--undo"),
        (["--undo", "--good", "{good}"], "not both"),
    ],
)
def test_mistakes_are_one_line_and_change_nothing(
    file, good, tmp_path, capsys, flags, words
):
    few, empty = tmp_path / "few", tmp_path / "empty"
    few.mkdir()
    empty.mkdir()
    shutil.copy(good / "0.png", few)
    places = {"good": str(good), "few": str(few), "empty": str(empty)}
    with pytest.raises(SystemExit) as exit:
        main([str(file), *(flag.format(**places) for flag in flags)])
    (line,) = capsys.readouterr().err.splitlines()
    assert exit.value.code == 2 and words in line
    assert not new_thresholds.path_beside(file).exists()


def test_thresholds_of_another_training_are_refused(file, good):
    model = load(file)
    calibrate(model, file, good, CATEGORY, lambda line: None)
    path = new_thresholds.path_beside(file)
    stored = json.loads(path.read_text())
    for changes, words in (
        ({"of": "0" * 64}, "another training or export"),
        ({"format_version": 9}, "later version"),
        ({"entries": [{}]}, "damaged"),
    ):
        path.write_text(json.dumps({**stored, **changes}))
        with pytest.raises(UserError, match=words):
            load(file)
    path.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        load(file)


def test_the_interval_of_false_alarms_holds_what_it_says():
    """Over many draws of 30 good images: the true share above the threshold."""
    rng = np.random.default_rng(0)
    inside, shares = 0, []
    for _ in range(2000):
        scores = np.sort(rng.normal(size=30))
        normality = Normality(tuple(scores), (0.0,))
        expected, low, high = expected_false_alarms(normality, 0.1)
        share = stats.norm.sf(normality.threshold(0.1))
        shares.append(share)
        inside += low <= share <= high
    assert inside / 2000 == pytest.approx(0.9, abs=0.025)
    assert np.mean(shares) == pytest.approx(expected, abs=0.005)
    assert expected <= 0.1


def test_only_what_is_far_out_is_suspicious():
    assert suspicious(np.float32([1, 2, 3, 2, 1, 2, 3, 30, 20])).tolist() == [7, 8]
    assert suspicious(np.float32([1, 2, 3, 4, 5])).size == 0


def test_merged_pixels_are_those_of_all_images():
    rng = np.random.default_rng(0)
    groups = [rng.gamma(shape, size=(count, 64, 64)) for shape, count in ((2, 9), (4, 3))]
    parts = [Normality.of(list(maps), maps.max((1, 2))) for maps in groups]
    together = np.concatenate(groups)
    whole = Normality.of(list(together), together.max((1, 2)))
    found = merged(parts)
    assert found.scores == whole.scores
    # Rare shares are a matter of luck, and between a tenth and a half no level is stored.
    common = (PIXEL_SHARES > 1e-3) & (PIXEL_SHARES < 0.05)
    levels = [np.array(one.pixel_levels) for one in (found, whole)]
    np.testing.assert_allclose(levels[0][common], levels[1][common], rtol=0.02)
    np.testing.assert_allclose(levels[0][:2], levels[1][:2], rtol=0.25)
    assert np.all(np.diff(found.pixel_levels) >= 0)
    assert merged(parts[:1]) == parts[0]
