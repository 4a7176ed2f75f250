"""Kills a server at random moments under load; its watched folder must lose nothing.

    python benchmarks/torture_serve.py model.onnx photos --kills 10

Clients ask for verdicts without a pause, photos are written into the watched folder a piece
at a time, and the server is killed with SIGKILL and started again. In the end every photo
must have one line of results, with the score that the runtime gives it.
"""

import argparse
import collections
import contextlib
import http.client
import json
import math
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from time_serve import Server, request

import harmoniad_runtime
from harmoniad_jax.inference.files import photos_below

PIECES = 3  # that a photo is written in
PAUSE_SECONDS = 0.02  # after each


class Outcome(NamedTuple):
    """What was found in the end.

    kills: how often the server was killed.
    photos: written into the watched folder.
    lost: photos without a line.
    twice: photos with several.
    wrong: photos whose score is not that of the runtime, or that have an error.
    answers: statuses of the clients' requests, and how often the connection broke.
    at_kills: lines that there were at each kill.
    """

    kills: int
    photos: int
    lost: int
    twice: int
    wrong: int
    answers: dict[str, int]
    at_kills: list[int]


def torture(
    model: Path,
    photos: Sequence[Path],
    *,
    kills: int = 5,
    count: int = 200,
    clients: int = 4,
    seconds: float = 20.0,
    seed: int = 0,
) -> Outcome:
    """Kills a server `kills` times.

    Args:
      model: a run or an exported file.
      photos: of any number; each is written several times, under other names.
      kills: how often.
      count: photos that are written.
      clients: that ask all the time.
      seconds: that the server lives at most, once it is ready. Before that it is killed
        when it has judged a number of photos, drawn by chance.
      seed: of the moments.
    """
    chance, answers = random.Random(seed), collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        watched, output = Path(folder, "in"), Path(folder, "out")
        watched.mkdir()
        lines, flags = output / "results.jsonl", ("--watch", watched, "--output", output)
        ended, address, at_kills = threading.Event(), [""], []
        threads = [
            threading.Thread(target=_write_all, args=(photos, watched, count)),
            *(
                threading.Thread(target=_ask, args=(address, photos, answers, ended))
                for _ in range(clients)
            ),
        ]
        for thread in threads:
            thread.start()
        for _ in range(kills):
            server = Server(model, *flags)
            address[0] = server.address
            server.wait()
            enough = _lines(lines) + chance.randint(0, count // (kills + 1))
            end = time.monotonic() + seconds
            while _lines(lines) < enough and time.monotonic() < end:
                time.sleep(0.01)
            time.sleep(chance.uniform(0.0, 0.2))
            server.process.kill()
            server.end()
            at_kills.append(_lines(lines))
        with Server(model, *flags) as server:
            address[0] = server.address
            threads[0].join()
            while _lines(lines) < count:
                time.sleep(0.1)
            time.sleep(1.0)  # for a line too many
            ended.set()
            for thread in threads[1:]:
                thread.join()
        rows = [json.loads(line) for line in lines.read_bytes().splitlines()]
        return _outcome(model, rows, watched, dict(answers), at_kills)


def _outcome(model, rows, watched, answers, at_kills) -> Outcome:
    paths = collections.Counter(row["path"] for row in rows)
    names = sorted(path.name for path in watched.iterdir())
    runtime, scores = harmoniad_runtime.load(model), {}
    wrong = 0
    for row in rows:
        data = (watched / row["path"]).read_bytes()
        if data not in scores:
            (one,) = runtime.predict([watched / row["path"]])
            scores[data] = one.score
        same = row["score"] and math.isclose(row["score"], scores[data], rel_tol=1e-4)
        wrong += bool(row["error"]) or not same
    return Outcome(
        kills=len(at_kills),
        photos=len(names),
        lost=sum(name not in paths for name in names),
        twice=sum(times > 1 for times in paths.values()),
        wrong=wrong,
        answers=answers,
        at_kills=at_kills,
    )


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _write_all(photos: Sequence[Path], folder: Path, count: int) -> None:
    """Writes photos as a slow camera does: a piece at a time, under the final name."""
    for place in range(count):
        source = photos[place % len(photos)]
        data = source.read_bytes()
        size = math.ceil(len(data) / PIECES)
        with (folder / f"{place:05}{source.suffix}").open("wb") as file:
            for piece in range(PIECES):
                file.write(data[piece * size : (piece + 1) * size])
                file.flush()
                time.sleep(PAUSE_SECONDS)


def _ask(address, photos, answers, ended) -> None:
    """Asks for verdicts until it ends; a server that is gone is waited for."""
    for place in range(sys.maxsize):
        if ended.is_set():
            return
        body = photos[place % len(photos)].read_bytes()
        try:
            connection = http.client.HTTPConnection(address[0], timeout=30)
            with contextlib.closing(connection):
                answers[str(request(connection, "POST", "/v1/predict", body))] += 1
        except (OSError, http.client.HTTPException):
            answers["broken"] += 1
            time.sleep(0.05)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--count", type=int, default=300, help="Photos that are written.")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    photos = photos_below(flags.photos)[:60]
    outcome = torture(
        flags.model,
        photos,
        kills=flags.kills,
        count=flags.count,
        clients=flags.clients,
        seed=flags.seed,
    )
    for name, value in outcome._asdict().items():
        print(f"{name}: {value}")
    return 1 if outcome.lost or outcome.twice or outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
