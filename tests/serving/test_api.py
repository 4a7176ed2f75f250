"""The HTTP API: what `predict` says, whatever is asked, and one line for what is wrong."""

import base64
import concurrent.futures
import configparser
import io
import json
import re
import shutil
import signal
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
from hostile_images import hostile_files, noise
from PIL import Image
from serving_helpers import ROOT, command, served, wait_until

import harmoniad_jax
import harmoniad_runtime
from harmoniad_jax.inference import new_thresholds
from harmoniad_jax.inference.calibrate import calibrate
from harmoniad_jax.inference.image_model import Question
from harmoniad_jax.run.run import prepare_run
from harmoniad_jax.serving import thresholds
from harmoniad_jax.serving.batcher import Batcher, BusyError
from harmoniad_jax.serving.limits import Limits

CATEGORY = "tablet"
PART = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
TOKEN = "0123456789abcdef-not-secret"


@pytest.fixture(scope="module")
def paths(trained_run):
    dataset = prepare_run(trained_run.config).dataset
    return [record.image for record in [*dataset.test, *dataset.held_out]]


@pytest.fixture(scope="module")
def model(exported):
    return harmoniad_runtime.load(exported.path)


@pytest.fixture(scope="module")
def client(exported):
    with served(exported.path) as client:
        yield client


def parts(paths):
    return [("images", (path.name, path.read_bytes())) for path in paths]


def check_answer(row, expected, model):
    """A JSON row against the `ImageResult` that `predict` gives."""
    assert row["verdict"] == {False: "good", True: "defective"}[expected.is_defective]
    assert row["boxes"] == [list(box) for box in expected.boxes]
    assert row["threshold"] == expected.threshold
    assert (row["width"], row["height"]) == expected.size
    # ONNX Runtime sums in another order in other batches.
    assert row["score"] == pytest.approx(expected.score, rel=1e-5)
    # Of this score: good images lie so close that one rounding of it may be 5e-5 here.
    good = model.calibration.of(expected.category)
    normalised = good.normalise_score(row["score"], row["threshold"])
    assert row["normalised_score"] == pytest.approx(normalised, abs=1e-5)
    assert row["error"] == "" and row["category"] == expected.category


@pytest.mark.parametrize("query", [{}, {"false_positive_rate": 0.3}, {"threshold": 1.0}])
def test_the_server_says_what_predict_says(client, model, paths, query):
    asked = {"category": CATEGORY, **query}
    answer = client.post("/v1/predict", files=parts(paths), params=asked)
    assert answer.status_code == 200
    rows, expected = answer.json()["results"], model.predict(paths, **asked)
    assert [row["name"] for row in rows] == [path.name for path in paths]
    for row, one in zip(rows, expected, strict=True):
        check_answer(row, one, model)
    assert min(answer.json()["seconds"].values()) >= 0


def test_an_image_is_judged_alike_in_any_company(client, model, paths):
    """Clients that ask at once, each for another product, rate and number of images."""
    batches = client.service.batcher.batch_sizes
    before = sum(batches.values())

    def ask(place):
        some = paths[place : place + 1 + place % 3]
        asked = {"false_positive_rate": 0.1 + 0.05 * (place % 4)}
        asked |= {"category": CATEGORY} if place % 2 else {}
        return some, asked, client.post("/v1/predict", files=parts(some), params=asked)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(16)))
    for some, asked, answer in answers:
        expected = model.predict(some, **asked)
        for row, one in zip(answer.json()["results"], expected, strict=True):
            check_answer(row, one, model)
    images = sum(len(some) for some, _, _ in answers)
    assert sum(batches.values()) - before < images, "no batch was shared"


def test_a_run_is_served_as_its_file_is(trained_run, exported, paths):
    trained = harmoniad_jax.load(trained_run.workdir)
    with served(trained_run.workdir, model=trained) as client:
        answer = client.post("/v1/predict", files=parts(paths[:5]))
        expected = trained.predict(paths[:5])
        for row, one in zip(answer.json()["results"], expected, strict=True):
            check_answer(row, one, trained)
            assert row["score"] == one.score


def test_a_raw_body_is_one_image(client, model, paths):
    content = {"content": paths[0].read_bytes(), "params": {"name": "a.png"}}
    (row,) = client.post("/v1/predict", **content).json()["results"]
    check_answer(row, *model.predict(paths[:1]), model)
    assert row["name"] == "a.png"


