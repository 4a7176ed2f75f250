"""Preparing is safe to interrupt, to kill and to do twice at a time."""

import contextlib
import fcntl
import signal
import threading
import time

import pytest
import tensorflow_datasets as tfds
from miniatures import assert_prepared, assert_same, drawn_records, leftovers, mvtec
from prepare_helpers import COMMAND, changed, finish, spoil, start, state

import tfds_builders
from harmoniad_jax.data.prepared import prepared_dataset
from harmoniad_jax.errors import UserError
from tfds_builders import anomaly_builder
from tfds_builders.mvtec_ad import mvtec_ad_dataset_builder
from tfds_builders.prepare import prepare

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
    """Starts the command, which says that it has to wait."""
    folders = ("--manual_dir", manual, "--data_dir", data)
    command = start(*COMMAND, "mvtec_ad", *folders, *options)
    lines = iter(command.stderr.readline, "")
    said = next((line for line in lines if "waiting for another process" in line), "")
    assert str(data / "mvtec_ad") in said
    return command


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
    assert finish(command)[0] == 0
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
