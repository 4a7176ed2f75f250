"""A run that is killed, again and again: a file of its own, since it takes longest."""

import signal

import torture_resume
from run_helpers import overrides


def test_a_killed_run_ends_as_an_undisturbed_one(
    tiny_config, tmp_path, monkeypatch, capsys
):
    """The short form of scripts/torture_resume.py: SIGKILL at random moments.

    As users run it: without the tests' compiler flags, and each of the two runs compiles
    for itself.
    """
    monkeypatch.delenv("XLA_FLAGS")
    arguments = ["--config", "configs/demo.py", *overrides(tiny_config)]
    torture_resume.torture(tmp_path, arguments, signal.SIGKILL, kills=2, seed=1)
    told = capsys.readouterr().out
    assert told.count("kill ") == 2
    assert "finished with the same bits" in told
