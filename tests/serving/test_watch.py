"""A watched folder: every image once, whatever stops the server."""

import json
import os
import shutil
import signal
import threading
import time
from types import SimpleNamespace

import pytest
from serving_helpers import command, wait_until

import harmoniad_runtime
from harmoniad_jax.errors import UserError
from harmoniad_jax.run.run import prepare_run
from harmoniad_jax.serving import answers, watch
from harmoniad_jax.serving.batcher import Batcher
from harmoniad_jax.serving.limits import Limits


@pytest.fixture(scope="module")
def images(trained_run):
    dataset = prepare_run(trained_run.config).dataset
    return [record.image for record in [*dataset.test, *dataset.held_out]]


@pytest.fixture(scope="module")
def model(exported):
    return harmoniad_runtime.load(exported.path, threads=1)


@pytest.fixture
def batcher(model):
    batcher = Batcher(model, capacity=8)
    yield batcher
    batcher.close()


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.05)
    (tmp_path / "in").mkdir()
    return tmp_path / "in", tmp_path / "out"


def watching(batcher, places, **options):
    watched = watch.Watched(*places, **{"patience": 0.3, **options})
    return watch.Watcher(batcher, watched, Limits(), lambda result: None)


def rows_of(output):
    path = output / watch.RESULTS
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_image_is_judged_once_as_predict_does(batcher, model, places, images):
    folder, output = places
    for place in range(3):
        shutil.copy(images[place], folder / f"{place}.png")
    (folder / "tablet").mkdir()
    (folder / "notes.txt").write_text("no image")
    watcher = watching(batcher, places)
    watcher.start()
    wait_until(lambda: len(rows_of(output)) == 3)
    shutil.copy(images[3], folder / "tablet" / "late.png")
    wait_until(lambda: len(rows_of(output)) == 4)
    time.sleep(0.3)
    watcher.close()
    found = {row["path"]: row for row in rows_of(output)}
    assert len(found) == len(rows_of(output)) == 4
    for path, row in found.items():
        category = "tablet" if "tablet" in path else None
        (expected,) = model.predict([folder / path], category=category)
        assert row["score"] == pytest.approx(expected.score, rel=1e-5)
        assert row["verdict"] == ("defective" if expected.is_defective else "good")
        assert row["category"] == category
    # Started again it judges what is new: here a file with another content.
    shutil.copy(images[5], folder / "0.png")
    again = watching(batcher, places)
    again.start()
    wait_until(lambda: len(rows_of(output)) == 5)
    time.sleep(0.3)
    again.close()
    assert [row["path"] for row in rows_of(output)].count("0.png") == 2
    assert len(rows_of(output)) == 5


def test_a_file_that_is_being_written_is_waited_for(batcher, places, images):
    folder, output = places
    data = images[0].read_bytes()
    watcher = watching(batcher, places, patience=2.0)
    watcher.start()
    with (folder / "slow.png").open("wb") as file:
        for part in range(4):
            quarter = len(data) // 4 + 1
            file.write(data[part * quarter : (part + 1) * quarter])
            file.flush()
            time.sleep(0.2)  # longer than two polls
    wait_until(lambda: rows_of(output))
    watcher.close()
    (row,) = rows_of(output)
    assert row["error"] == "" and row["size"] == len(data)


def test_what_cannot_be_read_is_reported_once(batcher, places, images):
    folder, output = places
    (folder / "broken.png").write_bytes(images[0].read_bytes()[:100])
    shutil.copy(images[0], folder / "fine.png")
    watcher = watching(batcher, places)
    watcher.start()
    wait_until(lambda: len(rows_of(output)) == 2)
    time.sleep(0.3)
    watcher.close()
    errors = {row["path"]: row["error"] for row in rows_of(output)}
    assert errors["fine.png"] == "" and "broken.png" in errors["broken.png"]
    assert len(rows_of(output)) == 2


def test_half_a_line_is_cut_off(batcher, places, images):
    folder, output = places
    output.mkdir()
    (output / watch.RESULTS).write_text('{"path": "0.png", "si')
    shutil.copy(images[0], folder / "0.png")
    watcher = watching(batcher, places)
    watcher.start()
    wait_until(lambda: rows_of(output))
    watcher.close()
    assert [row["path"] for row in rows_of(output)] == ["0.png"]


