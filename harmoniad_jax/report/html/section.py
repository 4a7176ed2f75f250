"""The part of the page about one category: content in, HTML out."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from harmoniad_jax.metrics import METRIC_NAMES
from harmoniad_jax.report.content import CategoryContent, Kind, Sample
from harmoniad_jax.report.html.markup import Markup, element, join
from harmoniad_jax.report.html.parts import (
    UNDEFINED,
    category_name,
    image,
    is_undefined,
    metric_list,
    metric_value,
    name_of,
    plot_image,
    score_text,
)
from harmoniad_jax.report.plots import BAR_INCHES, PLOT_INCHES
from harmoniad_jax.words import in_words

# Title and explanation of the samples of each kind, in the order of the page.
GROUPS: dict[Kind, tuple[str, str]] = {
    "miss": (
        "Worst misses",
        "Defective, but not above the threshold; lowest scores first.",
    ),
    "false_alarm": (
        "Worst false alarms",
        "Good, but above the threshold; highest scores first.",
    ),
    "hit": (
        "Hits",
        "Defective and above the threshold: the closest calls, then typical ones.",
    ),
    "correct": (
        "Correctly passed",
        "Good and not above the threshold; highest scores first.",
    ),
}
GROUPS_WITHOUT_THRESHOLD: dict[Kind, tuple[str, str]] = {
    "miss": ("Least conspicuous defects", "Defective images with the lowest scores."),
    "false_alarm": ("Most conspicuous good images", "Good images with the highest scores."),
    "hit": ("Typical defects", "Defective images with scores near their median."),
    "correct": ("Other good images", "Good images with lower scores."),
}


class Plot(NamedTuple):
    """A plot: its title, the metric that sums it up, and its files without endings."""

    title: str
    metric: str | None
    stem: str


class Bar(NamedTuple):
    """A colour bar: of which maps, and its files without endings."""

    title: str
    stem: str


class View(NamedTuple):
    """One picture of a sample: its title and file, or why there is none."""

    title: str
    file: str | None
    instead: str = ""


class Section(NamedTuple):
    """The finished part about one category, and the id that links to it."""

    category: str
    anchor: str
    html: Markup


def category_section(
    content: CategoryContent,
    anchor: str,
    plots: Sequence[Plot],
    bars: Sequence[Bar],
    views: Sequence[Sequence[View]],
    *,
    left_out: int = 0,
) -> Section:
    """The part of the page about one category.

    Args:
      content: its metrics, scores and samples; no pixel of them is looked at.
      anchor: the id of the section.
      plots, bars: which there are of it.
      views: the pictures of each of `content.samples`.
      left_out: samples that there was no room for.
    """
    title = f"{anchor}-title"
    html = element(
        "section",
        element("h2", category_name(content.category), id=title),
        element("p", _verdict(content), class_="lead"),
        metric_list(content.metrics, "metrics"),
        element("div", (_plot(plot, content) for plot in plots), class_="plots"),
        _undefined_note(content),
        _gallery(content, bars, views, left_out),
        class_="category",
        id=anchor,
        aria_labelledby=title,
        data_name=content.category,
    )
    return Section(content.category, anchor, html)


def _verdict(content: CategoryContent) -> Markup:
    """What the threshold does to the images of a category, in a line."""
    labels = np.asarray(content.image_labels, dtype=bool)
    parts: list[str | Markup] = []
    for chosen, kind, outcome in (
        (labels, "defective", "found"),
        (~labels, "good", "flagged"),
    ):
        images = in_words(int(chosen.sum()), f"{kind} image", f"{kind} images")
        if content.threshold is None or not chosen.any():
            parts.append(images)
        else:
            above = np.asarray(content.image_scores)[chosen] > content.threshold
            number = element("strong", int(above.sum()))
            parts.append(join(number, f" of {images} {outcome}"))
    start = "No threshold"
    if content.threshold is not None:
        start = join("Threshold ", element("strong", score_text(content.threshold)))
    return join(start, ": ", parts[0], ", ", parts[1])


def _undefined_note(content: CategoryContent) -> Markup | None:
    if not any(is_undefined(content.metrics.get(name)) for name in METRIC_NAMES):
        return None
    labels = np.asarray(content.image_labels, dtype=bool)
    if not len(labels):
        reason = "there are no test images"
    elif labels.all() or not labels.any():
        reason = f"all test images are {'defective' if labels.any() else 'good'}"
    else:
        reason = "pixel metrics need defects with masks"
    note = f"Metrics marked “{UNDEFINED}” and their curves are undefined: {reason}."
    return element("p", note, class_="undefined-note")


def _plot(plot: Plot, content: CategoryContent) -> Markup:
    value = None
    if plot.metric is not None:
        value = metric_value(content.metrics.get(plot.metric))
    description = f"{plot.title}: {content.category}"
    return element(
        "figure",
        plot_image(plot.stem, description, PLOT_INCHES),
        element(
            "figcaption",
            element("span", plot.title, class_="title"),
            value,
            element(
                "a", "PNG", href=f"{plot.stem}.png", aria_label=f"{description}, as PNG"
            ),
        ),
    )


def _gallery(
    content: CategoryContent,
    bars: Sequence[Bar],
    views: Sequence[Sequence[View]],
    left_out: int,
) -> Markup:
    if not content.samples:
        reason = ", so that the report stays small" if left_out else ""
        return element("p", f"No images of this class are shown{reason}.", class_="empty")
    legend = (
        element(
            "figure",
            element("figcaption", bar.title),
            plot_image(bar.stem, f"Colours of: {bar.title}", BAR_INCHES),
        )
        for bar in bars
    )
    return element(
        "div",
        element("div", legend, class_="bars"),
        _groups(content, views),
        element(
            "p",
            f"{in_words(left_out, 'more image is', 'more images are')} left out, so that "
            "the report stays small.",
            class_="explanation",
        )
        if left_out
        else None,
        class_="gallery",
    )


def _groups(content: CategoryContent, views: Sequence[Sequence[View]]) -> Iterator[Markup]:
    titles = GROUPS if content.threshold is not None else GROUPS_WITHOUT_THRESHOLD
    for kind, (title, explanation) in titles.items():
        cards = [
            _card(sample, pictures)
            for sample, pictures in zip(content.samples, views, strict=True)
            if sample.kind == kind
        ]
        nothing = None if cards else _why_nothing(content, kind)
        if cards or nothing:
            yield element("h3", title)
            yield element("p", nothing or explanation, class_="explanation")
        if cards:
            yield element("ul", cards, class_="samples")


def _why_nothing(content: CategoryContent, kind: Kind) -> str | None:
    """A word about an empty group, where its emptiness is good news."""
    if content.threshold is None or kind not in ("miss", "false_alarm"):
        return None
    labels = np.asarray(content.image_labels, dtype=bool)
    above = np.asarray(content.image_scores) > content.threshold
    if kind == "miss" and labels.any() and above[labels].all():
        return "None: every defective image lies above the threshold."
    if kind == "false_alarm" and (~labels).any() and not above[~labels].any():
        return "None: no good image lies above the threshold."
    return None


def _card(sample: Sample, views: Sequence[View]) -> Markup:
    score = f"score {score_text(sample.score)}"
    return element(
        "li",
        element(
            "p",
            element("strong", name_of(sample.defect)),
            " ",
            element("span", score, class_="score"),
            " ",
            element("code", name_of(sample.path)),
            class_="about",
        ),
        element("div", (_view(view, sample, score) for view in views), class_="views"),
    )


def _view(view: View, sample: Sample, score: str) -> Markup:
    caption = element("span", view.title, class_="title")
    if view.file is None:
        nothing = element("span", view.instead, class_="nothing")
        return element("div", nothing, caption, class_="view")
    side = sample.image.shape
    description = f"{view.title}: {sample.defect}, {sample.path}"
    return element(
        "a",
        image(view.file, description, width=side[1], height=side[0]),
        caption,
        class_="view",
        href=view.file,
        aria_haspopup="dialog",
        data_title=view.title,
        data_about=f"{sample.defect} · {score} · {sample.path}",
    )
