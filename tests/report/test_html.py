"""The report as files: whole, well-formed, and right whatever things are called."""

import base64
import gc
import hashlib
import re
import weakref
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from drawn import HOSTILE, draw_category, results_of, write_report
from PIL import Image

from harmoniad_jax.errors import UserError
from harmoniad_jax.metrics import METRIC_NAMES
from harmoniad_jax.report.html import writer
from harmoniad_jax.report.html.markup import Markup, element, text
from harmoniad_jax.report.html.writer import ReportWriter

VOID = {"img", "input", "meta", "source"}


class Page(HTMLParser):
    """Elements in their order, as (name, attributes); checks that each is closed."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.texts, self._open = [], [], []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, name, attributes):
        assert len(dict(attributes)) == len(attributes)
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self._open.append(name)

    def handle_endtag(self, name):
        assert self._open.pop() == name

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("script", "style"):
            self.texts.append(data)

    def all(self, name):
        return [attributes for found, attributes in self.elements if found == name]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def page(index):
    return Page(index.read_text(encoding="utf-8"))


def page_of(tmp_path, contents):
    html = write_report(tmp_path / "report", results_of(contents), contents).read_text(
        "utf-8"
    )
    return Page(html), html


def quiet(content):
    """The same without pictures, which are slow to draw."""
    return content._replace(
        samples=[], curves={}, image_scores=np.empty(0), image_labels=np.empty(0, bool)
    )


# Names


def test_names_make_no_element_and_no_attribute(page, index):
    html = index.read_text(encoding="utf-8")
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert {name for name, _ in page.elements} <= set(
        "html head meta title style body a header h1 ul li div nav label input p span bdi "
        "main section h2 h3 dl dt dd table caption thead tbody tfoot tr th td button "
        "details summary figure figcaption picture source img strong code dialog "
        "script".split()
    )
    for _, attributes in page.elements:
        assert not any(name.startswith(("on", "style")) for name in attributes)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", html)


def test_every_name_is_shown_as_it_is(page):
    names = {attributes["data-name"] for attributes in page.all("tr") if attributes}
    for name in HOSTILE[:3] + HOSTILE[4:6] + HOSTILE[8:]:
        assert name in names
        assert name in page.text
    assert "new␤line␉tab␀null\ufffd" in page.text
    assert "\\udcff not UTF-8" in page.text


def test_no_name_becomes_a_path(index):
    files = [path.relative_to(index.parent) for path in index.parent.rglob("*.*")]
    allowed = re.compile(r"index\.html|(plots|images)/\d{3}-[a-z0-9-]+\.(svg|png|jpg)")
    assert all(allowed.fullmatch(path.as_posix()) for path in files)
    assert not (index.parents[1] / "etc").exists()


def test_text_is_escaped_unless_it_is_markup():
    assert text("<&\"'>") == "&lt;&amp;&quot;&#x27;&gt;"
    assert element("p", "<b>", Markup("<i></i>"), None, ["&", 1]).strip() == (
        "<p>&lt;b&gt;<i></i>&amp;1</p>"
    )
    assert element("a", href='"x', class_="y", aria_label=None, hidden=True) == (
        '<a href="&quot;x" class="y" hidden></a>'
    )


# What the page points at


def test_every_file_is_there_and_every_link_leads_somewhere(page, index):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for _, attributes in page.elements:
        for name in ("href", "src", "srcset"):
            if name not in attributes:
                continue
            target = urlsplit(attributes[name])
            assert not target.scheme and not target.netloc
            if target.path:
                assert (index.parent / unquote(target.path)).is_file(), target.path
            else:
                assert target.fragment in ids
    used = {a[n] for _, a in page.elements for n in ("href", "src", "srcset") if n in a}
    files = {p.relative_to(index.parent).as_posix() for p in index.parent.rglob("*.*")}
    assert files - used == {"index.html"} | {
        file for file in files if re.search(r"-colours-\d\.png$", file)
    }


def test_images_are_described_and_loaded_late(page):
    images = [image for image in page.all("img") if "src" in image]
    assert len(images) > 100
    for image in images:
        assert image["alt"] and image["loading"] == "lazy"
        assert int(image["width"]) > 0 and int(image["height"]) > 0


def test_the_policy_allows_the_own_style_and_script_alone(page, index):
    html = index.read_text(encoding="utf-8")
    (policy,) = (m["content"] for m in page.all("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'; img-src 'self'; ")
    assert "unsafe" not in policy and "http" not in policy
    for kind in ("style", "script"):
        (content,) = re.findall(f"<{kind}>(.*)</{kind}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_pictures_are_of_the_image_and_small(index):
    files = sorted((index.parent / "images").iterdir())
    assert len(files) > 100
    for file in files:
        with Image.open(file) as picture:
            assert picture.size == (96, 96)
        assert file.stat().st_size < 10_000


# Figures


def test_figures_are_in_percent_in_the_order_of_the_metrics(tmp_path, drawn):
    figures = {name: i / 10 for i, name in enumerate(METRIC_NAMES)} | {"num_images": 1234}
    _, html = page_of(tmp_path, [quiet(drawn)._replace(metrics=figures)])
    (row,) = re.findall(r"<tbody>.*?</tbody>", html, re.DOTALL)
    cells = re.findall(r'data-value="([^"]*)">(?:<[^>]*>)?([\d.,–]*)', row)
    assert cells[0] == ("1234", "1,234")
    assert [shown for _, shown in cells[1:]] == [f"{10 * i:.1f}" for i in range(7)]
    assert [float(key) for key, _ in cells[1:]] == list(figures.values())[:-1]


@pytest.mark.parametrize("undefined", [None, float("nan"), np.float32("nan")])
def test_undefined_figures_are_a_dash_that_is_explained(tmp_path, drawn, undefined):
    figures = {**drawn.metrics, "pixel_aupro": undefined, "image_ap": undefined}
    results = results_of([drawn]) | {"per_category": {"bottle": figures}, "mean": figures}
    path = write_report(
        tmp_path / "report", results, [quiet(drawn)._replace(metrics=figures)]
    )
    html = path.read_text("utf-8")
    page = Page(html)
    # In the table and in its mean, in the list of means and in that of the class.
    assert html.count('class="value undefined"') == 8
    assert "nan" not in page.text.lower().replace("ñandú", "")
    assert "marks a metric that is undefined" in page.text
    assert html.count('data-value=""') == 4


def test_means_of_joined_data_sets(page):
    assert "Mean of one" in page.text and "Mean of two" in page.text
    assert "Mean of all classes" in page.text
    assert "1 defective image has no mask: it counts" in page.text
    assert "2 defects were smaller" in page.text


def test_thirty_joined_classes(tmp_path, drawn):
    names = [f"{data_set}/class {i}" for data_set in "abc" for i in range(10)]
    contents = [quiet(drawn)._replace(category=name) for name in names]
    page, _ = page_of(tmp_path, contents)
    assert [row["data-name"] for row in page.all("tr") if row] == names
    assert [s["data-name"] for s in page.all("section") if "data-name" in s] == names
    for data_set in "abc":
        assert f"Mean of {data_set}" in page.text
    assert "30 classes" in page.text


def test_no_test_images_at_all(tmp_path):
    page, _ = page_of(tmp_path, [])
    assert "There are no test images" in page.text
    assert not page.all("table")


def test_a_class_without_content_has_a_row_and_no_link(tmp_path, drawn):
    contents = [quiet(drawn), quiet(drawn)._replace(category="not shown")]
    path = write_report(tmp_path / "report", results_of(contents), contents[:1])
    page = Page(path.read_text("utf-8"))
    assert len([row for row in page.all("tr") if row]) == 2
    assert len([s for s in page.all("section") if "data-name" in s]) == 1


# Galleries


def section(html, name):
    found = re.search(f'<section [^>]*data-name="{name}">(.*?)</section>', html, re.DOTALL)
    return found.group(1)


def test_what_the_threshold_does_is_said(index, contents):
    html = section(index.read_text("utf-8"), "one/bottle")
    scores, labels, threshold = contents[0][3], contents[0][4], contents[0].threshold
    found, flagged = ((scores[chosen] > threshold).sum() for chosen in (labels, ~labels))
    said = Page(html).text
    assert (
        f"{found} of 6 defective images found, {flagged} of 8 good images flagged" in said
    )


@pytest.mark.parametrize(
    ("name", "said", "titles"),
    [
        ("one/capsule", "0 defective images, 6 good images", {"Most conspicuous good"}),
        (
            "one/cable",
            "5 defective images, 0 good images",
            {"Least conspicuous defects", "Typical defects"},
        ),
    ],
)
def test_without_threshold_nothing_is_called_missed(index, name, said, titles):
    page = Page(section(index.read_text("utf-8"), name))
    assert f"No threshold : {said}" in page.text or f"No threshold: {said}" in page.text
    assert all(title in page.text for title in titles)
    assert "Worst" not in page.text and "undefined: all test images are" in page.text


def test_good_news_and_what_is_not_there_are_said(index):
    html = index.read_text("utf-8")
    perfect = Page(section(html, "two/Café")).text
    assert "None: no good image lies above the threshold." in perfect
    assert "no defect" in perfect
    assert "no mask" in html
    assert "No images of this class are shown." in html


def test_each_sample_has_its_views(index, contents):
    html = section(index.read_text("utf-8"), "one/bottle")
    assert html.count("<li>") == len(contents[0].samples)
    titles = re.findall('<span class="title">([^<]*)</span>', html)
    views = ["Image", "Ground truth", "Anomaly map", "Overlay", "High branch", "Low branch"]
    start = titles.index("Image")
    assert titles[start:] == views * len(contents[0].samples)


# Files


def test_equal_content_gives_equal_files(tmp_path, drawn):
    trees = []
    for name in "ab":
        write_report(tmp_path / name, results_of([drawn]), [drawn])
        files = sorted((tmp_path / name).rglob("*.*"))
        trees.append([(f.relative_to(tmp_path / name), f.read_bytes()) for f in files])
    assert trees[0] == trees[1]


def test_an_older_report_is_replaced_and_nothing_of_it_stays(tmp_path, drawn):
    folder = tmp_path / "report"
    write_report(folder, results_of([drawn]), [drawn])
    path = write_report(folder, results_of([quiet(drawn)]), [quiet(drawn)])
    assert path == folder / "index.html"
    assert not list((folder / "images").iterdir())
    assert [entry.name for entry in tmp_path.iterdir()] == ["report"]


def test_a_failure_leaves_the_older_report(tmp_path, drawn):
    folder = tmp_path / "report"
    write_report(folder, results_of([quiet(drawn)]), [quiet(drawn)])
    before = (folder / "index.html").read_bytes()

    def failing():
        yield drawn
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_report(folder, results_of([drawn]), failing())
    assert (folder / "index.html").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["report"]


def test_what_a_killed_run_left_is_no_obstacle(tmp_path, drawn):
    (tmp_path / ".report.partial" / "images").mkdir(parents=True)
    (tmp_path / ".report.old").mkdir()
    for _ in range(2):
        write_report(tmp_path / "report", results_of([quiet(drawn)]), [quiet(drawn)])
    assert [entry.name for entry in tmp_path.iterdir()] == ["report"]


@pytest.mark.parametrize("file", ["thesis.tex", "index.html"])
def test_a_folder_of_other_things_is_not_replaced(tmp_path, drawn, file):
    (tmp_path / file).write_text("years of work")
    with pytest.raises(UserError, match="is not a report"):
        write_report(tmp_path, results_of([quiet(drawn)]), [quiet(drawn)])
    assert [entry.name for entry in tmp_path.iterdir()] == [file]


def test_the_pictures_of_two_categories_are_in_memory_at_most(tmp_path, drawn):
    alive = []

    def streamed():
        for seed in range(3):
            gc.collect()
            # The last one may be drawn still.
            assert not any(reference() is not None for reference in alive[:-1])
            content = draw_category(f"class {seed}", good=2, defective=2, seed=seed)
            alive.append(weakref.ref(content.samples[0].anomaly_map))
            yield content._replace(
                curves={}, image_scores=np.empty(0), image_labels=np.empty(0, bool)
            )
            del content

    results = results_of([drawn._replace(category=f"class {seed}") for seed in range(3)])
    write_report(tmp_path / "report", results, streamed())
    assert len(alive) == 3


def test_what_goes_wrong_while_drawing_is_raised(tmp_path, drawn, monkeypatch):
    def refuse(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr("harmoniad_jax.report.plots.save_plot", refuse)
    with pytest.raises(OSError, match="full"), ReportWriter(tmp_path / "report") as report:
        report.add(drawn)
        report.finish(results_of([drawn]))
    assert not list(tmp_path.iterdir())


def test_results_may_be_filled_while_categories_are_added(tmp_path, drawn):
    with ReportWriter(tmp_path / "report") as report:
        report.add(quiet(drawn))
        path = report.finish(results_of([quiet(drawn)]))
    assert "bottle" in path.read_text("utf-8")


@pytest.mark.parametrize(
    ("most", "fewest", "largest"), [(160_000, 0, 0), (380_000, 2, 8), (60_000_000, 9, 9)]
)
def test_a_report_stays_below_its_size(tmp_path, drawn, monkeypatch, most, fewest, largest):
    """Categories have equal shares, and show the most telling image of each kind."""
    monkeypatch.setattr(writer, "MOST_BYTES", most)
    one = drawn._replace(
        curves={}, image_scores=np.empty(0), image_labels=np.empty(0, bool)
    )
    contents = [one._replace(category=f"class {i}") for i in range(2)]
    with ReportWriter(tmp_path / "report", len(contents)) as report:
        for content in contents:
            report.add(content)
        path = report.finish(results_of(contents))
    files = [file for file in path.parent.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < most
    page = Page(path.read_text("utf-8"))
    left_out = largest < len(drawn.samples)
    assert ("so that the report stays small" in page.text) == left_out
    shown = {unquote(image["src"]) for image in page.all("img") if "src" in image}
    assert shown == {f"images/{file.name}" for file in files if file.suffix == ".jpg"} | {
        f"plots/{file.name}" for file in files if file.suffix == ".svg" and largest
    } - {f"plots/{file.name}" for file in files if "dark" in file.name}
    for number in ("001", "002"):
        kept = list(path.parent.glob(f"images/{number}-*-image.jpg"))
        assert fewest <= len(kept) <= largest
        places = {int(file.name.split("-")[1]) - 1 for file in kept}
        kinds = {sample.kind for sample in drawn.samples}
        assert not fewest or {drawn.samples[place].kind for place in places} == kinds
