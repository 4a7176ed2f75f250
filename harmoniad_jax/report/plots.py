"""The plots of the report, drawn with matplotlib, without its global state.

Every function returns a `Figure` that nothing else refers to: it is freed with its last
reference, and nothing needs to be closed. `save_plot` writes it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from harmoniad_jax.report.pictures import HEAT_LEVELS, ColourScale, heat_colours

PLOT_INCHES = (3.0, 2.5)
BAR_INCHES = (3.0, 0.5)
PNG_DPI = 200
# A curve along the edge of its axes shows whole; guessing is thin and dotted.
CURVE = {"clip_on": False, "zorder": 3}
CHANCE = {"linestyle": (0, (1, 2)), "linewidth": 1}


class Theme(NamedTuple):
    """Colours of a plot, all different; the same as in page.css.

    Good and defective are blue and orange, which colour-blind readers tell apart.
    """

    ink: str
    faint: str
    curve: str
    good: str
    defective: str


LIGHT = Theme("#55595e", "#e3e3df", curve="#0f766e", good="#2a78b5", defective="#d9622b")
DARK = Theme("#a9adb3", "#34373b", curve="#4fb8ac", good="#62a8de", defective="#f08b55")


def score_histogram(
    scores: np.ndarray, labels: np.ndarray, threshold: float | None
) -> Figure:
    """How the scores of good and of defective images are distributed.

    Args:
      scores: [N] float, finite, N > 0.
      labels: [N] bool; True is defective.
      threshold: where to draw the line, if there is one.
    """
    with style():
        figure, axes = _plot("Image score", "Images")
        edges = _bin_edges(scores.astype(np.float64), threshold)
        for name, chosen, colour in (
            ("good", scores[~labels], LIGHT.good),
            ("defective", scores[labels], LIGHT.defective),
        ):
            if len(chosen):
                shape = {"bins": edges, "histtype": "stepfilled"}
                face, edge = (colour, 0.3), (colour, 1.0)
                axes.hist(chosen, facecolor=face, edgecolor=edge, label=name, **shape)
        if threshold is not None:
            axes.axvline(
                threshold, color=LIGHT.ink, linestyle=(0, (3, 2)), label="threshold"
            )
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        figure.legend(loc="outside upper left", ncols=3)
    return figure


def roc_curve(x: np.ndarray, y: np.ndarray) -> Figure:
    """A plot of `metrics.roc_curve`, [K] each, K > 0; the diagonal is chance."""
    with style():
        figure, axes = _plot("False-positive rate", "True-positive rate")
        axes.plot([0, 1], [0, 1], color=LIGHT.ink, **CHANCE)
        axes.plot(x, y, color=LIGHT.curve, **CURVE)
        _unit_axes(axes)
    return figure


def precision_recall_curve(x: np.ndarray, y: np.ndarray, share_defective: float) -> Figure:
    """A plot of `metrics.precision_recall_curve`, [K] each, K > 0.

    The level line is chance: the share of images that are defective.
    """
    with style():
        figure, axes = _plot("Recall", "Precision")
        axes.plot([0, 1], [share_defective] * 2, color=LIGHT.ink, **CHANCE)
        axes.plot(x, y, color=LIGHT.curve, **CURVE)
        _unit_axes(axes)
    return figure


def pro_curve(x: np.ndarray, y: np.ndarray) -> Figure:
    """A plot of `metrics.pro_curve`, [K] each, K > 0."""
    with style():
        figure, axes = _plot("False-positive rate of pixels", "Mean overlap of regions")
        axes.plot(x, y, color=LIGHT.curve, **CURVE)
        _unit_axes(axes)
        axes.set_xlim(0, x[-1])
        axes.set_xticks(np.linspace(0, x[-1], 4).round(3))
    return figure


def colour_bar(scale: ColourScale, threshold: float | None) -> Figure:
    """Which colour of `pictures.heat_map` is which value; a line at the threshold."""
    with style():
        figure = Figure(figsize=BAR_INCHES)
        axes = figure.add_axes((0.0, 0.5, 1.0, 0.5))
        colours = ListedColormap(heat_colours(np.linspace(0, 1, HEAT_LEVELS)))
        mappable = ScalarMappable(Normalize(*scale), colours)
        bar = figure.colorbar(mappable, cax=axes, orientation="horizontal")
        bar.outline.set_visible(False)
        # The bar is as wide as the plot: labels at its ends would be cut.
        room = 0.06 * (scale.high - scale.low)
        ticks = MaxNLocator(nbins=5).tick_values(*scale)
        bar.set_ticks(ticks[(ticks > scale.low + room) & (ticks < scale.high - room)])
        if threshold is not None:
            # White on dark and dark on bright would need two lines; this is one of each.
            axes.axvline(threshold, color="#141414", linewidth=3)
            axes.axvline(threshold, color="white", linewidth=1.5)
    return figure


def save_plot(figure: Figure, stem: Path) -> None:
    """Writes a plot as STEM.svg and STEM-dark.svg, without background, and STEM.png."""
    svg = stem.with_name(f"{stem.name}.svg")
    with style():
        # Without a date and the like, so that equal plots are equal files.
        figure.savefig(svg, transparent=True, metadata={"Date": None})
        png = stem.with_name(f"{stem.name}.png")
        figure.savefig(png, dpi=PNG_DPI, metadata={"Software": None})
    drawing = svg.read_text()
    for light, dark in zip(LIGHT, DARK, strict=True):
        drawing = drawing.replace(light, dark)
    stem.with_name(f"{stem.name}-dark.svg").write_text(drawing)


@contextmanager
def style() -> Iterator[None]:
    """Ours alone, whatever the user has set for plots of their own."""
    ours = {
        "axes.edgecolor": LIGHT.faint,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.labelcolor": LIGHT.ink,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "font.size": 8.5,
        "grid.color": LIGHT.faint,
        "grid.linewidth": 0.6,
        "legend.borderaxespad": 0,
        "legend.borderpad": 0.2,
        "legend.columnspacing": 1.2,
        "legend.frameon": False,
        "legend.handlelength": 1.2,
        "legend.handletextpad": 0.5,
        "legend.labelcolor": LIGHT.ink,
        "lines.linewidth": 1.6,
        "lines.solid_capstyle": "round",
        "svg.hashsalt": "harmoniad",  # Without it ids in the file are random.
        "xtick.color": LIGHT.faint,
        "xtick.labelcolor": LIGHT.ink,
        "ytick.color": LIGHT.faint,
        "ytick.labelcolor": LIGHT.ink,
    }
    with matplotlib.style.context(["default", ours]):
        yield


def _plot(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=PLOT_INCHES, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes


def _unit_axes(axes: Axes) -> None:
    """Both axes from 0 to 1, in percent."""
    axes.set(xlim=(0, 1), ylim=(0, 1))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([0, 0.25, 0.5, 0.75, 1])
        axis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))


def _bin_edges(scores: np.ndarray, threshold: float | None) -> np.ndarray:
    """Edges of 8 to 16 equal bins around scores [N] and threshold.

    More bins cannot be told apart at this size, and few images need few. The threshold
    is an edge: no bar stands on both of its sides.
    """
    marks = scores if threshold is None else np.append(scores, threshold)
    low, high = marks.min(), marks.max()
    # A range that vanishes beside the scores' size has no room for edges.
    if high - low <= 1e-6 * max(1.0, abs(low), abs(high)):
        low, high = low - 0.5, high + 0.5
    width = (high - low) / np.clip(len(scores) // 3, 8, 16)
    origin = low if threshold is None else threshold
    first, last = np.floor((low - origin) / width), np.ceil((high - origin) / width)
    # Not below the highest score, whatever the rounding; equal to the last edge counts.
    last += origin + last * width < high
    return origin + width * np.arange(first, last + 1)
