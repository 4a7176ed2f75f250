"""What tests of the server share: a server in this process, and one as a command."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import uvicorn

import harmoniad_runtime
from harmoniad_jax.serving.app import make_app
from harmoniad_jax.serving.opening import Opened
from harmoniad_jax.serving.server import bind

ROOT = Path(__file__).parents[2]
# Where a command looks for modules first.
EXTRA_PATHS: list[Path] = []


@contextlib.contextmanager
def served(path, limits=None, model=None, **options):
    """A client of a server in this process, on a free port, which is ready."""
    model = model or harmoniad_runtime.load(path, threads=2)
    app = make_app(Opened(model, Path(path), "exported file"), limits, **options)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    with bind("127.0.0.1", 0) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        listening = {"sockets": [listener]}
        thread = threading.Thread(target=server.run, kwargs=listening, daemon=True)
        thread.start()
        try:
            wait_until(lambda: app.service.ready and server.started)
            with httpx.Client(base_url=address, timeout=60) as client:
                client.service = app.service
                yield client
        finally:  # its threads would keep the tests from ending
            server.should_exit = True
            thread.join(30)
        assert not thread.is_alive()


def wait_until(happens, seconds=30):
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@contextlib.contextmanager
def command(*arguments, end=signal.SIGTERM, status=0):
    """`python -m harmoniad_jax.serve` on a free port; gives its address and process."""
    search = os.pathsep.join(map(str, [*EXTRA_PATHS, ROOT]))
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "harmoniad_jax.serve"),
            *map(str, (*arguments, "--port", 0)),
        ],
        env={**os.environ, "PYTHONPATH": search, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, line + process.stderr.read()
        yield found[0], process
        process.send_signal(end)
        assert process.wait(30) == status, process.stderr.read()
        process.rest = process.stdout.read()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
