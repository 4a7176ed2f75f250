"""Results are sent in order, again until they are taken, and not again after a restart."""

import http.server
import json
import threading
import time

import pytest
from serving_helpers import wait_until

from harmoniad_jax.errors import UserError
from harmoniad_jax.serving import outbox
from harmoniad_jax.serving.webhook import Webhook


@pytest.fixture
def receiver(monkeypatch):
    """A server that refuses every line `refusals` times before it takes it."""
    monkeypatch.setattr(outbox, "FIRST_WAIT_SECONDS", 0.02)
    monkeypatch.setattr(outbox, "POLL_SECONDS", 0.02)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server = self.server
            refused = server.left > 0
            server.left = server.left - 1 if refused else server.refusals
            if not refused:
                server.taken.append(json.loads(body))
            self.send_response(503 if refused else 204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.left = server.refusals = 0
    server.taken = []
    server.address = f"http://127.0.0.1:{server.server_port}/results"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def append(path, *numbers, end="\n"):
    with path.open("a") as file:
        file.writelines(json.dumps({"number": number}) + end for number in numbers)


def numbers(receiver):
    return [row["number"] for row in receiver.taken]


@pytest.mark.parametrize("refusals", [0, 2])
def test_every_line_arrives_once_and_in_order(receiver, tmp_path, refusals):
    receiver.left = receiver.refusals = refusals
    results = tmp_path / "results.jsonl"
    append(results, 1, 2, 3)
    hook = Webhook(receiver.address, results)
    hook.start()
    wait_until(lambda: len(receiver.taken) == 3)
    append(results, 4)
    wait_until(lambda: len(receiver.taken) == 4)
    hook.close()
    append(results, 5)
    receiver.left = receiver.refusals = 0
    again = Webhook(receiver.address, results)
    again.start()
    again.close()
    assert numbers(receiver) == [1, 2, 3, 4, 5]


def test_half_a_line_waits(receiver, tmp_path):
    results = tmp_path / "results.jsonl"
    append(results, 1)
    append(results, 2, end="")
    hook = Webhook(receiver.address, results)
    hook.start()
    wait_until(lambda: receiver.taken)
    with results.open("a") as file:
        file.write("\n")
    wait_until(lambda: len(receiver.taken) == 2)
    hook.close()
    assert numbers(receiver) == [1, 2]


def test_a_receiver_that_is_gone_does_not_hold_the_end_up(receiver, tmp_path):
    results = tmp_path / "results.jsonl"
    append(results, 1)
    receiver.left = receiver.refusals = 10**9
    hook = Webhook(receiver.address, results)
    hook.start()
    hook.close()
    assert not receiver.taken and not (tmp_path / "webhook.offset").exists()


@pytest.mark.parametrize("hangs", [False, True])
def test_the_end_does_not_wait_for_a_long_queue(receiver, tmp_path, monkeypatch, hangs):
    """What is left is sent after the next start."""
    monkeypatch.setattr(outbox, "CLOSING_SECONDS", 0.3)
    results, free = tmp_path / "results.jsonl", threading.Event()
    append(results, *range(50))
    hook = Webhook(receiver.address, results)
    original = hook._send

    def slowly(line):
        free.wait(30 if hangs else 0.05)
        return original(line)

    monkeypatch.setattr(hook, "_send", slowly)
    hook.start()
    started = time.monotonic()
    hook.close()
    assert 0.2 < time.monotonic() - started < 2
    free.set()
    hook._thread.join(30)
    sent = len(receiver.taken)
    assert sent < 20 and hook.waiting_bytes > 0
    monkeypatch.setattr(outbox, "CLOSING_SECONDS", 30)
    again = Webhook(receiver.address, results)
    again.start()
    again.close()
    assert numbers(receiver) == list(range(50))


def test_results_that_were_moved_away_leave_no_place_behind(receiver, tmp_path):
    """Lines of the new file are sent from the first, also after one more start."""
    results, place = tmp_path / "results.jsonl", tmp_path / "webhook.offset"
    append(results, 1, 2, 3)
    size = results.stat().st_size
    place.write_text(str(size))
    results.unlink()
    receiver.left = receiver.refusals = 10**9
    hook = Webhook(receiver.address, results)
    assert hook.waiting_bytes == 0
    hook.start()
    append(results, 4, 5, 6, 7)
    hook.close()
    assert not place.exists() and not receiver.taken
    receiver.left = receiver.refusals = 0
    assert results.stat().st_size > size
    for _ in range(2):
        again = Webhook(receiver.address, results)
        again.start()
        again.close()
    assert numbers(receiver) == [4, 5, 6, 7]
    # A shorter file in its place, as a copy from before.
    results.unlink()
    append(results, 8)
    again = Webhook(receiver.address, results)
    again.start()
    again.close()
    assert numbers(receiver)[4:] == [8]


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match="http"):
        Webhook("file:///etc/passwd", tmp_path / "results.jsonl")
    (tmp_path / "webhook.offset").write_text("x")
    with pytest.raises(UserError, match="damaged"):
        Webhook("http://localhost", tmp_path / "results.jsonl")
