"""What tests of archives share: archives written, read in time, and prepared in vain."""

import contextlib
import signal

import pytest
from miniatures import error_of, write_tar, write_zip

from harmoniad_jax.errors import UserError
from tfds_builders.archives import open_archive


def write_archive(files, path):
    write = write_zip if path.suffix == ".zip" else write_tar
    return write(files, path)


def content_of(path, temporary):
    """Everything that is in an archive."""
    with open_archive(path, temporary) as tree:
        return {name: tree.read(name) for name in tree.names}


def content_or_error(path, temporary):
    """What is in it, or None where it is refused. Nothing else may come of any bytes."""
    try:
        with limited_time(2):
            return content_of(path, temporary)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
        assert path.name in str(error)
        return None


@contextlib.contextmanager
def limited_time(seconds):
    def stop(*_):
        pytest.fail("it would go on for ever")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def spoil(path, tmp_path):
    """Prepares from `path` and gives the one line that is said; see `error_of`."""
    before = sorted(tmp_path.rglob("*"))
    message = error_of("mvtec_ad", path.parent, tmp_path / "data")
    outside = [p for p in sorted(tmp_path.rglob("*")) if tmp_path / "data" not in p.parents]
    assert [p for p in outside if p != tmp_path / "data"] == before
    return message


def damage(path, tmp_path):
    message = spoil(path, tmp_path)
    assert message.startswith(f"{path} is truncated or corrupted")
    return message