def test_pictures_are_those_of_predict(client, model, paths):
    names = ["map", "overlay", "heat", "thumbnail"]
    answer = client.post("/v1/predict", files=parts(paths[:1]), params={"include": names})
    (row,), (expected,) = answer.json()["results"], model.predict(paths[:1])
    found = {
        name: np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        for name, data in row["pictures"].items()
    }
    assert set(found) == set(names)
    assert found["map"].dtype == np.uint16
    np.testing.assert_allclose(found["map"] / 65535, expected.normalised_map, atol=1e-4)
    width, height = expected.size
    assert found["thumbnail"].shape == (height, width, 3)
    assert found["heat"].shape[2] == 4
    assert found["overlay"].shape[1:] == (2 * width, 3)
    plain = client.post("/v1/predict", files=parts(paths[:1])).json()["results"][0]
    assert plain["pictures"] == {} and plain["score"] == row["score"]


@pytest.mark.filterwarnings("ignore:::PIL")
def test_hostile_images_are_answered_one_by_one(client, model, tmp_path):
    """What cannot be read is an error in its place; all others are judged as ever."""
    readable, refused = 0, 0
    for name, data in hostile_files():
        answer = client.post("/v1/predict", files=[("images", (name, data))])
        if not data:
            assert answer.json()["results"][0]["error"]
            continue
        assert answer.status_code == 200, name
        (row,) = answer.json()["results"]
        path = tmp_path / name.replace("/", "_")
        path.write_bytes(data)
        if row["error"]:
            assert row["verdict"] is None and "\n" not in row["error"]
            assert "Traceback" not in row["error"]
            refused += 1
        else:
            check_answer(row, *model.predict([path]), model)
            readable += 1
    assert readable and refused
    assert client.get("/readyz").status_code == 200


def refusal(answer, status):
    """The one line of a refused request."""
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert "\n" not in answer.text and "Traceback" not in answer.text
    return answer.json()["error"]


def test_mistakes_are_one_line(client, paths):
    def ask(**options):
        return client.post("/v1/predict", **options)

    image = {"content": paths[0].read_bytes()}
    assert "empty" in refusal(ask(), 400)
    assert "nosuch" in refusal(ask(**image, params={"category": "nosuch"}), 422)
    assert "between 0 and 1" in refusal(
        ask(**image, params={"false_positive_rate": 2}), 422
    )
    assert "threshold" in refusal(ask(**image, params={"threshold": "high"}), 422)
    assert "threshold" in refusal(ask(**image, params={"threshold": "nan"}), 422)
    refusal(ask(**image, params={"include": "everything"}), 422)
    assert "'images'" in refusal(ask(files=[("photo", ("a", b"x"))]), 400)
    refusal(ask(files=[("images", ("a", b"x"))], data={"category": CATEGORY}), 400)
    broken = {"content-type": "multipart/form-data; boundary=x"}
    refusal(ask(content=b"no form", headers=broken), 400)
    refusal(ask(content=b"x", headers={"content-type": "multipart/form-data"}), 400)
    refusal(client.get("/v1/predict"), 405)
    refusal(client.get("/../../etc/passwd"), 404)


def test_names_of_clients_are_only_shown(client, paths):
    for name in ("../../etc/passwd", "/etc/passwd", "a\x00b", "x" * 1000):
        answer = client.post("/v1/predict", files=[("images", (name, b"no image"))])
        (row,) = answer.json()["results"]
        assert "root:" not in answer.text and row["error"] and len(row["name"]) <= 200


def test_limits(exported, model, paths):
    image = Image.new("RGB", (300, 200))
    large = io.BytesIO()
    image.save(large, "PNG")
    limits = Limits(megabytes=0.05, megapixels=0.05, images=2, queue=2)
    with served(exported.path, limits, model=model) as client:
        (row,) = client.post("/v1/predict", content=large.getvalue()).json()["results"]
        assert "300 x 200" in row["error"] and row["verdict"] is None
        refusal(client.post("/v1/predict", files=parts(paths[:3])), 413)
        heavy = b"x" * 60_000
        assert "0.05 MB" in refusal(client.post("/v1/predict", content=heavy), 413)

        def unannounced(start=b""):
            yield start
            yield from 60 * [b"x" * 1000]

        refusal(client.post("/v1/predict", content=unannounced()), 413)
        form = {"content-type": "multipart/form-data; boundary=b"}
        refusal(client.post("/v1/predict", content=unannounced(PART), headers=form), 413)
        assert client.post("/v1/predict", files=parts(paths[:2])).status_code == 200


class Held:
    """A model whose network waits until it is told to go on."""

    def __init__(self, model, monkeypatch):
        self.go, self.running = threading.Event(), threading.Event()
        original = model.predict_pixels

        def wait(images):
            self.running.set()
            assert self.go.wait(30)
            return original(images)

        monkeypatch.setattr(model, "predict_pixels", wait)


