"""Commands whose output is full, closed or of a narrow encoding end in order."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SUMMARIZE = [sys.executable, "-m", "harmoniad_jax.summarize"]


@pytest.fixture
def folder(tmp_path):
    """A run that was begun, in a folder with an umlaut."""
    folder = tmp_path / "Prüfung"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"train": {"seed": 0}}))
    return folder


@pytest.fixture(params=["", "1"], ids=["buffered", "unbuffered"])
def environment(request):
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": request.param}


def summarize(folder, environment, **options):
    return subprocess.run(
        [*SUMMARIZE, str(folder)],
        env=environment,
        text=True,
        timeout=100,
        **{"stderr": subprocess.PIPE, **options},
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_below_the_output(folder, environment):
    with open("/dev/full", "w") as full:
        done = summarize(folder, environment, stdout=full)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: a file or the output: No space left on device.")
    assert "Free some room" in line


def test_a_reader_that_has_gone(folder, environment):
    """As with `| head`: nothing is wrong, so nothing is said."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = summarize(folder, environment, stdout=closed)
    assert done.stderr == ""
    assert done.returncode == 128 + 13


def test_a_closed_output(folder, environment):
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *SUMMARIZE, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("encoding", "name"), [("ascii", "Pr\\xfcfung"), ("utf-8", "Prüfung")]
)
def test_what_the_encoding_lacks_is_spelt_out(folder, environment, encoding, name):
    environment["PYTHONIOENCODING"] = encoding
    done = summarize(folder, environment, stdout=subprocess.PIPE, encoding="utf-8")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{name} |" in done.stdout
