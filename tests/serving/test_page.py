"""The page in a real browser: drop, verdict, slider, history, camera, keys, both themes."""

import csv
import dataclasses
import io
import os
import shutil

import numpy as np
import pytest
from serving_helpers import command, served

import harmoniad_runtime
from harmoniad_jax.inference.new_thresholds import Entry
from harmoniad_jax.run.run import prepare_run
from harmoniad_jax.serving.drift import WINDOW
from harmoniad_jax.serving.watch import Watched

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

from browser_helpers import contrast, key, run, screenshot, show, start  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

TOKEN = "0123456789abcdef-not-secret"


@pytest.fixture(scope="module")
def model(exported):
    return harmoniad_runtime.load(exported.path, threads=2)


@pytest.fixture(scope="module")
def paths(trained_run):
    """Images of all products, good and defective."""
    dataset = prepare_run(trained_run.config).dataset
    return [record.image for record in dataset.test[:8]]


@pytest.fixture(scope="module")
def address(exported, model, tmp_path_factory):
    collect = tmp_path_factory.mktemp("collected")
    with served(exported.path, model=model, collect=collect) as client:
        client.collect = collect
        yield client


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    downloads = tmp_path_factory.mktemp("downloads")
    started = start(
        tmp_path_factory.mktemp("chromium"),
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        logs=("browser",),
        preferences={"download.default_directory": str(downloads)},
    )
    started.downloads = downloads
    yield started
    started.quit()


@pytest.fixture
def page(browser, address):
    """The page, just opened, on a large light screen."""
    show(browser)
    browser.get_log("browser")
    browser.get(str(address.base_url))
    wait(browser, "model !== null && !document.getElementById('strictness').hidden")
    yield browser
    # A breach of the policy, a missing file or an exception would be a line here.
    assert browser.get_log("browser") == []


def wait(browser, condition, seconds=20):
    WebDriverWait(browser, seconds, 0.05).until(lambda b: run(b, condition))


def choose(browser, paths, total=None):
    """Gives files to the page as its button does."""
    field = browser.find_element("id", "files")
    field.send_keys("\n".join(map(str, paths)))
    wait(browser, f"history_.length === {total or len(paths)} && !uploading")


def text(browser, name):
    return browser.find_element("id", name).text


def shown_rows(browser):
    rows = browser.find_elements("css selector", "#rows li")
    return [row for row in rows if row.is_displayed()]


