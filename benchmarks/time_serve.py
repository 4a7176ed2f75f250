"""How long clients wait for the server, and the bare runtime beside it in the same run.

    python benchmarks/time_serve.py model.onnx photos

Every image is sent once for each row. `--soak=SECONDS` keeps 4 clients busy instead and
prints the memory of the server.
"""

import argparse
import contextlib
import http.client
import itertools
import re
import subprocess
import sys
import threading
import time
import urllib.parse
from pathlib import Path

import numpy as np

import harmoniad_runtime
from harmoniad_jax.inference.files import photos_below

CLIENTS = (1, 4, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=100, help="For each row.")
    parser.add_argument("--soak", type=float, default=0.0, help="Seconds.")
    flags = parser.parse_args()
    files = photos_below(flags.photos)[: flags.images]
    images = [file.read_bytes() for file in files]
    with Server(flags.model) as server:
        ask_all(server.address, images[:8], 1)
        if flags.soak:
            soak(server, images, flags.soak)
            return
        print("| | clients | images/s | p50 ms | p95 ms | p99 ms |")
        print("|---|--:|--:|--:|--:|--:|")
        # In turns, so that what else the machine does hits both.
        for _ in range(2):
            print_row("runtime", "", bare(flags.model, files))
            print_row("server", 1, ask_all(server.address, images, 1))
        for clients in CLIENTS[1:]:
            print_row("server", clients, ask_all(server.address, images, clients))


def print_row(name, clients, measured) -> None:
    seconds, waits = measured
    p50, p95, p99 = np.percentile(1000 * np.array(waits), [50, 95, 99])
    rate = len(waits) / seconds
    print(f"| {name} | {clients} | {rate:.1f} | {p50:.1f} | {p95:.1f} | {p99:.1f} |")


def bare(path, files):
    """The runtime in this process, an image after the other."""
    model = harmoniad_runtime.load(path)
    model.predict(files[:2])
    waits, started = [], time.perf_counter()
    for file in files:
        before = time.perf_counter()
        model.predict([file])
        waits.append(time.perf_counter() - before)
    return time.perf_counter() - started, waits


class Server:
    """`python -m harmoniad_jax.serve` in a process of its own."""

    def __init__(self, model, *flags):
        command = [sys.executable, "-m", "harmoniad_jax.serve", str(model), "--port=0"]
        command += map(str, flags)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        self.address = urllib.parse.urlsplit(re.search(r"http://\S+", line)[0]).netloc

    def __enter__(self):
        self.wait()
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.end()

    def end(self) -> None:
        """Waits until it has ended."""
        self.process.wait(90)
        self.process.stdout.close()

    def wait(self) -> None:
        """Returns when it is ready."""
        with contextlib.closing(http.client.HTTPConnection(self.address)) as connection:
            while request(connection, "GET", "/readyz") != 200:
                time.sleep(0.1)

    def megabytes(self) -> float:
        """Resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1e3


def request(connection, method, path, body=None) -> int:
    connection.request(method, path, body)
    answer = connection.getresponse()
    answer.read()
    return answer.status


def ask_all(address, images, clients):
    """Each image once by any of the clients; seconds in all, and of each."""
    waiting, waits, lock = iter(images), [], threading.Lock()

    def client():
        connection = http.client.HTTPConnection(address)
        while True:
            with lock:
                image = next(waiting, None)
            if image is None:
                return
            before = time.perf_counter()
            status = request(connection, "POST", "/v1/predict", image)
            assert status == 200, status
            with lock:
                waits.append(time.perf_counter() - before)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started, waits


def soak(server, images, seconds) -> None:
    """Keeps four clients busy, and prints the memory ten times."""
    end, count = time.monotonic() + seconds, 0
    for part in itertools.count():
        part_end = time.monotonic() + seconds / 10
        while time.monotonic() < part_end:
            count += len(ask_all(server.address, images, 4)[1])
        print(f"{part + 1}: {count} images, {server.megabytes():.0f} MB", flush=True)
        if time.monotonic() >= end:
            return


if __name__ == "__main__":
    main()