def test_a_full_queue_says_when_to_come_back(exported, model, paths, monkeypatch):
    limits = Limits(images=2, queue=2)
    with served(exported.path, limits, model=model) as client:
        held = Held(model, monkeypatch)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            first = pool.submit(client.post, "/v1/predict", files=parts(paths[:2]))
            wait_until(held.running.is_set)
            answer = client.post("/v1/predict", files=parts(paths[2:3]))
            assert "full" in refusal(answer, 503)
            assert int(answer.headers["retry-after"]) >= 1
            held.go.set()
            assert first.result().status_code == 200
        assert client.service.batcher.waiting == 0
        again = client.post("/v1/predict", files=parts(paths[2:3]))
        assert again.status_code == 200


def test_a_request_that_takes_too_long_leaves_no_trace(exported, model, paths, monkeypatch):
    limits = Limits(seconds=0.3)
    with served(exported.path, limits, model=model) as client:
        held = Held(model, monkeypatch)
        assert "0.3 s" in refusal(client.post("/v1/predict", files=parts(paths[:2])), 504)
        held.go.set()
        wait_until(lambda: client.service.batcher.waiting == 0)


def test_a_defect_of_the_program_shows_no_traceback(
    exported, model, paths, monkeypatch, caplog
):
    def fail(images):
        raise RuntimeError("secret detail")

    with served(exported.path, model=model) as client:
        monkeypatch.setattr(model, "predict_pixels", fail)
        text = refusal(client.post("/v1/predict", files=parts(paths[:2])), 500)
        assert "secret" not in text and "secret detail" in caplog.text
        monkeypatch.undo()
        assert client.post("/v1/predict", files=parts(paths[:1])).status_code == 200


def test_what_was_accepted_is_answered_at_the_end(model, paths, monkeypatch):
    batcher = Batcher(model, capacity=8)
    held = Held(model, monkeypatch)
    query = [harmoniad_jax.inference.image_model.Query(path) for path in paths[:6]]
    futures = batcher.submit(query, Question())
    wait_until(held.running.is_set)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    wait_until(lambda: batcher._closing)
    with pytest.raises(BusyError):
        batcher.submit(query[:1], Question())
    held.go.set()
    closing.join(30)
    assert all(future.done() for future in futures)
    for future, expected in zip(futures, model.predict(paths[:6]), strict=True):
        assert future.result().score == pytest.approx(expected.score, rel=1e-5)


def test_the_model_is_described(client, model):
    facts = client.get("/v1/model").json()
    assert facts["kind"] == "exported file" and facts["name"] == "model.onnx"
    names = [one["name"] for one in facts["categories"]]
    assert names == [*model.categories, None]
    for one in facts["categories"]:
        known = model.calibration.of(one["name"])
        assert one["good_images"] == len(known.scores)
        for choice in one["choices"]:
            rate = choice["of_1000"] / 1000
            assert choice["threshold"] == known.threshold(rate)
            assert choice["promised"] == known.supports(rate)


def test_new_thresholds_hold_without_a_restart(
    exported, paths, tmp_path, caplog, monkeypatch
):
    """Those of `calibrate`, and those that `--undo` brings back."""
    monkeypatch.setattr(thresholds, "POLL_SECONDS", 0.05)
    file = tmp_path / "model.onnx"
    shutil.copy(exported.path, file)
    good = tmp_path / CATEGORY
    good.mkdir()
    for seed in range(8):
        Image.fromarray(noise(48, 48, seed)).save(good / f"{seed}.png")

    def threshold(client):
        answer = client.post("/v1/predict", files=parts(paths[:1]), params=asked)
        return answer.json()["results"][0]["threshold"]

    asked = {"category": CATEGORY}
    with served(file) as client:
        before = threshold(client)
        assert client.get("/v1/model").json()["calibrated"] is None
        calibrate(harmoniad_runtime.load(file, threads=1), file, good, CATEGORY)
        wait_until(lambda: threshold(client) != before)
        fresh = harmoniad_runtime.load(file, threads=1)
        assert threshold(client) == fresh.predict(paths[:1], **asked)[0].threshold
        facts = client.get("/v1/model").json()
        assert facts["calibrated"].startswith("20")
        (known,) = (one for one in facts["categories"] if one["name"] == CATEGORY)
        assert known["good_images"] == 8
        place = new_thresholds.path_beside(file)
        stored = place.read_text()
        place.write_text("{")
        wait_until(lambda: "is damaged" in caplog.text)
        assert threshold(client) != before
        place.write_text(stored)
        new_thresholds.undo(file, fresh.own_calibration)
        wait_until(lambda: threshold(client) == before)
    assert "thresholds from now on: those of training" in caplog.text


