"""The printed table: percent, a row a category, the mean last."""

import math

import numpy as np
import pytest

from harmoniad_jax.metrics import (
    METRIC_NAMES,
    Defects,
    category_metrics,
    defect_size_metrics,
    mean_metrics,
    mean_metrics_per_dataset,
)
from harmoniad_jax.report.notes import notes_on, notes_on_defect_sizes
from harmoniad_jax.report.tables import (
    HEADINGS,
    decisions_table,
    defect_sizes_table,
    f1_table,
    kinds_table,
    results_table,
    samples_table,
)


def figures(first, num_images=10):
    """Figures first, first + 0.01, ... in the order of the metrics."""
    values = {name: first + 0.01 * place for place, name in enumerate(METRIC_NAMES)}
    return {**values, "num_images": num_images}


def cells(table):
    """The table's text, cell by cell, without the rule below the headings."""
    lines = table.split("\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [rows[0], *rows[2:]]


RESULTS = {
    "step": 7,
    "per_category": {"bottle": figures(0.5), "a long name": figures(0.912, 1234)},
    "per_dataset": {},
    "mean": figures(0.706, 1244),
}


def test_headings():
    assert cells(results_table(RESULTS))[0] == [
        "category",
        "images",
        *("I-AUROC", "I-AP", "I-F1max"),
        *("P-AUROC", "P-AP", "P-F1max", "AUPRO"),
    ]
    assert set(HEADINGS) == set(METRIC_NAMES)


def test_a_row_for_each_category_in_order_and_the_mean_last():
    rows = cells(results_table(RESULTS))[1:]
    assert [row[:2] for row in rows] == [
        ["bottle", "10"],
        ["a long name", "1234"],
        ["mean", "1244"],
    ]


def test_figures_are_percent_in_the_order_of_the_headings():
    rows = cells(results_table(RESULTS))[1:]
    assert rows[0][2:] == ["50.0", "51.0", "52.0", "53.0", "54.0", "55.0", "56.0"]
    assert rows[1][2:] == ["91.2", "92.2", "93.2", "94.2", "95.2", "96.2", "97.2"]
    assert rows[2][2] == "70.6"


def test_headings_stand_over_their_own_figures():
    """Each metric alone at 100 %, the others at 0."""
    for name in METRIC_NAMES:
        one = {**dict.fromkeys(METRIC_NAMES, 0.0), name: 1.0, "num_images": 1}
        headings, row, mean = cells(
            results_table({"per_category": {"a": one}, "mean": one})
        )
        assert row[1:] == mean[1:]
        assert headings[row.index("100.0")] == HEADINGS[name]
        assert row.count("0.0") == len(METRIC_NAMES) - 1


@pytest.mark.parametrize("undefined", [None, math.nan, np.float64("nan")])
def test_undefined_figures_are_a_dash(undefined):
    row = {**figures(0.5), "pixel_aupro": undefined, "image_ap": undefined}
    found = cells(results_table({"per_category": {"a": row}, "mean": row}))
    for line in found[1:]:
        assert line[2:] == ["50.0", "-", "52.0", "53.0", "54.0", "55.0", "-"]


def test_columns_are_aligned_and_form_a_markdown_table():
    lines = results_table(RESULTS).split("\n")
    assert len({len(line) for line in lines}) == 1
    bars = {tuple(i for i, c in enumerate(line) if c == "|") for line in lines}
    assert len(bars) == 1
    first, *others = lines[1].strip("|").split("|")
    assert set(first) == {"-"}
    assert all(set(rule) == {"-", ":"} and rule.endswith("-:") for rule in others)


def test_joined_data_sets_have_a_row_each_before_the_mean():
    per_category = {
        "folder/pill": figures(0.5, 10),
        "demo/pill": figures(0.25, 20),
        "folder/nut": figures(0.75, 30),
    }
    results = {
        "per_category": per_category,
        "per_dataset": mean_metrics_per_dataset(per_category),
        "mean": mean_metrics(per_category),
    }
    rows = cells(results_table(results))[1:]
    assert [row[:3] for row in rows] == [
        ["folder/pill", "10", "50.0"],
        ["demo/pill", "20", "25.0"],
        ["folder/nut", "30", "75.0"],
        ["mean of folder", "40", "62.5"],
        ["mean of demo", "20", "25.0"],
        ["mean", "60", "50.0"],
    ]


def test_results_of_one_data_set_have_no_row_for_it():
    """Nor those that were written before data sets could be joined."""
    older = {name: value for name, value in RESULTS.items() if name != "per_dataset"}
    assert results_table(older) == results_table(RESULTS)
    assert "mean of" not in results_table(RESULTS)


def test_takes_what_the_metrics_give():
    """Also where there is nothing to find: no figure, but no failure."""
    random = np.random.default_rng(0)
    maps = random.random((4, 8, 8))
    masks = np.zeros((4, 8, 8), bool)
    masks[2:, 2:4, 2:4] = True
    labels = np.array([False, False, True, True])
    known = np.ones(4, bool)
    scores = maps.max(axis=(1, 2))
    per_category = {
        "both": category_metrics(maps, masks, scores, labels, mask_known=known),
        "good": category_metrics(
            maps[:2], masks[:2], scores[:2], labels[:2], mask_known=known[:2]
        ),
    }
    results = {"per_category": per_category, "mean": mean_metrics(per_category)}
    _, both, good, mean = cells(results_table(results))
    assert (both[1], good[1]) == ("4", "2")
    assert "-" not in both
    assert good[2] == "-"
    assert mean[0] == "mean"


# What thresholds achieve.


def decision(precision, recall, alarms, threshold=1.5, held_out=20):
    return {
        "threshold": threshold,
        "held_out": held_out,
        "keeps_rate": held_out >= 99,
        "precision": precision,
        "recall": recall,
        "false_positive_rate": alarms,
    }


DECISIONS = {
    "false_positive_rate": 0.01,
    "per_category": {
        "bottle": decision(1.0, 0.9, 0.02, threshold=-0.25),
        "a long name": decision(None, 0.0, math.nan, held_out=103),
    },
    "shared": {
        "bottle": decision(0.8, 0.7, 0.6),
        "a long name": decision(0.5, 0.4, 0.3),
    },
}


def test_a_category_without_held_out_images_is_said_to_share_its_threshold():
    own = {**DECISIONS["per_category"], "cap": decision(1.0, 0.9, 0.0, held_out=0)}
    results = {"decisions": {**DECISIONS, "per_category": own}}
    notes = list(notes_on(results))
    (note,) = [note for note in notes if "single training image" in note]
    assert note.startswith("Of cap there was") and "the shared threshold is taken" in note
    (few,) = [note for note in notes if "the highest score of fewer" in note]
    assert "that of bottle is" in few


def test_thresholds_are_a_row_a_category_own_figures_first():
    headings, *rows = cells(decisions_table(DECISIONS))
    assert headings[0] == "at 1.0 % false alarms"
    assert rows == [
        ["bottle", "20", "-0.250", "100.0", "90.0", "2.0", "80.0", "70.0", "60.0"],
        ["a long name", "103", "1.500", "-", "0.0", "-", "50.0", "40.0", "30.0"],
    ]
    assert len(headings) == len(rows[0])
    assert headings[6].startswith("shared")


def test_the_table_of_thresholds_is_aligned():
    lines = decisions_table(DECISIONS).split("\n")
    assert len({len(line) for line in lines}) == 1


SIZES = {
    "edges": [0.0002, 0.001, 0.01, 0.05, 0.25],
    "all": [
        {"num_defects": 5, "overlap": 0.4, "recall": 0.2},
        {"num_defects": 4, "overlap": 0.6, "recall": 0.5},
        {"num_defects": 4, "overlap": 0.8, "recall": 0.75},
        {"num_defects": 5, "overlap": 0.9, "recall": 1.0},
    ],
}


def test_defects_by_size_smallest_first():
    rows = cells(defect_sizes_table(SIZES))
    assert rows[1] == ["0.02 to 0.1 %", "5", "40.0", "20.0"]
    assert rows[4] == ["5 to 25 %", "5", "90.0", "100.0"]


def test_a_sentence_on_the_smallest_and_the_largest_defects():
    assert list(notes_on_defect_sizes(SIZES)) == [
        "By the size of the defect: of the 5 smallest, 0.02 to 0.1 % of the image, "
        "AUPRO is 40.0 and 20.0 % are found; of the 5 largest, 5 to 25 % of the "
        "image, AUPRO is 90.0 and 100.0 % are found."
    ]
    unknown = [{**figures, "recall": None} for figures in SIZES["all"]]
    (note,) = notes_on_defect_sizes({**SIZES, "all": unknown})
    assert "are found" not in note


def test_one_defect_is_neither_small_nor_large():
    one = Defects(np.array([1.0]), np.array([3.0]), np.array([0.5]))
    sizes = defect_size_metrics({"a": one}, {"a": 1.0})
    assert list(notes_on_defect_sizes(sizes)) == []
    rows = cells(defect_sizes_table(sizes))[1:]
    assert rows[0] == ["100 to 100 %", "1", "50.0", "100.0"]
    assert rows[3] == ["100 to 100 %", "0", "-", "-"]


def test_f1_of_images_and_pixels_with_means_over_what_is_defined():
    decisions = {"per_category": {"bottle": {"f1": 0.5}, "cap": {"f1": None}}}
    pixels = {
        "per_category": {"bottle": {"f1": 0.25}, "cap": {"f1": 0.75}},
        "mean": {"f1": 0.5},
    }
    assert cells(f1_table(decisions, pixels))[1:] == [
        ["bottle", "50.0", "25.0"],
        ["cap", "-", "75.0"],
        ["mean", "50.0", "50.0"],
    ]


def test_products_that_are_seen_from_several_sides():
    metrics = {"sample_auroc": 0.9, "sample_ap": 0.8, "sample_f1max": None}
    samples = {"per_category": {"usb": {**metrics, "num_samples": 12}}, "mean": metrics}
    assert cells(samples_table(samples)) == [
        ["product, by its highest view", "products", "AUROC", "AP", "F1max"],
        ["usb", "12", "90.0", "80.0", "-"],
        ["mean", "", "90.0", "80.0", "-"],
    ]


def test_kinds_of_defects():
    scratches = {"image_auroc": 0.75, "au_spro": 0.5}
    kinds = {
        "fpr_limit": 0.05,
        "per_category": {"cap": {"scratches": {**scratches, "num_images": 3}}},
        "mean": {"scratches": scratches, "all kinds": scratches},
    }
    assert cells(kinds_table(kinds)) == [
        ["kind of defect", "images", "I-AUROC", "sPRO to 5 %"],
        ["cap: scratches", "3", "75.0", "50.0"],
        ["mean: scratches", "", "75.0", "50.0"],
        ["mean: all kinds", "", "75.0", "50.0"],
    ]
