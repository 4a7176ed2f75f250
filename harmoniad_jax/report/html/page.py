"""The page of the report around the parts about categories: results in, HTML out."""

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

from harmoniad_jax.metrics import METRIC_NAMES
from harmoniad_jax.report.html.markup import Markup, element, join
from harmoniad_jax.report.html.parts import (
    UNDEFINED,
    category_name,
    is_undefined,
    metric_list,
    metric_value,
    name_of,
)
from harmoniad_jax.report.html.section import Section
from harmoniad_jax.report.notes import (
    notes_on,
    notes_on_defect_sizes,
    notes_on_protocols,
)
from harmoniad_jax.report.tables import HEADINGS
from harmoniad_jax.words import in_words

# A folder is known by this as a report, which a newer one may replace.
GENERATOR = "harmoniad-jax report"

MEANINGS = {
    "image_auroc": "How often a defective image scores above a good one.",
    "image_ap": "Area under the images’ precision-recall curve.",
    "image_f1max": "The best F1 that a threshold on the image scores can reach.",
    "pixel_auroc": "How often a defective pixel’s value is above a defect-free one’s.",
    "pixel_ap": "Area under the pixels’ precision-recall curve.",
    "pixel_f1max": "The best F1 that a threshold on the maps can reach.",
    "pixel_aupro": "Mean share of each defect region that is found, over false-positive "
    "rates of the pixels up to 30 %, or as noted. Small defects count as much as large "
    "ones.",
}


def document(results: Mapping[str, Any], sections: Sequence[Section]) -> str:
    """The whole page, with its style and its script inside.

    Args:
      results: as in `results.json`.
      sections: the parts about categories, in their order.
    """
    style, script = _resource("page.css"), _resource("page.js")
    # Loads nothing but images that lie beside the page, runs nothing but this script.
    policy = (
        f"default-src 'none'; img-src 'self'; style-src {_hash(style)}; "
        f"script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="generator", content=GENERATOR),
        element("title", "Evaluation report"),
        element("style", style),
    )
    body = element(
        "body",
        element("a", "Skip to the results", href="#summary", class_="skip"),
        _masthead(results),
        element(
            "div",
            _navigation(results, sections),
            element(
                "main",
                _summary(results, sections),
                (section.html for section in sections),
            ),
            class_="layout",
        ),
        _dialog(),
        element("script", script),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}"


def _masthead(results: Mapping[str, Any]) -> Markup:
    per_category = results["per_category"]
    images = sum(metrics["num_images"] for metrics in per_category.values())
    facts = [
        in_words(len(per_category), "class", "classes"),
        in_words(images, "test image", "test images"),
    ]
    for title, key in (("step", "step"), ("encoder", "encoder"), ("run", "config_hash")):
        if results.get(key) is not None:
            facts.append(join(f"{title} ", name_of(str(results[key]))))
    return element(
        "header",
        element("h1", "Evaluation report"),
        element("ul", (element("li", fact) for fact in facts), class_="facts"),
        class_="masthead",
    )


def _navigation(results: Mapping[str, Any], sections: Sequence[Section]) -> Markup:
    mean = metric_value(results["mean"].get("image_auroc"))
    items = [element("li", element("a", "Summary", mean, href="#summary"))]
    for section in sections:
        metrics = results["per_category"].get(section.category, {})
        link = element(
            "a",
            element("span", category_name(section.category), class_="name"),
            metric_value(metrics.get("image_auroc")),
            href=f"#{section.anchor}",
        )
        items.append(element("li", link, data_name=section.category))
    return element(
        "nav",
        element("label", "Filter classes", for_="filter", class_="unseen"),
        element(
            "input",
            type="search",
            id="filter",
            placeholder="Filter",
            autocomplete="off",
            spellcheck="false",
        ),
        element("p", id="matches", role="status"),
        element("p", HEADINGS["image_auroc"], class_="unit"),
        element("ul", items),
        class_="classes",
        aria_label="Classes",
    )


def _summary(results: Mapping[str, Any], sections: Sequence[Section]) -> Markup:
    if results["per_category"]:
        anchors = {section.category: section.anchor for section in sections}
        parts = [
            element("p", "Mean of all classes, in percent", class_="lead"),
            metric_list(results["mean"], "metrics large"),
            _table(results, anchors),
            _notes(results),
        ]
    else:
        parts = [element("p", "There are no test images: nothing was evaluated.")]
    return element("section", element("h2", "Summary"), parts, id="summary")