def test_thresholds_that_cannot_be_read_for_a_while_are_taken_over(
    exported, tmp_path, caplog, monkeypatch
):
    """As from a network drive that is away; the file itself does not change."""
    monkeypatch.setattr(thresholds, "POLL_SECONDS", 0.02)
    file = shutil.copy(exported.path, tmp_path / "model.onnx")
    own = harmoniad_runtime.load(file, threads=1).own_calibration
    other = own.with_category(CATEGORY, own.of("washer"))
    refused = []

    def refuse(*_):
        refused.append(True)
        raise OSError(5, "Input/output error", "model.thresholds.json")

    with served(file) as client:
        with monkeypatch.context() as patch:
            patch.setattr(new_thresholds, "latest_entry", refuse)
            entry = new_thresholds.Entry("2026-01-02T03:04:05+00:00", "photos", {}, other)
            new_thresholds.add(Path(file), own, entry)
            wait_until(lambda: len(refused) > 3)
            assert client.get("/v1/model").json()["calibrated"] is None
        wait_until(lambda: client.get("/v1/model").json()["calibrated"] == entry.time)
        assert client.service.opened.model.calibration == other
    assert caplog.text.count("Input/output error") == 1


def test_probes_counters_and_headers(client, paths):
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}
    before = client.get("/metrics").text
    client.post("/v1/predict", files=[*parts(paths[:2]), ("images", ("x", b"x"))])
    after = client.get("/metrics").text

    def count(text, name):
        lines = [line for line in text.splitlines() if line.startswith(name)]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    for name, more in (
        ('harmoniad_requests_total{status="200"}', 1),
        ("harmoniad_images_total", 3),
        ('harmoniad_images_total{category="",verdict="unreadable"}', 1),
        ("harmoniad_request_seconds_count", 1),
    ):
        assert count(after, name) - count(before, name) == more, name
    assert count(after, "harmoniad_images_waiting") == 0
    for path in ("/", "/healthz", "/nosuch"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]


def test_the_interface_describes_itself_with_examples(client):
    spec = client.get("/openapi.json").json()
    judging = spec["paths"]["/v1/predict"]["post"]
    example = judging["responses"]["200"]["content"]["application/json"]["example"]
    fields = spec["components"]["schemas"]["Judged"]["properties"]
    assert set(example["results"][0]) == set(fields)
    assert {"multipart/form-data", "image/*"} == set(judging["requestBody"]["content"])
    assert {"413", "503"} <= set(judging["responses"])
    page = client.get("/docs").text
    for words in (*spec["paths"], "curl -F images=@001.png", "413", "&quot;boxes&quot;"):
        assert words in page
    assert "http:" not in page and "https:" not in page and "<script" not in page


