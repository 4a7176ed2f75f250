"""Preparing is safe to interrupt, to repeat and to do twice at a time; what it says."""

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from miniatures import (
    assert_prepared,
    assert_same,
    btad,
    draw_image,
    drawn_records,
    error_of,
    leftovers,
    mvtec,
    visa,
    write_folder,
    write_tar,
    write_zip,
)

import tfds_builders
from harmoniad_jax.data.prepared import prepared_dataset
from harmoniad_jax.errors import UserError
from tfds_builders import anomaly_builder
from tfds_builders.mvtec_ad import mvtec_ad_dataset_builder
from tfds_builders.prepare import missing_data, prepare

ROOT = Path(__file__).parents[2]
COMMAND = ("-m", "tfds_builders.prepare")
# The command on a disk that stops at the sixth image, says so, and goes on when a file
# is there (or after a while, since a test may have failed).
HELD = """
import itertools, os, sys, time
from tfds_builders import anomaly_builder, prepare
read, counter = anomaly_builder._read, itertools.count(1)
def held(example):
    if next(counter) == 6:
        os.write(1, b"reading\\n")
        stop = time.monotonic() + 20
        while time.monotonic() < stop and not os.path.exists(sys.argv[1]):
            time.sleep(0.01)
    return read(example)
anomaly_builder._read = held
prepare.main(sys.argv[2:])
"""


STARTED = []


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


def start(*arguments):
    command = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    STARTED.append(command)
    return command


def start_and_hold(manual, data, *options):
    """Starts the command, which stops in the middle of the images; see `release`."""
    folders = ("--manual_dir", manual, "--data_dir", data)
    command = start("-c", HELD, data.with_name("go"), "mvtec_ad", *folders, *options)
    assert command.stdout.readline() == "reading\n"
    return command


def release(data):
    """Lets the commands that were held go on."""
    data.with_name("go").touch()


def start_second(manual, data, *options):
    """Starts the command and gives it the time to come to where it has to wait."""
    folders = ("--manual_dir", manual, "--data_dir", data)
    command = start(*COMMAND, "mvtec_ad", *folders, *options)
    time.sleep(1.5)
    assert command.poll() is None
    return command


def finish(command):
    """Status, and lines of standard output and standard error."""
    output, errors = command.communicate(timeout=120)
    return command.returncode, output.splitlines(), errors.splitlines()


def run(*arguments):
    return finish(start(*COMMAND, *arguments))


def state(folder):
    """Everything about every file below a folder, but for when it was read."""
    return {
        path: (
            path.stat().st_mtime_ns,
            path.stat().st_ino,
            path.is_file() and path.read_bytes(),
        )
        for path in Path(folder).rglob("*")
    }


def changed(manual):
    """Replaces the archive by one with another image; gives what is expected of it."""
    name = "bottle/train/good/000.png"
    image = draw_image("another.png", (20, 16))
    write_tar({**mvtec().files, name: image}, manual / "mvtec_anomaly_detection.tar.gz")
    return mvtec()._replace(
        expected=[
            drawn._replace(image=image) if drawn.path == name else drawn
            for drawn in mvtec().expected
        ]
    )


def spoil(manual):
    for path in manual.iterdir():
        path.write_bytes(path.read_bytes()[:-100])


# Once, twice and anew.


def test_the_second_call_does_nothing(manual, data):
    folder = prepare("mvtec_ad", manual, data)
    before = state(data)
    assert prepare("mvtec_ad", manual, data) == folder
    assert state(data) == before
    spoil(manual)
    assert prepare("mvtec_ad", manual, data) == folder
    assert prepare("mvtec_ad", manual / "nowhere", data) == folder
    assert state(data) == before


def test_data_sets_lie_beside_each_other(tmp_path, manual, data):
    write_zip(btad().files, manual / "btad.zip")
    write_folder(visa().files, manual / "VisA")
    draws = (mvtec, visa, btad)
    for draw in draws:
        assert prepare(draw().name, manual, data) == data / draw().name / "1.0.0"
    for draw in draws:
        assert_prepared(draw(), data)


def test_the_default_manual_folder_is_that_of_tfds(tmp_path):
    write_folder(btad().files, tmp_path / "downloads/manual/BTech_Dataset_transformed")
    prepare("btad", data_dir=str(tmp_path))
    assert_prepared(btad(), tmp_path)


