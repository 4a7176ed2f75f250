"""Plots: what is drawn in them, and that files depend on nothing else."""

import sys

import matplotlib
import numpy as np
import pytest
from drawn import draw_category
from matplotlib.colors import to_hex
from PIL import Image

from harmoniad_jax.metrics.regions import FPR_LIMIT
from harmoniad_jax.report import plots
from harmoniad_jax.report.pictures import ColourScale


@pytest.fixture(scope="module")
def content():
    return draw_category("bottle", contrast=2.0)


def draw_all(content):
    curves = content.curves
    return {
        "scores": plots.score_histogram(
            content.image_scores, content.image_labels, content.threshold
        ),
        "roc": plots.roc_curve(*curves["roc"]),
        "pr": plots.precision_recall_curve(*curves["precision_recall"], 0.4),
        "pro": plots.pro_curve(*curves["pro"]),
        "bar": plots.colour_bar(ColourScale(-1.0, 7.0), 3.0),
    }


@pytest.mark.parametrize("count", [1, 2, 7, 60, 1000])
@pytest.mark.parametrize("threshold", [None, -50.0, 0.3, 50.0])
@pytest.mark.parametrize("spread", [0.0, 1e-9, 1.0, 1e6])
def test_every_score_is_in_one_bar_and_on_its_side(count, threshold, spread):
    random = np.random.default_rng(count)
    scores = (0.3 + spread * random.normal(size=count)).astype(np.float32)
    labels = random.random(count) < 0.5
    figure = plots.score_histogram(scores, labels, threshold)
    (axes,) = figure.axes
    bars = {patch.get_label(): patch.get_xy() for patch in axes.patches}
    expected = [
        name for name, any_ in (("good", ~labels), ("defective", labels)) if any_.any()
    ]
    assert list(bars) == expected
    edges = plots._bin_edges(scores.astype(np.float64), threshold)
    assert 1 <= len(edges) - 1 <= 20
    assert np.histogram(scores.astype(np.float64), edges)[0].sum() == count
    if threshold is not None:
        assert threshold in edges
        (line,) = axes.lines
        assert set(line.get_xdata()) == {threshold}


def test_curves_are_drawn_as_they_are(content):
    drawn = draw_all(content)
    for name, curve in (("roc", "roc"), ("pr", "precision_recall"), ("pro", "pro")):
        line = drawn[name].axes[0].lines[-1]
        assert np.array_equal(line.get_xydata(), np.stack(content.curves[curve], axis=1))
    assert drawn["pro"].axes[0].get_xlim() == (0, FPR_LIMIT)
    assert set(drawn["pr"].axes[0].lines[0].get_ydata()) == {0.4}


def test_a_colour_bar_is_marked_at_the_threshold():
    (axes,) = plots.colour_bar(ColourScale(-1.0, 7.0), 3.0).axes
    assert axes.get_xlim() == (-1, 7)
    assert {x for line in axes.lines for x in line.get_xdata()} == {3.0}
    assert all(-1 < tick < 7 for tick in axes.get_xticks())
    assert not plots.colour_bar(ColourScale(0.0, 1.0), None).axes[0].lines


def test_equal_plots_are_equal_files_whatever_the_user_has_set(content, tmp_path):
    folders = []
    for settings in ({}, {"font.size": 30, "savefig.dpi": 17, "axes.facecolor": "red"}):
        folders.append(tmp_path / str(len(folders)))
        folders[-1].mkdir()
        with matplotlib.rc_context(settings):
            for name, figure in draw_all(content).items():
                plots.save_plot(figure, folders[-1] / name)
    first, second = ({f.name: f.read_bytes() for f in d.iterdir()} for d in folders)
    assert len(first) == 15
    assert first == second


def test_dark_and_light_differ_in_colours_only(content, tmp_path):
    for name, figure in draw_all(content).items():
        plots.save_plot(figure, tmp_path / name)
        light = (tmp_path / f"{name}.svg").read_text()
        dark = (tmp_path / f"{name}-dark.svg").read_text()
        assert light != dark
        assert not any(colour in dark for colour in plots.LIGHT)
        assert "#000000" not in dark.replace("#000000; stroke-opacity: 0", "")
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width == 600


def test_no_colour_of_a_theme_is_another_ones():
    colours = [to_hex(colour) for colour in (*plots.LIGHT, *plots.DARK)]
    assert len(set(colours)) == len(colours)


def test_no_global_state_of_matplotlib_is_used(content, tmp_path):
    before = dict(matplotlib.rcParams)
    for name, figure in draw_all(content).items():
        plots.save_plot(figure, tmp_path / name)
    assert dict(matplotlib.rcParams) == before
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()
