"""Results at a real broker: each of them, in order, however often it goes away."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from serving_helpers import wait_until

import harmoniad_runtime
from harmoniad_jax.errors import UserError
from harmoniad_jax.run.run import prepare_run
from harmoniad_jax.serving import mqtt, outbox, watch
from harmoniad_jax.serving.batcher import Batcher
from harmoniad_jax.serving.drift import Drift
from harmoniad_jax.serving.limits import Limits
from harmoniad_jax.serving.metrics import Metrics
from harmoniad_jax.serving.mqtt import Broker, Publisher, read_broker

paho = pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not installed")


class Mosquitto:
    """A broker on a free port; `start` and `stop` as often as is wanted."""

    def __init__(self, folder, *lines):
        path = f"{os.environ['PATH']}{os.pathsep}/usr/sbin"
        self.program = shutil.which("mosquitto", path=path)
        if not self.program:
            # Where it was installed for these tests, a skip would hide that it is gone.
            required = os.environ.get("REQUIRE_MQTT_BROKER")
            (pytest.fail if required else pytest.skip)("mosquitto is not installed")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        lines = lines or ("allow_anonymous true",)
        self.config = folder / "mosquitto.conf"
        # What a subscriber has not got yet outlives a restart.
        self.config.write_text(
            f"user root\nlistener {self.port} 127.0.0.1\npersistence true\n"
            f"persistence_location {folder}/\n" + "\n".join(lines) + "\n"
        )
        self.process = None

    def start(self):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        command = [self.program, "-c", str(self.config)]
        self.process = subprocess.Popen(command, **quiet)
        wait_until(self._listens)

    def _listens(self):
        assert self.process.poll() is None, "mosquitto ended"
        with contextlib.suppress(OSError), socket.create_connection(self.address, 1):
            return True
        return False

    @property
    def address(self):
        return "127.0.0.1", self.port

    def stop(self):
        if self.process:
            self.process.terminate()
            self.process.wait(10)
            self.process = None


class Subscriber:
    """Keeps what is published; the broker keeps it meanwhile when it is away."""

    def __init__(self, broker, topic=mqtt.TOPIC):
        self.received = []
        version = paho.CallbackAPIVersion.VERSION2
        self.client = paho.Client(version, "subscriber", clean_session=False)
        self.client.reconnect_delay_set(1, 1)
        self.client.on_message = lambda _, __, message: self.received.append(message)
        subscribed = threading.Event()
        self.client.on_subscribe = lambda *_: subscribed.set()
        self.client.connect(*broker.address)
        self.client.loop_start()
        self.client.subscribe(topic, 1)
        assert subscribed.wait(10)

    @property
    def numbers(self):
        return [json.loads(message.payload)["number"] for message in self.received]

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(outbox, "FIRST_WAIT_SECONDS", 0.02)
    monkeypatch.setattr(outbox, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(Publisher, "longest_wait", 0.05)
    monkeypatch.setattr(mqtt, "TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(mqtt, "RECONNECT_SECONDS", (0.1, 0.1))


@pytest.fixture
def broker(tmp_path):
    broker = Mosquitto(tmp_path)
    yield broker
    broker.stop()


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results.jsonl"


def append(path, *numbers):
    with path.open("a") as file:
        file.writelines(json.dumps({"number": number}) + "\n" for number in numbers)


@contextlib.contextmanager
def publishing(broker, results):
    publisher = Publisher(broker, results)
    publisher.start()
    yield publisher
    publisher.close()


def test_every_line_arrives_once_and_in_order(broker, results):
    broker.start()
    subscriber = Subscriber(broker, "line/7")
    there = Broker(*broker.address, topic="line/7")
    append(results, 1, 2, 3)
    with publishing(there, results) as publisher:
        wait_until(lambda: len(subscriber.received) == 3)
        append(results, 4)
        wait_until(lambda: len(subscriber.received) == 4)
        wait_until(lambda: publisher.waiting_bytes == 0)
    append(results, 5)
    with publishing(there, results):
        pass
    wait_until(lambda: len(subscriber.received) == 5)
    subscriber.close()
    assert subscriber.numbers == [1, 2, 3, 4, 5]
    message = subscriber.received[0]
    assert (message.topic, message.qos, message.retain) == ("line/7", 1, False)


def test_a_broker_that_comes_and_goes_gets_every_line(broker, results, caplog):
    append(results, 1, 2)
    with publishing(Broker(*broker.address), results) as publisher:
        wait_until(lambda: "no connection" in caplog.text)
        broker.start()
        subscriber = Subscriber(broker)
        append(results, 3)
        wait_until(lambda: publisher.waiting_bytes == 0)
        broker.stop()
        append(results, 4, 5)
        wait_until(lambda: not publisher._connected.is_set())
        assert publisher.waiting_bytes > 0
        broker.start()
        wait_until(lambda: publisher.waiting_bytes == 0)
        # One that accepts and does not answer: the line is sent again by the client.
        broker.process.send_signal(signal.SIGSTOP)
        append(results, 6)
        wait_until(lambda: publisher._is_sent)
        broker.process.send_signal(signal.SIGCONT)
        wait_until(lambda: publisher.waiting_bytes == 0)
    # What came before it subscribed is not its own; a line may come twice after a break.
    wait_until(lambda: 6 in subscriber.numbers)
    subscriber.close()
    later = [number for number in subscriber.numbers if number > 3]
    assert sorted(set(later)) == [4, 5, 6] and later == sorted(later)
    assert caplog.text.count("no connection") <= 2


def test_a_broker_that_is_away_does_not_hold_the_end_up(broker, results):
    append(results, 1)
    with publishing(Broker(*broker.address), results):
        pass
    assert not results.with_name("mqtt.offset").exists()


def test_a_watched_folder_is_judged_without_a_broker(
    broker, exported, trained_run, tmp_path, monkeypatch
):
    """And its results are published by the next server, when there is one."""
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.05)
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    images = prepare_run(trained_run.config).dataset.test[:3]
    for place, record in enumerate(images):
        shutil.copy(record.image, folder / f"{place}.png")
    batcher = Batcher(harmoniad_runtime.load(exported.path, threads=1), capacity=8)

    def watcher():
        watched = watch.Watched(folder, output, mqtt=Broker(*broker.address))
        return watch.Watcher(batcher, watched, Limits(), lambda result: None)

    first, lines = watcher(), output / watch.RESULTS
    first.start()
    wait_until(lambda: lines.read_bytes().count(b"\n") == 3)
    first.close()
    metrics = Metrics(batcher, Drift(batcher.model))
    metrics.add_outboxes(first.outboxes)
    waiting = f'harmoniad_results_waiting_bytes{{to="mqtt"}} {lines.stat().st_size}.0'
    assert waiting in metrics.text().decode().splitlines()
    broker.start()
    subscriber = Subscriber(broker)
    second = watcher()
    second.start()
    wait_until(lambda: len(subscriber.received) == 3)
    second.close()
    batcher.close()
    subscriber.close()
    sent = [message.payload for message in subscriber.received]
    assert sent == lines.read_bytes().splitlines()


def test_a_name_and_rights_are_needed(tmp_path, results, caplog):
    """What the broker refuses waits; it is not thrown away."""
    users, rights = tmp_path / "users", tmp_path / "rights"
    lines = ("allow_anonymous false", f"password_file {users}", f"acl_file {rights}")
    broker = Mosquitto(tmp_path, *lines)
    subprocess.run(
        [shutil.which("mosquitto_passwd"), "-b", "-c", users, "line", "secret words"],
        check=True,
        capture_output=True,
    )
    rights.write_text("user line\ntopic write allowed\n")
    for path in (users, rights):
        path.chmod(0o600)
    (tmp_path / "password").write_text("secret words\n")
    broker.start()
    append(results, 1)
    address = f"127.0.0.1:{broker.port}"
    with publishing(read_broker(address), results):
        wait_until(lambda: "Not authorized" in caplog.text)
    known = {"user": "line", "password_file": str(tmp_path / "password")}
    with publishing(read_broker(address, topic="other", **known), results):
        wait_until(lambda: "topic other: Not authorized" in caplog.text)
    assert not results.with_name("mqtt.offset").exists()
    with publishing(read_broker(address, topic="allowed", **known), results) as publisher:
        wait_until(lambda: publisher.waiting_bytes == 0)
    broker.stop()
    assert "secret" not in caplog.text


# paho leaves a socket whose handshake failed to the collector of garbage.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_connection_is_encrypted(tmp_path, results, caplog):
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    certificate, secret = tmp_path / "broker.crt", tmp_path / "broker.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            *("-out", certificate, "-keyout", secret),
        ],
        check=True,
        capture_output=True,
    )
    lines = (f"certfile {certificate}", f"keyfile {secret}", "allow_anonymous true")
    broker = Mosquitto(tmp_path, *lines)
    broker.start()
    append(results, 1)
    address = f"127.0.0.1:{broker.port}"
    with publishing(read_broker(address, tls=True), results):  # of an unknown issuer
        wait_until(lambda: "no connection" in caplog.text)
    assert not results.with_name("mqtt.offset").exists()
    with publishing(read_broker(address, ca=str(certificate)), results) as publisher:
        wait_until(lambda: publisher.waiting_bytes == 0)
    broker.stop()


def test_addresses():
    assert read_broker("broker.example") == Broker("broker.example", 1883)
    assert read_broker("10.0.0.5:99").address == "10.0.0.5:99"
    assert read_broker("[::1]:99")[:2] == ("::1", 99)
    assert read_broker("broker.example", tls=True).port == 8883
    assert read_broker("bücher.example").host == "bücher.example"
    for bad in (
        *("", "a:b", "mqtt://a", "a/b", "user@a", ":1883", "a:99999"),
        *(" h", "h ", "a b", "h\t", "a..b", ".a", f"{64 * 'a'}.example"),
    ):
        with pytest.raises(UserError, match="HOST"):
            read_broker(bad)
    home = Path("~/ca.pem").expanduser()
    assert read_broker("a", ca="~/ca.pem")[-2:] == (True, str(home))
    for bad in ("", "a/#", "+/b"):
        with pytest.raises(UserError, match="mqtt_topic"):
            read_broker("a", topic=bad)
    with pytest.raises(UserError, match="mqtt_user"):
        read_broker("a", password_file="secret")
    with pytest.raises(UserError, match="cannot be read"):
        read_broker("a", user="b", password_file="/nosuch")


def test_mistakes(results, tmp_path):
    with pytest.raises(UserError, match="mqtt_ca"):
        Publisher(read_broker("a", ca=str(tmp_path / "nosuch")), results)
    results.with_name("mqtt.offset").write_text("x")
    with pytest.raises(UserError, match="damaged"):
        Publisher(Broker("a", 1), results)
