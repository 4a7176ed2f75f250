"""Small parts that recur on the page of the report: names, numbers, metrics, plots."""

import math
from collections.abc import Mapping
from typing import Any

from harmoniad_jax.metrics import METRIC_NAMES
from harmoniad_jax.report.html.markup import Markup, element
from harmoniad_jax.report.tables import HEADINGS

UNDEFINED = "–"


def is_undefined(value: float | None) -> bool:
    return value is None or math.isnan(value)


def score_text(value: float) -> str:
    """An image score, to four digits."""
    return f"{value:#.4g}".replace("-", "−")


def name_of(name: str) -> Markup:
    """Somebody's text, set apart: letters that run from right to left stay inside."""
    return element("bdi", name)


def category_name(category: str) -> Markup:
    """A category; the name of its data set is paler, where it has one."""
    dataset, slash, name = category.partition("/")
    if not slash:
        return name_of(category)
    return element("bdi", element("span", dataset, slash, class_="dataset"), name)


def metric_value(value: float | None) -> Markup:
    """A fraction in percent; where it is undefined, a dash, read out as what it means."""
    if not is_undefined(value):
        return element("span", f"{100 * value:.1f}", class_="value")
    return element(
        "span",
        element("span", UNDEFINED, aria_hidden="true"),
        element("span", "undefined", class_="unseen"),
        class_="value undefined",
    )


def metric_list(metrics: Mapping[str, Any], classes: str) -> Markup:
    """The seven metrics, each under its heading."""
    return element(
        "dl",
        (
            element(
                "div",
                element("dt", HEADINGS[name]),
                element("dd", metric_value(metrics.get(name))),
            )
            for name in METRIC_NAMES
        ),
        class_=classes,
    )


def plot_image(stem: str, description: str, size: tuple[float, float]) -> Markup:
    """A plot in the colours of the page.

    Args:
      stem: path of its files, see `plots.save_plot`.
      description: what it shows, for those who do not see it.
      size: its width and height in inches; a CSS inch has 96 pixels.
    """
    width, height = (round(96 * inches) for inches in size)
    return element(
        "picture",
        element("source", srcset=f"{stem}-dark.svg", media="(prefers-color-scheme: dark)"),
        image(f"{stem}.svg", description, width, height),
    )


def image(file: str, description: str, width: int, height: int) -> Markup:
    """An image that is loaded when it comes near, and keeps its place until then."""
    return element(
        "img",
        src=file,
        alt=description,
        width=width,
        height=height,
        loading="lazy",
        decoding="async",
    )