def _table(results: Mapping[str, Any], anchors: Mapping[str, str]) -> Markup:
    """A row for each category, linked to its section, and below the means.

    Args:
      results: as in `results.json`.
      anchors: category to the id of its section, where it has one.
    """
    groups = [
        (title, sum(name.startswith(title.lower()) for name in METRIC_NAMES))
        for title in ("Image", "Pixel")
    ]
    # The group stands above the column: its letter in the heading would say it twice.
    columns = [HEADINGS[name].split("-", 1)[-1] for name in METRIC_NAMES]
    head = element(
        "thead",
        element(
            "tr",
            _sortable("Class", rowspan=2, class_="class"),
            _sortable("Images", rowspan=2, class_="count"),
            (
                element("th", title, colspan=width, scope="colgroup")
                for title, width in groups
            ),
        ),
        element("tr", map(_sortable, columns)),
    )
    rows = []
    for category, metrics in results["per_category"].items():
        title = category_name(category)
        if category in anchors:
            title = element("a", title, href=f"#{anchors[category]}")
        rows.append(_row(title, metrics, data_name=category))
    means = [
        _row(join("Mean of ", name_of(name)), metrics)
        for name, metrics in results.get("per_dataset", {}).items()
    ]
    return element(
        "table",
        element("caption", "Metrics of each class, in percent", class_="unseen"),
        head,
        element("tbody", rows),
        element("tfoot", means, _row("Mean of all classes", results["mean"])),
    )


def _sortable(title: str, **attributes: Any) -> Markup:
    button = element("button", title, type="button")
    return element("th", button, scope="col", aria_sort="none", **attributes)


def _row(title: str | Markup, metrics: Mapping[str, Any], **attributes: str) -> Markup:
    """A row of the table; every cell says what it is sorted by, "" if undefined."""
    images = metrics["num_images"]
    cells = [element("td", f"{images:,}", class_="count", data_value=images)]
    for name in METRIC_NAMES:
        key = "" if is_undefined(metrics[name]) else repr(float(metrics[name]))
        cells.append(element("td", metric_value(metrics[name]), data_value=key))
    heading = element("th", element("div", title), scope="row")
    return element("tr", heading, cells, **attributes)


def _notes(results: Mapping[str, Any]) -> Markup:
    lines = list(_notes_on(results))
    meanings = (
        element("div", element("dt", HEADINGS[name]), element("dd", MEANINGS[name]))
        for name in METRIC_NAMES
    )
    return element(
        "div",
        element("ul", (element("li", line) for line in lines)) if lines else None,
        element(
            "details",
            element("summary", "What the metrics mean"),
            element("dl", meanings),
        ),
        class_="notes",
    )


def _notes_on(results: Mapping[str, Any]) -> Iterator[str]:
    rows = [*results["per_category"].values(), results["mean"]]
    if any(is_undefined(metrics[name]) for metrics in rows for name in METRIC_NAMES):
        yield (
            f"“{UNDEFINED}” marks a metric that is undefined: those of images need good "
            "and defective ones, those of pixels need defects with masks. A mean is over "
            "the classes in which its metric is defined."
        )
    yield from notes_on_protocols(results)
    if sizes := results.get("defect_sizes"):
        yield from notes_on_defect_sizes(sizes)
    yield from notes_on(results)


def _dialog() -> Markup:
    """The larger view; the script fills and opens it."""
    return element(
        "dialog",
        element("img", alt="", id="large"),
        element(
            "div",
            element("p", element("strong", id="large-title"), id="large-caption"),
            element("p", id="large-about"),
            class_="caption",
        ),
        element("button", "‹", type="button", id="before", aria_label="Previous picture"),
        element("button", "›", type="button", id="after", aria_label="Next picture"),
        element("button", "×", type="button", id="close", aria_label="Close"),
        tabindex=-1,
        aria_labelledby="large-title",
    )


def _resource(name: str) -> Markup:
    files = resources.files("harmoniad_jax.report.html")
    return Markup(files.joinpath(name).read_text(encoding="utf-8"))


def _hash(content: str) -> str:
    """What a Content-Security-Policy calls an inline script or style."""
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
