"""Where the time of a start goes."""

import time

import pytest

from harmoniad_jax import phases
from harmoniad_jax.phases import in_lines, phase, since_start


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand, and the seconds of all phases."""
    now = [0.0]
    monkeypatch.setattr(phases.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(phases, "_seconds", seconds := {})
    return now, seconds


def test_a_phase_inside_another_counts_for_itself(clock):
    now, seconds = clock
    with phase("restoring"):
        now[0] += 1
        with phase("compiling"):
            now[0] += 4
        now[0] += 2
    with phase("compiling"):
        now[0] += 8
    assert seconds == {"compiling": 12, "restoring": 3}


def test_a_phase_that_fails_counts_too(clock):
    now, seconds = clock
    with pytest.raises(ZeroDivisionError), phase("restoring"):
        now[0] += 1
        raise ZeroDivisionError
    with phase("restoring"):
        now[0] += 1
    assert seconds == {"restoring": 2}


def test_the_table_adds_up():
    lines = in_lines({"importing": 1.5, "a longer name": 0.25}, 2.0).splitlines()
    names, numbers = zip(*(line.rsplit(maxsplit=2)[:2] for line in lines), strict=True)
    assert names == ("importing", "a longer name", "other", "total")
    assert numbers == ("1.50", "0.25", "0.25", "2.00")
    assert len({len(line) for line in lines}) == 1


def test_the_age_of_this_process_grows():
    before = since_start()
    time.sleep(0.05)
    assert 0.03 < since_start() - before < 5
