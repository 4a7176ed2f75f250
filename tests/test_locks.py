"""One process at a time, also where the file system has no locks."""

import errno
import fcntl
import logging
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from harmoniad_jax import locks
from harmoniad_jax.locks import lock


@pytest.fixture(params=["flock", errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def path(request, tmp_path, monkeypatch):
    """A path to lock, with `flock` and with each way to be without."""
    if request.param != "flock":

        def missing(*_):
            raise OSError(request.param, "None here")

        monkeypatch.setattr(fcntl, "flock", missing)
    monkeypatch.setattr(locks, "PATIENCE", 0.01)
    return tmp_path / ".lock"


@pytest.fixture
def held(tmp_path, monkeypatch):
    """The lock file of a path to lock, on a file system without locks."""

    def missing(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", missing)
    return tmp_path / ".lock-held"


def test_one_at_a_time(path):
    with lock(path):
        assert lock(path) is None
    with lock(path) as again:
        assert again is not None
    again.close()  # a second time changes nothing
    lock(path).close()


def test_a_lock_that_is_forgotten_is_let_go(path):
    claim = lock(path)
    del claim
    assert lock(path) is not None


def test_waiting(path):
    claim = lock(path)
    threading.Timer(0.2, claim.close).start()
    start = time.monotonic()
    with lock(path, wait=True):
        assert time.monotonic() - start > 0.1


def test_other_errors_are_raised(tmp_path):
    with pytest.raises(FileNotFoundError):
        lock(tmp_path / "absent" / ".lock")


def test_the_lock_file_names_its_process(held, listen):
    heard = listen(logging.WARNING)
    with lock(held.with_name(".lock")):
        assert f"process {os.getpid()} of {socket.gethostname()}" in held.read_text()
        (warning,) = heard()
        assert "no locks (No locks available), so a lock file is used" in warning
        assert lock(held.with_name(".lock")) is None
        assert f"{held} is held by process {os.getpid()}" in heard()[-1]
    assert not held.exists()


def test_a_process_that_is_gone_holds_nothing(held):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    held.write_text(f"process {gone.pid} of {socket.gethostname()}, started at 5")
    lock(held.with_name(".lock")).close()


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="as on Linux")
def test_a_later_process_of_the_same_number_holds_nothing(held):
    """In a container that was started anew, all numbers are the same."""
    held.write_text(f"process {os.getpid()} of {socket.gethostname()}, started at 5")
    lock(held.with_name(".lock")).close()


@pytest.mark.parametrize("holder", ["process 1 of elsewhere, started at 5", "", "process"])
def test_what_cannot_be_known_is_held(held, listen, holder):
    heard = listen(logging.WARNING)
    held.write_text(holder)
    assert lock(held.with_name(".lock")) is None
    assert held.read_text() == holder
    assert "delete it if that process is gone" in heard()[-1]
