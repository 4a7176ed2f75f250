"""Runs the application until a signal ends it in order."""

import logging
import socket
import sys
from pathlib import Path

import uvicorn

from harmoniad_jax import signals
from harmoniad_jax.errors import UserError, system_problem
from harmoniad_jax.serving.app import make_app
from harmoniad_jax.serving.guards import LOCAL_NAMES
from harmoniad_jax.serving.limits import Limits
from harmoniad_jax.serving.opening import Opened
from harmoniad_jax.serving.watch import Watched

# Seconds that a connection may stay open without a request.
IDLE_SECONDS = 15
# Connections beside those whose requests are judged: pages, probes, scrapers.
EXTRA_CONNECTIONS = 64


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address of this machine.

    Raises:
      UserError: the port is taken, or there is no such address here.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UserError(
            f"--host={host} --port={port} cannot be listened at. {system_problem(error)} "
            "Choose another --port, or end the program that has it."
        ) from None
    except OverflowError:
        listener.close()
        raise UserError(f"--port={port} must be from 0 to 65535.") from None
    return listener


def serve(
    opened: Opened,
    listener: socket.socket,
    limits: Limits,
    *,
    collect: Path | None = None,
    watched: Watched | None = None,
    token: str | None = None,
    any_host: bool = False,
) -> None:
    """Serves until SIGTERM or Ctrl-C: what was accepted is answered, then it returns.

    Args:
      opened: what it judges with.
      listener: see `bind`.
      limits: what it accepts.
      collect, watched, token: see `make_app`.
      any_host: whether clients may call this machine by any name.
    """
    hosts = None if any_host else LOCAL_NAMES
    app = make_app(
        opened, limits, collect=collect, watched=watched, token=token, hosts=hosts
    )
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=round(limits.seconds) + 1,
        limit_concurrency=limits.requests + EXTRA_CONNECTIONS,
    )
    # It logs a traceback for what a handler has answered already, and to root.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    listener.listen()  # whoever reads the next line may ask at once
    print(f"serving {opened.path} at http://{shown}:{port}/ ; Ctrl-C ends it")
    sys.stdout.flush()
    with signals.deferred():
        uvicorn.Server(config).run(sockets=[listener])
    print("stopped: every accepted image is answered")
