"""The report in a real browser: opened from disk, used by keyboard, on a phone."""

import json
from urllib.parse import urlsplit

import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

from browser_helpers import contrast, key, run, screenshot, show, start  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    started = start(tmp_path_factory.mktemp("chromium"), logs=("browser", "performance"))
    yield started
    started.quit()


@pytest.fixture
def page(browser, index):
    """The report, just opened, on a large light screen."""
    show(browser)
    browser.get_log("browser")
    browser.get(index.as_uri())
    yield browser
    assert browser.get_log("browser") == []


def shown_names(browser, selector):
    return run(
        browser,
        "[...document.querySelectorAll(arguments[0])]"
        ".filter(e => e.checkVisibility()).map(e => e.dataset.name)",
        selector,
    )


def load_all_images(browser):
    run(browser, "document.querySelectorAll('main img').forEach(i => i.loading = 'eager')")
    WebDriverWait(browser, 30).until(
        lambda b: run(
            b, "[...document.querySelectorAll('main img')].every(i => i.complete)"
        )
    )


def test_it_loads_whole_from_disk_and_asks_no_network(page, index):
    load_all_images(page)
    broken = run(
        page,
        "[...document.querySelectorAll('main img')].filter(i => !i.naturalWidth)"
        ".map(i => i.src)",
    )
    assert broken == []
    events = [json.loads(e["message"])["message"] for e in page.get_log("performance")]
    requests = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    # The browser's own pages, such as that of a new tab, are not the report's.
    ours = [url for url in requests if urlsplit(url).scheme not in ("chrome", "data")]
    assert len(ours) > 100
    assert all(url.startswith(index.parent.as_uri()) for url in ours)


def test_names_do_nothing(page):
    assert page.title == "Evaluation report"
    assert run(page, "document.scripts.length") == 1


def test_columns_sort_both_ways_and_undefined_stays_last(page, contents):
    buttons = page.find_elements("css selector", "th button")
    assert [button.text for button in buttons[:3]] == ["Class", "Images", "AUROC"]
    auroc = {content.category: content.metrics["image_auroc"] for content in contents}
    defined = sorted(value for value in auroc.values() if value == value)
    for order in ("ascending", "descending"):
        buttons[2].click()
        sorts = [b.find_element("xpath", "..").get_attribute("aria-sort") for b in buttons]
        assert sorts == ["none", "none", order, *["none"] * 6]
        keys = run(
            page,
            "[...document.querySelectorAll('tbody tr')].map(r => r.cells[2].dataset.value)",
        )
        values = [float(key) for key in keys if key]
        assert values == pytest.approx(defined)
        assert keys[len(values) :] == [""] * (len(keys) - len(values))
        defined.reverse()
    buttons[0].send_keys(Keys.ENTER)
    names = shown_names(page, "tbody tr")
    assert names.index("one/bottle") < names.index("one/cable") < names.index("two/Café")
    assert len(names) == len(contents)


def test_the_filter_leaves_what_was_asked_for(page, contents):
    field = page.find_element("id", "filter")
    field.send_keys("CAF")
    for selector in ("tbody tr", "nav li[data-name]", "section[data-name]"):
        assert shown_names(page, selector) == ["two/Café"]
    count = page.find_element("id", "matches")
    assert count.text == f"1 of {len(contents)} classes"
    field.send_keys("no such class")
    assert shown_names(page, "tbody tr") == []
    field.send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.DELETE)
    assert len(shown_names(page, "section[data-name]")) == len(contents)


def test_the_dialog_is_used_by_keyboard(page):
    link = page.find_element("css selector", "a.view")
    page.execute_script("arguments[0].focus()", link)
    dialog = page.find_element("css selector", "dialog")
    assert not dialog.is_displayed()
    key(page, Keys.ENTER)
    assert dialog.is_displayed() and run(page, "document.querySelector('dialog').open")
    assert page.current_url.endswith("/index.html")
    title = page.find_element("id", "large-title")
    seen = [title.text]
    for _ in range(3):
        key(page, Keys.ARROW_RIGHT)
        seen.append(title.text)
    assert seen == ["Image", "Ground truth", "Anomaly map", "Overlay"]
    key(page, Keys.ARROW_LEFT)
    assert title.text == "Anomaly map"
    WebDriverWait(page, 10).until(
        lambda b: run(b, "document.getElementById('large').naturalWidth > 0")
    )
    # Tab stays inside.
    for _ in range(6):
        key(page, Keys.TAB)
        assert run(page, "document.activeElement.closest('dialog, body').localName") in (
            "dialog",
            "body",
        )
        assert run(page, "!document.activeElement.closest('main')")
    key(page, Keys.ESCAPE)
    assert not dialog.is_displayed()
    assert run(page, "document.activeElement.dataset.title") == "Anomaly map"


def test_everything_is_reached_by_keyboard(page):
    """Skip link, filter, classes, table, explanations: in the order of the page."""
    reached = []
    for _ in range(60):
        key(page, Keys.TAB)
        reached.append(
            run(
                page,
                "document.activeElement.id || document.activeElement.className"
                " || document.activeElement.localName == 'summary' && 'summary'"
                " || document.activeElement.parentElement.localName",
            )
        )
    places = [reached.index(name) for name in ("skip", "filter", "li", "th", "summary")]
    assert places == sorted(places)


@pytest.mark.parametrize("width", [320, 360, 768, 1440])
def test_the_page_never_scrolls_sideways(page, width):
    show(page, width=width, height=800)
    load_all_images(page)
    assert run(page, "document.documentElement.scrollWidth") <= width
    cells = run(
        page,
        "[...document.querySelectorAll('td, dd, th div, th button')]"
        ".map(e => e.getBoundingClientRect()).map(r => [r.left, r.right])",
    )
    assert all(left >= -1 and right <= width + 1 for left, right in cells)


@pytest.mark.parametrize(("width", "columns"), [(360, 1), (768, 2), (1280, 2), (1440, 4)])
def test_the_four_plots_of_a_class_leave_no_gap(page, width, columns):
    show(page, width=width)
    lefts = run(
        page,
        "[...document.querySelector('.plots').querySelectorAll('figure')]"
        ".map(f => f.getBoundingClientRect().left)",
    )
    assert len(lefts) == 4
    assert len(set(lefts)) == columns


def test_the_reader_is_shown_where_the_page_is(page):
    page.execute_script(
        "document.querySelectorAll('section')[3].scrollIntoView({behavior: 'instant'})"
    )
    current = "nav a[aria-current]"
    WebDriverWait(page, 10).until(
        lambda b: (
            [e.get_attribute("hash") for e in b.find_elements("css selector", current)]
            == ["#class-003"]
        )
    )


def test_both_colour_schemes(page):
    means = {}
    for scheme in ("light", "dark"):
        show(page, scheme=scheme)
        page.execute_script("scrollTo({top: 0, behavior: 'instant'})")
        means[scheme] = screenshot(page).mean()
        plot = page.find_element("css selector", ".plots img")
        page.execute_script("arguments[0].scrollIntoView()", plot)
        WebDriverWait(page, 10).until(
            lambda b, plot=plot, scheme=scheme: (
                run(b, "arguments[0].currentSrc", plot).endswith("-dark.svg")
                == (scheme == "dark")
            )
        )
        colours = run(
            page,
            "[getComputedStyle(document.body).color,"
            " getComputedStyle(document.body).backgroundColor]",
        )
        assert contrast(*colours) > 7
    assert means["light"] > 220 and means["dark"] < 60