def test_a_home_folder_may_be_abbreviated(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_folder(btad().files, tmp_path / "Downloads")
    assert prepare("btad", "~/Downloads", "~/data") == tmp_path / "data/btad/1.0.0"
    assert_prepared(btad(), tmp_path / "data")


def test_relative_folders_may_be_named(tmp_path, monkeypatch, manual):
    monkeypatch.chdir(tmp_path)
    prepare("mvtec_ad", "manual", "data")
    assert_prepared(mvtec(), tmp_path / "data")


def test_overwrite_prepares_anew(manual, data):
    prepare("mvtec_ad", manual, data)
    other = changed(manual)
    prepare("mvtec_ad", manual, data)
    assert_prepared(mvtec(), data)
    prepare("mvtec_ad", manual, data, overwrite=True)
    assert_prepared(other, data)


def test_overwrite_is_fine_where_nothing_was_prepared(manual, data):
    prepare("mvtec_ad", manual, data, overwrite=True)
    assert_prepared(mvtec(), data)


@pytest.mark.parametrize("cause", ["archive", "image", "nothing"])
def test_overwrite_keeps_the_old_data_where_the_new_fail(manual, data, cause):
    prepare("mvtec_ad", manual, data)
    before = state(data / "mvtec_ad/1.0.0")
    if cause == "archive":
        spoil(manual)
    elif cause == "image":
        files = {**mvtec().files, "metal_nut/test/good/001.png": b"no image"}
        write_tar(files, manual / "mvtec_anomaly_detection.tar.gz")
    else:
        manual = manual / "nowhere"
    error_of("mvtec_ad", manual, data, overwrite=True)
    assert state(data / "mvtec_ad/1.0.0") == before
    assert_prepared(mvtec(), data)


def test_data_of_one_category_more_take_overwrite(manual, data, tmp_path):
    """What was prepared from a partial copy stays until it is asked for."""
    part = mvtec().part("grid")
    write_folder(part.files, tmp_path / "part")
    prepare("mvtec_ad", tmp_path / "part", data)
    assert_prepared(part, data)
    prepare("mvtec_ad", manual, data, overwrite=True)
    assert_prepared(mvtec(), data)


# Interrupted.


def interrupt(*_, **__):
    raise KeyboardInterrupt


def interrupt_reading(monkeypatch, number):
    read, count = anomaly_builder._read, iter(range(1000))
    lock = threading.Lock()

    def reader(example):
        with lock:
            is_it = next(count) == number
        return interrupt() if is_it else read(example)

    monkeypatch.setattr(anomaly_builder, "_read", reader)


MOMENTS = {
    "the first image": lambda m: interrupt_reading(m, 0),
    "a training image": lambda m: interrupt_reading(m, 7),
    "a test image": lambda m: interrupt_reading(m, 25),
    "the last image": lambda m: interrupt_reading(m, len(mvtec().expected) - 1),
    "listing": lambda m: m.setattr(mvtec_ad_dataset_builder.Builder, "_find", interrupt),
    "counting": lambda m: m.setattr(anomaly_builder.AnomalyBuilder, "_report", interrupt),
    "finishing a split": lambda m: m.setattr(
        tfds.core.DatasetInfo, "set_splits", interrupt
    ),
    "finishing": lambda m: m.setattr(
        tfds.core.DatasetInfo, "write_to_directory", interrupt
    ),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interrupt_leaves_what_was_there(manual, data, monkeypatch, moment, overwrite):
    if overwrite:
        prepare("mvtec_ad", manual, data)
        before = state(data / "mvtec_ad/1.0.0")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        MOMENTS[moment](patch)
        prepare("mvtec_ad", manual, data, overwrite=overwrite)
    if overwrite:
        assert state(data / "mvtec_ad/1.0.0") == before
        assert_prepared(mvtec(), data)
    else:
        assert leftovers(data, "mvtec_ad") == []
    other = changed(manual)
    prepare("mvtec_ad", manual, data, overwrite=overwrite)
    assert_prepared(other, data)


@pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
    reason="a shell's background jobs ignore Ctrl-C, and hand that down",
)
def test_control_c_says_so_and_leaves_nothing(manual, data):
    command = start_and_hold(manual, data)
    command.send_signal(signal.SIGINT)
    release(data)
    status, output, errors = finish(command)
    assert status == 130
    assert output == []
    assert errors[-1].startswith("interrupted")
    assert not any("Traceback" in line for line in errors)
    assert leftovers(data, "mvtec_ad") == []


def test_a_killed_process_does_no_harm(manual, data):
    command = start_and_hold(manual, data)
    command.kill()
    assert finish(command)[0] == -signal.SIGKILL
    assert not tfds_builders.BUILDERS["mvtec_ad"](data_dir=str(data)).is_prepared()
    with pytest.raises(UserError):
        prepared_dataset(data / "mvtec_ad/1.0.0")
    assert leftovers(data, "mvtec_ad") != []
    prepare("mvtec_ad", manual, data)
    assert_prepared(mvtec(), data)


def test_a_process_killed_while_it_overwrites_does_no_harm(manual, data):
    prepare("mvtec_ad", manual, data)
    other = changed(manual)
    command = start_and_hold(manual, data, "--overwrite")
    command.kill()
    finish(command)
    prepare("mvtec_ad", manual, data, overwrite=True)
    assert_prepared(other, data)


@pytest.mark.parametrize("overwrite", [False, True])
def test_old_data_outlive_a_kill_and_a_failure(manual, data, overwrite):
    """The old data are the only ones while the new ones are not complete."""
    prepare("mvtec_ad", manual, data)
    command = start_and_hold(manual, data, "--overwrite")
    command.kill()
    finish(command)
    spoil(manual)
    with contextlib.suppress(UserError):
        prepare("mvtec_ad", manual, data, overwrite=overwrite)
    assert_same(drawn_records("mvtec_ad", data), mvtec().expected)


def test_old_data_can_be_read_while_they_are_overwritten(manual, data):
    """A training run that starts meanwhile needs them."""
    folder = prepare("mvtec_ad", manual, data)
    other = changed(manual)
    command = start_and_hold(manual, data, "--overwrite")
    dataset = prepared_dataset(folder)
    expected = [d.image for d in mvtec().expected if d.split == "train"]
    assert [record.image.read_bytes() for record in dataset.train] == expected
    release(data)
    assert finish(command)[0] == 0
    assert_prepared(other, data)


@pytest.mark.parametrize("lost", ["dataset_info.json", "features.json", "everything"])
def test_what_is_left_of_a_data_set_is_not_taken_for_it(manual, data, lost):
    """A copy that was interrupted, a folder that was emptied."""
    folder = prepare("mvtec_ad", manual, data)
    for path in folder.iterdir():
        if lost in (path.name, "everything"):
            path.unlink()
    try:
        prepare("mvtec_ad", manual, data)
    except UserError as error:
        assert "--overwrite" in str(error)
        prepare("mvtec_ad", manual, data, overwrite=True)
    assert_prepared(mvtec(), data)


# Two at a time.


@pytest.mark.parametrize("options", [(), ("--overwrite",)])
def test_two_processes_at_once_both_succeed(manual, data, options):
    first = start_and_hold(manual, data, *options)
    second = start_second(manual, data, *options)
    release(data)
    for command in (first, second):
        status, output, errors = finish(command)
        assert status == 0, errors
        assert output == [f"mvtec_ad is prepared in {data / 'mvtec_ad/1.0.0'}"]
    assert_prepared(mvtec(), data)


def test_the_second_process_takes_over_from_a_killed_one(manual, data):
    first = start_and_hold(manual, data)
    second = start_second(manual, data)
    first.kill()
    assert finish(second)[0] == 0
    assert_prepared(mvtec(), data)


def test_a_process_that_has_to_wait_says_so(manual, data):
    (data / "mvtec_ad").mkdir(parents=True)
    with (data / "mvtec_ad/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = start_second(manual, data)
    status, _, errors = finish(command)
    assert status == 0
    assert any("waiting" in line and str(data / "mvtec_ad") in line for line in errors)
    assert_prepared(mvtec(), data)


def test_several_threads_at_once_all_succeed(manual, data):
    errors = []

    def work():
        try:
            prepare("mvtec_ad", manual, data)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert_prepared(mvtec(), data)


def test_a_lock_that_was_left_behind_stops_nobody(manual, data):
    (data / "mvtec_ad").mkdir(parents=True)
    (data / "mvtec_ad/.lock").write_text("")
    started = time.monotonic()
    prepare("mvtec_ad", manual, data)
    assert time.monotonic() - started < 30
    assert_prepared(mvtec(), data)


# Nothing to prepare from.

WANTED = {
    "mvtec_ad": (
        "mvtec_anomaly_detection.tar.xz",
        "bottle.tar.xz",
        "https://www.mvtec.com",
    ),
    "visa": ("VisA_20220922.tar", "https://github.com/amazon-science/spot-diff"),
    "btad": ("btad.zip", "https://github.com/pankajmishra000/VT-ADL"),
}


@pytest.mark.parametrize("name", WANTED)
@pytest.mark.parametrize("there", ["nothing", "an empty folder", "other things", "a file"])
def test_what_to_download_and_where_to_put_it_is_said(tmp_path, name, there):
    manual = tmp_path / "manual"
    if there == "a file":
        manual.write_text("")
    elif there != "nothing":
        manual.mkdir()
    if there == "other things":
        for file in ("bottle.txt", "my_VisA_20220922.tar", "btad.rar", "thesis.pdf"):
            (manual / file).write_text("")
        for folder in ("bottle/train", "candle/Data", "01/train", "btad.zip", "VisA.tar"):
            (manual / folder).mkdir(parents=True)
    message = error_of(name, manual, tmp_path / "data")
    for words in (str(manual), *WANTED[name]):
        assert words in message
    assert missing_data(name, str(manual), str(tmp_path / "data")) == message


@pytest.mark.parametrize("name", WANTED)
def test_nothing_is_missing_where_there_is_something(tmp_path, name):
    draw = {"mvtec_ad": mvtec, "visa": visa, "btad": btad}[name]
    write_folder(draw().files, tmp_path / "manual")
    assert missing_data(name, str(tmp_path / "manual"), str(tmp_path)) == ""
    prepare(name, tmp_path / "manual", tmp_path)
    assert missing_data(name, str(tmp_path / "nowhere"), str(tmp_path)) == ""
    assert missing_data(name, str(tmp_path / "nowhere"), str(tmp_path), overwrite=True)


@pytest.mark.parametrize("form", ["folder", ".tar.xz", ".zip"])
def test_a_category_without_training_images_is_one_line(tmp_path, form):
    files = {
        name: content
        for name, content in mvtec().part("bottle").files.items()
        if "train/good" not in name
    }
    if form == "folder":
        write_folder(files, tmp_path / "manual")
        (tmp_path / "manual/bottle/train/good").mkdir(parents=True)
    else:
        write = write_zip if form == ".zip" else write_tar
        write(files, tmp_path / f"manual/bottle{form}")
    message = error_of("mvtec_ad", tmp_path / "manual", tmp_path / "data")
    assert str(tmp_path / "manual") in message
    assert "training" in message


@pytest.mark.parametrize("place", ["data", "data/mvtec_ad"])
def test_a_file_where_the_data_shall_go_is_one_line(tmp_path, manual, place):
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text("mine")
    with pytest.raises(UserError) as error:
        prepare("mvtec_ad", manual, tmp_path / "data")
    assert len(str(error.value).splitlines()) == 1
    assert str(tmp_path / place) in str(error.value)
    assert (tmp_path / place).read_text() == "mine"


# The command.


def test_the_command_prepares_all_that_are_named_and_prints_where(manual, data):
    write_zip(btad().files, manual / "btad.zip")
    status, output, errors = run(
        "mvtec_ad", "btad", "--manual_dir", manual, "--data_dir", data
    )
    assert status == 0, errors
    assert output == [
        f"{name} is prepared in {data / name / '1.0.0'}" for name in ("mvtec_ad", "btad")
    ]
    # Besides, it says what was read and what differs, without the noise of libraries.
    assert any("expected 264 training, 21 good" in line for line in errors)
    assert all(re.match("(mvtec_ad|btad): ", line) for line in errors), errors
    for draw in (mvtec, btad):
        assert_prepared(draw(), data)


def test_the_command_does_nothing_twice(manual, data):
    prepare("mvtec_ad", manual, data)
    before = state(data)
    status, output, errors = run("mvtec_ad", "--data_dir", data)
    assert (status, errors) == (0, [])
    assert output == [f"mvtec_ad is prepared in {data / 'mvtec_ad/1.0.0'}"]
    assert state(data) == before


@pytest.mark.parametrize("bad", ["archive", "nothing", "name", "option", "no name"])
def test_the_command_says_what_is_wrong_in_one_line(manual, data, bad):
    arguments = ["mvtec_ad", "--manual_dir", manual, "--data_dir", data]
    if bad == "archive":
        spoil(manual)
    elif bad == "nothing":
        arguments[2] = manual / "nowhere"
    elif bad == "name":
        arguments[0] = "mvtec"
    elif bad == "option":
        arguments.append("--overwite")
    else:
        del arguments[0]
    status, output, errors = run(*arguments)
    assert (status, output) == (2, [])
    assert errors[-1].startswith("error: "), errors[-1]
    # A damaged archive is said to be read first.
    assert len(errors) == 1 + (bad == "archive"), errors
    if bad == "name":
        assert "'mvtec'" in errors[-1]
        assert "mvtec_ad" in errors[-1]
    assert leftovers(data, "mvtec_ad") == []


def test_what_was_prepared_before_an_error_stays(manual, data):
    status, output, errors = run(
        "mvtec_ad", "visa", "--manual_dir", manual, "--data_dir", data
    )
    assert status == 2
    assert output == [f"mvtec_ad is prepared in {data / 'mvtec_ad/1.0.0'}"]
    assert "VisA_20220922.tar" in errors[-1]
    assert_same(drawn_records("mvtec_ad", data), mvtec().expected)


def test_the_command_explains_itself():
    status, output, _ = run("--help")
    text = " ".join(output)
    assert status == 0
    for words in (*tfds_builders.BUILDERS, "--manual_dir", "--data_dir", "--overwrite"):
        assert words in text


def test_nothing_is_printed_by_the_function(manual, data, capfd):
    """Training prepares as well: its own output stays its own."""
    prepare("mvtec_ad", manual, data)
    assert capfd.readouterr().out == ""
    assert os.environ.get("TFDS_DATA_DIR") is None
