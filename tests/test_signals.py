"""SIGTERM and Ctrl-C: deferred where work would be lost, at once elsewhere."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from harmoniad_jax.signals import Interrupted, deferred


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_deferred_and_the_second_raises(number):
    before = signal.getsignal(number)
    with deferred() as request:
        assert not request.requested
        os.kill(os.getpid(), number)
        assert (request.requested, request.number) == (True, number)
        with pytest.raises(Interrupted) as interruption:
            os.kill(os.getpid(), number)
            time.sleep(1)
    assert interruption.value.number == number
    assert signal.getsignal(number) is before


def test_an_inner_section_protects_what_an_outer_one_stops():
    with deferred() as outer:
        os.kill(os.getpid(), signal.SIGTERM)
        with deferred() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            assert inner.requested
    assert outer.requested


def test_other_threads_are_never_asked():
    requests = []

    def work():
        with deferred() as request:
            requests.append(request)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not requests[0].requested


def command(body, number, delay=0.3):
    """Sends a signal to a program in `body`; its status, output and last seconds."""
    program = f"""
        import sys, time
        from harmoniad_jax import signals

        def end(number):
            print("ended", number)
            return 75

        signals.install(end)
        print("ready", flush=True)
        {body}
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(delay)
    process.send_signal(number)
    sent = time.monotonic()
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors, time.monotonic() - sent


def test_a_command_is_interrupted_at_once():
    status, _, errors, seconds = command("time.sleep(60)", signal.SIGTERM)
    assert (status, "Interrupted: SIGTERM" in errors) == (1, True)
    assert seconds < 5


def test_a_command_that_cannot_react_is_ended():
    """Blocked in C, as while XLA compiles: Python's own handler does not run."""
    blocked = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
    status, output, _, seconds = command(blocked, signal.SIGTERM)
    assert (status, output) == (75, f"ended {int(signal.SIGTERM)}\n")
    assert seconds < 30