def set_slider(browser, name, value):
    script = (
        "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        "e.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    browser.execute_script(script, name, value)


def test_images_get_their_verdict_map_and_boxes(page, model, paths):
    choose(page, paths)
    rows = run(
        page,
        "history_.map(r => [r.name, r.score, r.judgedAs, r.boxes, r.category ?? null])",
    )
    category = model.categories[0]
    assert page.find_element("id", "product").get_attribute("value") == category
    expected = {path.name: [] for path in paths}
    for path, one in zip(paths, model.predict(paths, category=category), strict=True):
        verdict = "defective" if one.is_defective else "good"
        boxes = [list(box) for box in one.boxes]
        expected[path.name].append((round(one.score, 3), verdict, boxes))
    for name, score, verdict, boxes, product in rows:
        assert (round(score, 3), verdict, boxes) in expected[name] and product == category
    words = {"good": "✓ Good", "defective": "✕ Defective"}
    for place, (_, _, verdict, boxes, _) in enumerate(rows):
        shown_rows(page)[place].find_element("tag name", "button").click()
        assert text(page, "verdict").startswith(words[verdict])
        assert run(page, "document.querySelectorAll('#boxes .line').length") == len(boxes)
    wait(page, "['image', 'heat'].every(i => document.getElementById(i).naturalWidth > 0)")


def test_images_are_dropped(page, paths):
    script = """
        const bytes = Uint8Array.from(atob(arguments[0]), c => c.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], 'dropped.png', {type: 'image/png'}));
        const options = {dataTransfer: data, bubbles: true, cancelable: true};
        document.body.dispatchEvent(new DragEvent('dragenter', options));
        const shown = !document.getElementById('drop').hidden;
        document.body.dispatchEvent(new DragEvent('drop', options));
        return shown && document.getElementById('drop').hidden
    """
    import base64

    data = base64.b64encode(paths[0].read_bytes()).decode()
    assert page.execute_script(script, data)
    wait(page, "history_.length === 1")
    assert "dropped.png" in text(page, "caption")


def test_the_map_fades(page, paths):
    choose(page, paths[:1])
    wait(page, "document.getElementById('heat').complete")
    stage = "document.querySelector('.picture').getBoundingClientRect().toJSON()"
    box = run(page, stage)
    area = np.s_[int(box["top"]) : int(box["bottom"]), int(box["left"]) : int(box["right"])]
    pictures = []
    for value in (0, 50, 100):
        set_slider(page, "heat-strength", value)
        assert text(page, "heat-text") == f"{value} %"
        pictures.append(screenshot(page)[area].astype(float))
    near, far = (np.abs(pictures[0] - other).mean() for other in pictures[1:])
    assert 0 < near < far


def test_strictness_shows_which_verdicts_change(page, model, paths):
    choose(page, paths)
    before = dict(run(page, "history_.map((r, i) => [String(i), r.judgedAs])"))
    last = int(page.find_element("id", "rate").get_attribute("max"))
    for place in (last, 0):
        set_slider(page, "rate", place)
        of_1000 = run(page, f"choices[{place}].of_1000")
        assert f"Of 1000 good parts, {of_1000:g} are stopped" in text(page, "strictness")
        limit = model.calibration.of(model.categories[0]).threshold(of_1000 / 1000)
        scores = run(page, "history_.map(r => r.score)")
        now = ["defective" if score > limit + 1e-4 else "good" for score in scores]
        assert run(page, "history_.map(verdictNow)") == now
        changed = sum(one != before[str(i)] for i, one in enumerate(now))
        said = text(page, "changes")
        assert said.startswith(f"{changed} of 8" if changed else "No verdict")
        options = page.find_elements("css selector", "#show option")
        options[3].click()
        assert len(shown_rows(page)) == changed
        options[0].click()
    # The next image is judged as strictly.
    set_slider(page, "rate", last)
    choose(page, paths[:1], total=9)
    assert run(page, "history_[0].judgedAs === verdictNow(history_[0])")
    assert run(page, f"history_[0].threshold === choices[{last}].threshold")


def test_the_history_is_filtered_and_downloaded(page, paths, tmp_path):
    broken = tmp_path / "=broken,.png"
    broken.write_bytes(b"no image")
    choose(page, [*paths, broken])
    assert "1 not readable" in text(page, "counts")
    for place, kind in ((1, "defective"), (2, "good")):
        page.find_elements("css selector", "#show option")[place].click()
        count = run(page, f"history_.filter(r => r.judgedAs === '{kind}').length")
        assert len(shown_rows(page)) == count
    page.find_elements("css selector", "#show option")[0].click()
    page.find_element("id", "search").send_keys("BROKEN")
    assert len(shown_rows(page)) == 1
    page.find_element("id", "csv").click()
    file = page.downloads / "judged.csv"
    WebDriverWait(page, 10, 0.05).until(lambda _: file.exists())
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    file.unlink()
    assert len(rows) == 9
    (row,) = (row for row in rows if row["error"])
    assert row["name"] == "'=broken,.png" and not row["verdict"]
    judged = run(page, "history_.filter(r => !r.error).map(r => r.score).reverse()")
    kept = [float(row["score"]) for row in rows if not row["error"]]
    assert kept == judged


def test_the_camera_is_judged(page):
    """Chromium's fake device draws a moving picture."""
    key(page, "c")
    wait(page, "document.getElementById('video').videoWidth > 0")
    assert page.find_element("id", "live").is_displayed()
    page.find_element("id", "shoot").click()
    wait(page, "history_.length === 1 && !uploading")
    page.execute_script("document.activeElement.blur()")
    key(page, " ")
    wait(page, "history_.length === 2 && !uploading")
    assert run(page, "history_.every(r => r.judgedAs && r.name.startsWith('camera-'))")
    size = run(page, "[history_[0].width, history_[0].height]")
    camera = "document.getElementById('video')"
    assert size == run(page, f"[{camera}.videoWidth, {camera}.videoHeight]")
    key(page, "c")
    assert not page.find_element("id", "live").is_displayed()
    assert run(page, "stream === null")


def test_it_is_used_by_keyboard(page, paths):
    choose(page, paths[:3])
    page.execute_script("document.activeElement.blur()")
    places = [run(page, "history_.indexOf(current)")]
    for one in (Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT):
        key(page, one)
        places.append(run(page, "history_.indexOf(current)"))
    assert places[1:] == [places[0] + 1, *(2 * [2]), 1] or places == [0, 1, 2, 2, 1]
    key(page, "m")
    assert text(page, "heat-text") == "0 %"
    key(page, "m")
    assert text(page, "heat-text") == "60 %"
    key(page, "b")
    assert not page.find_element("id", "boxes").is_displayed()
    key(page, "b", "/", "b")
    assert page.find_element("id", "search").get_attribute("value") == "b"
    reached = set()
    page.execute_script("document.activeElement.blur()")
    for _ in range(30):
        key(page, Keys.TAB)
        reached.add(run(page, "document.activeElement.id"))
    assert reached >= {"choose", "camera", "product", "heat-strength", "rate", "search"}


def test_it_was_good_after_all(page, address, paths):
    choose(page, paths)
    set_slider(page, "rate", page.find_element("id", "rate").get_attribute("max"))
    place = run(page, "history_.findIndex(r => verdictNow(r) === 'defective')")
    assert place >= 0
    shown_rows(page)[place].find_element("tag name", "button").click()
    page.find_element("id", "after-all").click()
    wait(page, "document.getElementById('kept').textContent !== ''")
    kept = [path for path in address.collect.rglob("*") if path.is_file()]
    assert [path.read_bytes() in {p.read_bytes() for p in paths} for path in kept] == [True]
    assert not page.find_element("id", "after-all").is_displayed()


def test_a_change_of_light_is_said(page, address, paths):
    """Here by fifty scores that no good image has."""
    drift = address.service.drift
    assert not page.find_element("id", "drift").is_displayed()
    (result,) = drift._model.predict(paths[:1])
    for _ in range(WINDOW):
        drift.note(dataclasses.replace(result, score=1e6))
    choose(page, paths[:1])
    wait(page, "!document.getElementById('drift').hidden")
    assert f"The last {WINDOW} images are unlike" in text(page, "drift")
    assert "with higher scores" in text(page, "drift")
    drift._latest.clear()


def test_images_of_a_watched_folder_appear(browser, exported, model, paths, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    watched = Watched(folder, tmp_path / "out")
    with served(exported.path, model=model, watched=watched) as client:
        browser.get(str(client.base_url))
        wait(browser, "model !== null")
        assert browser.find_element("id", "folder").is_displayed()
        for place in range(2):
            shutil.copy(paths[place], folder / f"{place}.png")
            wait(browser, f"history_.length === {place + 1}")
            assert f"{place}.png" in text(browser, "caption")
        wait(browser, "document.getElementById('image').naturalWidth > 0")
        found = run(browser, "history_.map(r => r.score)")
        scores = [one.score for one in model.predict(paths[:2])]
        assert found[::-1] == pytest.approx(scores, rel=1e-5)


def test_a_watched_image_was_good_after_all(browser, exported, model, paths, tmp_path):
    """The server has it: nothing is sent but its number and name."""
    folder, collect = tmp_path / "in", tmp_path / "good"
    folder.mkdir()
    options = {"watched": Watched(folder, tmp_path / "out"), "collect": collect}
    with served(exported.path, model=model, **options) as client:
        browser.get(str(client.base_url))
        wait(browser, "model !== null")
        shutil.copy(paths[0], folder / "one.png")
        wait(browser, "history_.length === 1")
        set_slider(browser, "rate", browser.find_element("id", "rate").get_attribute("max"))
        # Whatever the verdict: the slider has no end at which every part is stopped.
        browser.execute_script("current.score = 1e6; weigh()")
        browser.find_element("id", "after-all").click()
        wait(browser, "current.kept")
        (kept,) = (path for path in collect.rglob("*") if path.is_file())
        assert kept.read_bytes() == paths[0].read_bytes()
        for change in ({"name": "../one.png"}, {"watched": 2}, {"name": "/etc/passwd"}):
            asked = {"watched": 1, "name": "one.png", **change}
            assert client.post("/v1/good", params=asked).status_code == 404
        shutil.copy(paths[1], folder / "one.png")  # another image by now
        asked = {"watched": 1, "name": "one.png"}
        assert client.post("/v1/good", params=asked).status_code == 404
        assert len([path for path in collect.rglob("*") if path.is_file()]) == 1


def test_new_thresholds_are_taken_over(page, address, model, paths):
    choose(page, paths)
    assert "thresholds set" not in text(page, "model")
    before, category = model.calibration, model.categories[0]
    doubled = tuple(2 * score for score in before.of(category).scores)
    normality = dataclasses.replace(before.of(category), scores=doubled)
    good = before.with_category(category, normality)
    entry = Entry("2026-01-02T03:04:05+00:00", "photos", {category: 3}, good)
    thresholds = address.service.thresholds
    thresholds.entry = entry
    model.use(good)
    run(page, "lookForThresholds()")
    wait(page, "document.getElementById('model').textContent.includes('2026')")
    limit = normality.threshold(run(page, "choices[rate.value].of_1000") / 1000)
    found = run(page, "history_.map(r => [r.score, verdictNow(r)])")
    expected = [
        (score, "defective" if score > limit + 1e-4 else "good") for score, _ in found
    ]
    assert [tuple(one) for one in found] == expected
    thresholds.entry = None
    model.use(before)


def test_a_model_without_thresholds_gets_its_first(
    browser, exported, model, paths, tmp_path
):
    """The page shows its products and verdicts without a reload."""
    good = model.calibration
    bare = harmoniad_runtime.load(exported.changed(tmp_path, calibration=None), threads=2)
    with served(tmp_path / "changed.onnx", model=bare) as client:
        show(browser)
        browser.get(str(client.base_url))
        wait(browser, "model !== null && !document.getElementById('problem').hidden")
        assert "no thresholds" in text(browser, "problem")
        assert not browser.find_element("id", "strictness").is_displayed()
        entry = Entry("2026-01-02T03:04:05+00:00", "photos", {}, good)
        client.service.thresholds.entry = entry
        bare.use(good)
        run(browser, "lookForThresholds()")
        wait(browser, "!document.getElementById('strictness').hidden")
        assert not browser.find_element("id", "problem").is_displayed()
        assert browser.find_element("id", "product").is_displayed()
        options = browser.find_elements("css selector", "#product option")
        names = [one.get_attribute("value") for one in options]
        assert names == [*model.categories, ""]
        assert text(browser, "promise")
        choose(browser, paths[:1])
        assert text(browser, "verdict").startswith(("✓ Good", "✕ Defective"))
        # The chosen product stays when thresholds change again.
        options[1].click()
        category = model.categories[0]
        entry = dataclasses.replace(entry, time="2026-02-02T03:04:05+00:00")
        client.service.thresholds.entry = entry
        bare.use(good.with_category(category, good.of(model.categories[2])))
        run(browser, "lookForThresholds()")
        wait(browser, "model.calibrated.startsWith('2026-02')")
        assert run(browser, "productName()") == model.categories[1]


@pytest.mark.parametrize("width", [320, 390, 768])
def test_the_page_never_scrolls_sideways(page, paths, width):
    show(page, width=width, height=800)
    choose(page, paths[:2])
    key(page, "c")
    wait(page, "document.getElementById('video').videoWidth > 0")
    assert run(page, "document.documentElement.scrollWidth") <= width
    small = run(
        page,
        "[...document.querySelectorAll('button, select, input')].filter(e =>"
        " e.checkVisibility() && e.type !== 'checkbox')"
        ".map(e => e.getBoundingClientRect()).filter(r => r.height < 32).length",
    )
    assert small == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_verdicts_are_readable_in_both_themes(page, paths, scheme):
    show(page, scheme=scheme)
    choose(page, paths)
    place = run(page, "history_.findIndex(r => r.judgedAs === 'defective')")
    assert place >= 0
    colours = {}
    for kind in ("good", "defective"):
        place = run(page, f"history_.findIndex(r => r.judgedAs === '{kind}')")
        shown_rows(page)[place].find_element("tag name", "button").click()
        style = "getComputedStyle(document.getElementById('verdict'))"
        colours[kind] = run(page, f"[{style}.color, {style}.backgroundColor]")
        assert contrast(*colours[kind]) > 4.5
    body = "getComputedStyle(document.body)"
    assert contrast(*run(page, f"[{body}.color, {body}.backgroundColor]")) > 7
    hint = "getComputedStyle(document.getElementById('promise')).color"
    assert contrast(run(page, hint), run(page, f"{body}.backgroundColor")) > 4.5
    folder = os.environ.get("KEEP_SCREENSHOTS")
    if folder:
        from PIL import Image

        Image.fromarray(screenshot(page)).save(f"{folder}/page-{scheme}.png")
        show(page, scheme=scheme, width=390, height=844)
        Image.fromarray(screenshot(page)).save(f"{folder}/phone-{scheme}.png")


def test_the_token_is_asked_for(browser, exported, tmp_path, paths):
    (tmp_path / "token").write_text(TOKEN)
    with command(exported.path, "--token_file", tmp_path / "token") as (address, _):
        browser.get(address)
        wait(browser, "document.getElementById('ask').open")
        for token in ("wrong", TOKEN):
            browser.find_element("id", "token").send_keys(token, Keys.ENTER)
            wait(browser, "document.getElementById('token').value === ''")
        wait(browser, "model !== null")
        wait(browser, "!document.getElementById('ask').open")
        choose(browser, paths[:1])
        assert text(browser, "verdict").startswith(("✓ Good", "✕ Defective"))
    browser.get_log("browser")  # the refusals are in it
