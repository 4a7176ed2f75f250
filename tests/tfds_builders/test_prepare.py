"""Preparing once, twice and anew; what it says, and its command."""

import os
import re

import pytest
from miniatures import (
    assert_prepared,
    assert_same,
    btad,
    drawn_records,
    error_of,
    leftovers,
    mvtec,
    visa,
    write_folder,
    write_tar,
    write_zip,
)
from prepare_helpers import COMMAND, changed, finish, spoil, start, state

import tfds_builders
from harmoniad_jax.errors import UserError
from tfds_builders.prepare import missing_data, prepare


def run(*arguments):
    return finish(start(*COMMAND, *arguments))


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
