"""A run that is killed, again and again: a file of its own, since it takes longest."""

import os
import signal

import jax
import torture_resume
from run_helpers import overrides, shallow


def test_a_killed_run_ends_as_an_undisturbed_one(
    tiny_config, tmp_path, monkeypatch, capsys
):
    """The short form of benchmarks/torture_resume.py: SIGKILL at random moments.

    On one device, as users run it, and each of the two runs compiles for itself.
    """
    # JAX reads the flags once, at its start: the tests after this one need all devices.
    jax.devices()
    flags = os.environ["XLA_FLAGS"].split()
    fast = [flag for flag in flags if "device_count" not in flag]
    monkeypatch.setenv("XLA_FLAGS", " ".join(fast))
    arguments = ["--config", "configs/demo.py", *overrides(shallow(tiny_config))]
    torture_resume.torture(tmp_path, arguments, signal.SIGKILL, kills=2, seed=1)
    told = capsys.readouterr().out
    assert told.count("kill ") == 2
    assert "finished with the same bits" in told