def test_clients_come_first(batcher, places, images, monkeypatch):
    """With a full queue it waits, and loses nothing."""
    folder, output = places
    shutil.copy(images[0], folder / "0.png")
    free = threading.Event()
    original = batcher.submit

    def submit(queries, question):
        if not free.is_set():
            raise watch.BusyError(1)
        return original(queries, question)

    monkeypatch.setattr(batcher, "submit", submit)
    watcher = watching(batcher, places)
    watcher.start()
    time.sleep(0.3)
    assert not rows_of(output)
    free.set()
    wait_until(lambda: rows_of(output))
    watcher.close()


def test_a_file_name_that_is_not_text_is_spelt_out(batcher, places, images):
    """Archives made on Windows leave such names. The line keeps the path as it is."""
    folder, output = places
    names = [os.fsdecode(name) for name in (b"t\xfcr.png", b"broken-\xff.png")]
    try:
        shutil.copy(images[0], folder / names[0])
    except OSError:
        pytest.skip("this file system takes text alone")
    (folder / names[1]).write_bytes(images[0].read_bytes()[:100])
    watcher = watching(batcher, places)
    watcher.start()
    wait_until(lambda: len(rows_of(output)) == 2)
    last, rows = watcher.after(0)
    watcher.close()
    answer = json.loads(answers.Watched(last=last, results=rows).model_dump_json())
    found = {row["name"]: row for row in answer["results"]}
    assert set(found) == {"t\\udcfcr.png", "broken-\\udcff.png"}
    assert found["t\\udcfcr.png"]["verdict"] and found["broken-\\udcff.png"]["error"]
    assert watcher.image_data(found["t\\udcfcr.png"]["number"], "t\\udcfcr.png")
    assert {row["path"] for row in rows_of(output)} == set(names)
    again = watching(batcher, places)
    again.start()
    time.sleep(0.3)
    again.close()
    assert len(rows_of(output)) == 2


def test_the_latest_are_listed_while_images_come(batcher, places):
    watcher = watching(batcher, places)
    end, row = threading.Event(), SimpleNamespace(number=1)

    def come():
        while not end.is_set():
            watcher._latest.append((None, row))

    thread = threading.Thread(target=come)
    thread.start()
    try:
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            watcher.after(0)
    finally:
        end.set()
        thread.join()
        watcher.close()


def test_mistakes(batcher, places, tmp_path):
    folder, output = places
    with pytest.raises(UserError, match="not a folder"):
        watching(batcher, (tmp_path / "nosuch", output))
    with pytest.raises(UserError, match="http"):
        watching(batcher, places, webhook="ftp://localhost")
    with pytest.raises(UserError, match="unknown"):
        watching(batcher, places, category="nosuch")
    first = watching(batcher, places)
    with pytest.raises(UserError, match="another server"):
        watching(batcher, places)
    first.close()
    (output / watch.RESULTS).write_text("[1]\n")
    with pytest.raises(UserError, match=r"damaged.*\*\.offset"):
        watching(batcher, places)


def test_a_killed_server_loses_nothing(exported, images, tmp_path):
    """Killed while it judges, and started again: a line for each image, and no more."""
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for place, path in enumerate(5 * images):
        shutil.copy(path, folder / f"{place}.png")
    count = 5 * len(images)
    flags = (exported.path, "--watch", folder, "--output", output, "--threads", 1)
    with pytest.raises(AssertionError), command(*flags) as (_, process):
        wait_until(lambda: (output / watch.RESULTS).exists() and rows_so_far(output) >= 8)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        assert rows_so_far(output) < count
    with command(*flags):
        wait_until(lambda: rows_so_far(output) >= count)
    paths = [row["path"] for row in rows_of(output)]
    assert sorted(paths) == sorted(f"{place}.png" for place in range(count))


@pytest.mark.slow
def test_a_server_that_is_killed_again_and_again_under_load_loses_nothing(exported, images):
    """Clients ask and photos are written meanwhile: see benchmarks/torture_serve.py."""
    from torture_serve import torture

    outcome = torture(exported.path, images, kills=4, count=200, clients=2)
    assert (outcome.lost, outcome.twice, outcome.wrong) == (0, 0, 0)
    assert outcome.photos == 200 and outcome.answers["200"] > 0
    disturbed = [lines for lines in outcome.at_kills if 0 < lines < 200]
    assert disturbed, "no kill came while photos were judged"


def rows_so_far(output):
    return (output / watch.RESULTS).read_bytes().count(b"\n")
