"""Serves a model: an HTTP API, and a page for people at the line.

    python -m harmoniad_jax.serve runs/a
    python -m harmoniad_jax.serve model.onnx --port 8080

With an exported file JAX need not be installed. See docs/guide-serve.md.
"""

import argparse
import dataclasses
import importlib.util
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from harmoniad_jax import terminal
from harmoniad_jax.errors import UserError

# What must be importable, and the packages that it is in.
NEEDED = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "python_multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
}
LOCAL = ("127.0.0.1", "::1", "localhost")
# Flags that --mqtt_ begins, and all that mean something with --watch alone.
OF_MQTT = ("topic", "user", "password_file", "tls", "ca")
OF_WATCH = ("output", "category", "webhook", "mqtt", *(f"mqtt_{name}" for name in OF_MQTT))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command's entry point; returns the exit status."""
    flags = _parser().parse_args(arguments)

    def run() -> int:
        _check_installed()
        # Imported late: a mistake in the flags is reported without waiting for these.
        from harmoniad_jax.serving.guards import read_token
        from harmoniad_jax.serving.limits import Limits
        from harmoniad_jax.serving.opening import open_model
        from harmoniad_jax.serving.server import bind, serve

        names = [field.name for field in dataclasses.fields(Limits)]
        given = {name: getattr(flags, f"max_{name}") for name in names}
        given = {name: value for name, value in given.items() if value is not None}
        limits = Limits(**given)
        collect = Path(flags.collect).expanduser() if flags.collect else None
        token = read_token(flags.token_file) if flags.token_file else None
        watched = _watched(flags)
        public = flags.host not in LOCAL
        if public and not token and not flags.no_auth:
            raise UserError(
                f"--host={flags.host} lets other machines in: add --token_file=FILE, whose "
                "token they must send, or --no_auth to let everyone in."
            )
        host = "127.0.0.1" if flags.host == "localhost" else flags.host
        with bind(host, flags.port) as listener:
            opened = open_model(
                flags.model,
                encoder=flags.encoder,
                white_level=flags.white_level,
                providers=tuple(flags.provider.split(",")),
                threads=flags.threads,
            )
            options = {"collect": collect, "watched": watched, "token": token}
            serve(opened, listener, limits, any_host=public, **options)
        return 0

    terminal.configure_output()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    return terminal.run(run)


def _watched(flags: argparse.Namespace):
    """What `--watch` asks for; None if it is not given.

    Raises:
      UserError: a flag that it needs is missing, or one is given without it.
    """
    from harmoniad_jax.serving.mqtt import read_broker
    from harmoniad_jax.serving.watch import Watched

    of_mqtt = {name: getattr(flags, f"mqtt_{name}") for name in OF_MQTT}
    given = [name for name in OF_WATCH if getattr(flags, name) not in (None, False)]
    if flags.watch is None:
        if given:
            raise UserError(f"--{given[0]} goes with --watch=DIR; add it.")
        return None
    needs_broker = [name for name in given if name.startswith("mqtt_")]
    if needs_broker and flags.mqtt is None:
        raise UserError(f"--{needs_broker[0]} goes with --mqtt=HOST; add it.")
    if flags.output is None:
        raise UserError("--watch needs --output=DIR, a folder for its results.")
    folder, output = (Path(one).expanduser() for one in (flags.watch, flags.output))
    broker = None if flags.mqtt is None else read_broker(flags.mqtt, **of_mqtt)
    return Watched(folder, output, flags.category, webhook=flags.webhook, mqtt=broker)


def _parser() -> argparse.ArgumentParser:
    parser = terminal.Parser(
        prog="python -m harmoniad_jax.serve",
        description=__doc__.partition("\n")[0],
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="A finished run's folder, or an exported .onnx.")
    add("--port", type=int, default=8080, help="0: any that is free.")
    add("--host", default="127.0.0.1", help="Address to listen at; 0.0.0.0: all.")
    add("--token_file", "--token-file", help="File with the token that clients send.")
    add("--no_auth", "--no-auth", action="store_true", help="Other machines need none.")
    add("--collect", help="Folder for images that were good after all.")
    add("--watch", help="Folder whose images are judged as they come.")
    add("--output", help="Of --watch: folder for results.jsonl.")
    add("--category", help="Of --watch: product of all images.")
    add("--webhook", help="Of --watch: address that gets every result.")
    add("--mqtt", help="Of --watch: HOST[:PORT] of a broker that gets every result.")
    add("--mqtt_topic", help="harmoniad/results if not given.")
    add("--mqtt_user", help="Name at the broker.")
    add("--mqtt_password_file", help="File with the password.")
    add("--mqtt_tls", action="store_true", help="Encrypt the connection.")
    add("--mqtt_ca", help="Certificates to trust, if not the system's; encrypts too.")
    add("--encoder", help="Of a run: where the encoder is now.")
    add("--white_level", type=float, help="White of images deeper than 8 bits.")
    add("--provider", default="CPUExecutionProvider", help="Of ONNX Runtime.")
    add("--threads", type=int, help="That compute, of an exported file.")
    add("--max_megabytes", type=float, help="Of a request; 64 if not given.")
    add("--max_megapixels", type=float, help="Of an image; 100.")
    add("--max_images", type=int, help="Of a request; 32.")
    add("--max_seconds", type=float, help="For a request; 60.")
    add("--max_queue", type=int, help="Images that wait; 64.")
    add("--max_requests", type=int, help="At once; 32.")
    return parser


def _check_installed() -> None:
    missing = [name for module, name in NEEDED.items() if not _is_installed(module)]
    if missing:
        raise UserError(
            f"{', '.join(missing)} must be installed to serve: pip install "
            "'harmoniad-jax[serve]'."
        )


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


if __name__ == "__main__":
    sys.exit(main())