def test_a_token_is_asked_for(exported, model, paths):
    options = {"model": model, "token": TOKEN, "hosts": None}
    with served(exported.path, **options) as client:
        for path in ("/v1/model", "/metrics", "/openapi.json", "/v1/predict"):
            answer = client.get(path)
            assert "token" in refusal(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
        for wrong in (
            "Bearer",
            f"Bearer {TOKEN}x",
            f"Basic {TOKEN}",
            f"Bearer {TOKEN[:-1]}",
        ):
            refusal(client.get("/v1/model", headers={"authorization": wrong}), 401)
        right = {"authorization": f"Bearer {TOKEN}"}
        assert client.get("/v1/model", headers=right).status_code == 200
        for path in ("/", "/healthz", "/readyz"):
            assert client.get(path).status_code == 200


def test_other_sites_are_kept_out(client):
    refusal(client.get("/v1/model", headers={"host": "evil.example"}), 400)
    for site in ("cross-site", "same-site"):
        headers = {"sec-fetch-site": site}
        refusal(client.post("/v1/predict", content=b"x", headers=headers), 403)
    assert client.get("/", headers={"host": "127.0.0.1:8080"}).status_code == 200


def test_good_images_are_kept_for_new_thresholds(exported, model, paths, tmp_path):
    with served(exported.path, model=model, collect=tmp_path) as client:
        assert client.get("/v1/model").json()["collects"]
        asked = {"params": {"category": CATEGORY}}
        for _ in range(2):
            answer = client.post("/v1/good", content=paths[0].read_bytes(), **asked)
            assert answer.json() == {"kept": True}
        (kept,) = (path for path in tmp_path.rglob("*") if path.is_file())
        assert kept.read_bytes() == paths[0].read_bytes()
        assert kept.parent == tmp_path / CATEGORY and kept.suffix == ".png"
        refusal(client.post("/v1/good", content=b"no image", **asked), 422)
        bad = {"params": {"category": "../../x"}}
        refusal(client.post("/v1/good", content=paths[0].read_bytes(), **bad), 422)
        assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


def test_any_product_is_kept_or_refused_by_a_model_that_knows_none(
    exported, paths, tmp_path
):
    place, data = exported.changed(tmp_path, calibration=None), paths[0].read_bytes()
    with served(place, collect=tmp_path / "good") as client:
        for category, status in (("a", 200), ("a\0b", 422), ("../..", 200)):
            asked = {"params": {"category": category}}
            answer = client.post("/v1/good", content=data, **asked)
            assert answer.status_code == status, answer.text
    kept = [path for path in tmp_path.rglob("*.png") if path.is_file()]
    assert len(kept) == 2 and all(tmp_path / "good" in path.parents for path in kept)


def test_images_are_not_kept_unasked(client, paths):
    refusal(client.post("/v1/good", content=paths[0].read_bytes()), 404)


def test_the_command_serves_a_file_without_jax(exported, model, paths, tmp_path):
    """And answers what it accepted when it is told to end."""
    blocked = "raise ImportError('JAX must not be imported')"
    for name in ("jax", "flax", "absl", "ml_collections"):
        (tmp_path / f"{name}.py").write_text(blocked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serving_helpers.EXTRA_PATHS", [tmp_path])
        with command(exported.path, "--threads", 1) as (address, process):
            wait_until(lambda: httpx.get(f"{address}/readyz").status_code == 200)
            answer = httpx.post(f"{address}/v1/predict", files=parts(paths[:3]), timeout=30)
            expected = model.predict(paths[:3])
            for row, one in zip(answer.json()["results"], expected, strict=True):
                check_answer(row, one, model)
        assert "every accepted image is answered" in process.rest


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nosuch"], "nosuch does not exist"),
        ([__file__], "neither a run"),
        (["{model}", "--host", "0.0.0.0"], "--token_file"),
        (["{model}", "--token_file", __file__], "one word"),
        (["{model}", "--max_images", "100"], "--max_queue"),
        (["{model}", "--port", "http"], "--port"),
        (["{model}", "--watch", "."], "--output"),
        (["{model}", "--category", CATEGORY], "--watch"),
        (["{model}", "--mqtt", "localhost"], "--watch"),
        (["{model}", "--watch", ".", "--output", ".", "--mqtt_user", "a"], "--mqtt=HOST"),
        *(
            (["{model}", f"--mqtt_{name}"], f"--mqtt_{name.partition('=')[0]} goes with")
            for name in ("topic=a", "user=a", "password_file=a", "tls", "ca=a")
        ),
        ([], "MODEL"),
    ],
)
def test_the_command_refuses_in_one_line(exported, arguments, words, capsys):
    from harmoniad_jax.serve import main

    given = [one.replace("{model}", str(exported.path)) for one in arguments]
    given += [] if "--port" in given else ["--port", "0"]
    with pytest.raises(SystemExit) as exit:
        main(given)
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line


def test_json_is_strict(client, paths):
    text = client.post("/v1/predict", files=parts(paths[:1])).text
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_server_that_is_told_to_end_answers_what_it_accepted(exported, paths):
    with command(exported.path, "--threads", 1) as (address, process):
        wait_until(lambda: httpx.get(f"{address}/readyz").status_code == 200)
        files = (3 * parts(paths))[:32]  # long enough to be seen waiting
        with concurrent.futures.ThreadPoolExecutor(1) as pool, httpx.Client() as client:
            asked = pool.submit(
                httpx.post, f"{address}/v1/predict", files=files, timeout=30
            )
            waiting = re.compile("harmoniad_images_waiting [1-9]")
            wait_until(lambda: waiting.search(client.get(f"{address}/metrics").text))
            process.send_signal(signal.SIGTERM)
            answer = asked.result()
        assert process.wait(30) == 0
        assert len(answer.json()["results"]) == 32


def test_the_container_installs_what_setup_cfg_states():
    """The versions of the extras `serve` and `mqtt`, and of what the runtime needs."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    stated = [config["options"]["install_requires"]]
    stated += [extras[name] for name in ("serve", "mqtt", "export")]
    known = {line.strip() for text in stated for line in text.splitlines()}
    text = (ROOT / "deploy/requirements.txt").read_text()
    wanted = {line for line in text.splitlines() if not line.startswith("#")}
    assert wanted <= known
    served = f"{extras['serve']}\n{extras['mqtt']}"
    assert {line.strip() for line in served.splitlines() if line} <= wanted
