"""Publishes every result of a watched folder at an MQTT broker."""

import logging
import ssl
import threading
import urllib.parse
from pathlib import Path
from typing import NamedTuple

from harmoniad_jax.errors import UserError, system_problem
from harmoniad_jax.serving.outbox import Outbox

logger = logging.getLogger(__name__)

TOPIC = "harmoniad/results"
PORT, TLS_PORT = 1883, 8883
# For a connection, and for the answer to a line.
TIMEOUT_SECONDS = 2.0
RECONNECT_SECONDS = (1, 30)  # first and longest wait between two connections
AT_LEAST_ONCE = 1  # quality of service


class Broker(NamedTuple):
    """Where results are published.

    host, port: of the broker.
    topic: of all results.
    user, password: None: neither is sent.
    tls: whether the connection is encrypted.
    ca: file with certificates to trust; None: those of the system.
    """

    host: str
    port: int
    topic: str = TOPIC
    user: str | None = None
    password: str | None = None
    tls: bool = False
    ca: str | None = None

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


def read_broker(
    address: str,
    *,
    topic: str | None = None,
    user: str | None = None,
    password_file: str | None = None,
    tls: bool = False,
    ca: str | None = None,
) -> Broker:
    """The broker that the command line describes: HOST[:PORT] and more.

    Raises:
      UserError: no address, a topic with wildcards, or a password that cannot be read.
    """
    try:
        parts = urllib.parse.urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")  # as the client will: an empty or a long label is none
    except ValueError:
        parts, host, port = None, None, None
    blank = any(letter.isspace() for letter in address)
    if not host or blank or parts.netloc != address or parts.username:
        raise UserError(
            f"--mqtt={address} must be HOST or HOST:PORT, such as 10.0.0.5:1883."
        )
    topic = TOPIC if topic is None else topic
    if not topic or {"+", "#", "\0"} & set(topic):
        raise UserError(
            f"--mqtt_topic={topic} must be the name of one topic, such as {TOPIC}, without "
            "+ and #."
        )
    if password_file and not user:
        raise UserError("--mqtt_password_file needs --mqtt_user=NAME; add it.")
    password = _password(password_file) if password_file else None
    tls = tls or ca is not None
    ca = str(Path(ca).expanduser()) if ca else ca
    return Broker(host, port or (TLS_PORT if tls else PORT), topic, user, password, tls, ca)


def _password(path: str) -> str:
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"--mqtt_password_file={path} cannot be read ({error}).") from None
    return text.rstrip("\r\n")


class Publisher(Outbox):
    """Publishes lines of JSON, in order, each until the broker has confirmed it.

    With quality of service 1, "at least once", of MQTT 5 (OASIS, 2019): in version 3.1.1 a
    broker also confirms what it throws away for lack of rights.
    """

    name = "mqtt"
    longest_wait = 1.0  # connections are tried less often, see below

    def __init__(self, broker: Broker, results: Path):
        """Reads how far it was; connects to nothing yet.

        Args:
          broker: that gets the lines.
          results: the file of lines, which grows.

        Raises:
          UserError: paho-mqtt is not installed, certificates that are none, or a damaged
            file.
        """
        super().__init__(results)
        try:
            from paho.mqtt import client as paho
        except ImportError:
            raise UserError(
                "paho-mqtt must be installed for --mqtt: pip install "
                "'harmoniad-jax[serve,mqtt]'."
            ) from None
        self._broker, self._problem = broker, ""
        self._connected, self._answered = threading.Event(), threading.Event()
        self._is_sent = self._refused = False
        version = paho.CallbackAPIVersion.VERSION2
        self._client = client = paho.Client(version, protocol=paho.MQTTv5)
        client.reconnect_delay_set(*RECONNECT_SECONDS)
        client.on_connect, client.on_connect_fail = self._on_connect, self._on_no_answer
        client.on_disconnect, client.on_publish = self._on_disconnect, self._on_publish
        if broker.user:
            client.username_pw_set(broker.user, broker.password)
        if broker.tls:
            try:
                client.tls_set_context(ssl.create_default_context(cafile=broker.ca))
            except OSError as error:  # ssl.SSLError is one
                raise UserError(
                    f"--mqtt_ca={broker.ca} cannot be used. {system_problem(error)}"
                ) from None

    def start(self) -> None:
        self._client.connect_async(self._broker.host, self._broker.port)
        self._client.loop_start()
        super().start()

    def close(self) -> None:
        super().close()
        self._client.disconnect()
        self._client.loop_stop()

    def _send(self, line: bytes) -> bool:
        if not self._connected.wait(TIMEOUT_SECONDS):
            return False
        if not self._is_sent:
            self._answered.clear()
            self._client.publish(self._broker.topic, line, AT_LEAST_ONCE)
            # It stays with the client, which sends it again after a break.
            self._is_sent = True
        if not self._answered.wait(TIMEOUT_SECONDS):
            return False
        self._is_sent = False
        return not self._refused

    def _say(self, problem: str) -> None:
        """Logs what is wrong, once."""
        if problem and problem != self._problem:
            logger.warning("mqtt: %s: %s; it is tried again", self._broker.address, problem)
        self._problem = problem

    def _on_connect(self, client, userdata, flags, reason, properties) -> None:
        if reason.is_failure:
            self._say(str(reason))
        else:
            self._say("")
            self._connected.set()

    def _on_no_answer(self, client, userdata) -> None:
        self._say("no connection")

    def _on_disconnect(self, client, userdata, flags, reason, properties) -> None:
        self._connected.clear()
        if reason.is_failure:
            self._say(str(reason))

    def _on_publish(self, client, userdata, number, reason, properties) -> None:
        self._refused = reason.is_failure
        if self._refused:
            self._say(f"topic {self._broker.topic}: {reason}")
        self._answered.set()
