"""Files are whole or as they were."""

import errno
import os

import pytest

from harmoniad_jax.errors import system_problem
from harmoniad_jax.folders import check_writable, write_whole


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    write_whole(path, "before")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        write_whole(path, "after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_text_is_utf8_and_other_bytes_are_spelt_out(tmp_path):
    write_whole(tmp_path / "a.md", "ü " + os.fsdecode(b"\xfc"))
    assert (tmp_path / "a.md").read_bytes() == "ü \\udcfc".encode()


def test_a_folder_that_cannot_be_written(tmp_path):
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match="absent'"):
        check_writable(tmp_path / "absent")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "Full"), "out: Full. Free some room, and try again."),
        (PermissionError(errno.EACCES, "Denied", "in"), "in: Denied. You need the "),
        (PermissionError(errno.EACCES, "Denied", b"in"), "in: Denied. You need the "),
        (OSError("no number"), "out: no number."),
    ],
)
def test_what_the_system_refused(error, expected):
    assert system_problem(error, "out").startswith(expected)
