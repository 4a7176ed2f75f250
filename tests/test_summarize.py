"""`python -m harmoniad_jax.summarize`: several runs in one table."""

import csv
import dataclasses
import functools
import io
import json
import re
from pathlib import Path

import pytest
from run_helpers import call_command

from harmoniad_jax.config import Config
from harmoniad_jax.errors import UserError
from harmoniad_jax.metrics import METRIC_NAMES
from harmoniad_jax.report.summary import (
    is_run,
    read_run,
    summary_rows,
    write_summary,
)
from harmoniad_jax.report.tables import HEADINGS

ROOT = Path(__file__).parents[1]
FIGURES = list(HEADINGS.values())


def config_with(**changes):
    """The defaults with some fields changed, written section__field."""
    config = Config()
    for name, value in changes.items():
        section, field = name.split("__")
        part = dataclasses.replace(getattr(config, section), **{field: value})
        config = dataclasses.replace(config, **{section: part})
    return config


def mean(first=0.5):
    values = {name: first + 0.01 * place for place, name in enumerate(METRIC_NAMES)}
    return {**values, "num_images": 10}


def make_run(folder, *, figures=None, log=((10, 5.0), (20, 2.0)), **changes):
    """A run's folder: settings, log lines of (step, steps per second), and results."""
    folder.mkdir(parents=True)
    config = config_with(**changes).to_dict()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if log is not None:
        lines = [
            json.dumps({"step": step, "loss": 0.5, "steps_per_second": speed})
            for step, speed in log
        ]
        (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    if figures is not None:
        results = {"step": 20, "per_category": {"a": figures}, "mean": figures}
        (folder / "results.json").write_text(json.dumps(results))
    return folder


def table(*folders):
    headings, *rows = summary_rows([read_run(folder) for folder in folders])
    assert all(len(row) == len(headings) for row in rows)
    return [dict(zip(headings, row, strict=True)) for row in rows]


def parse_markdown(text):
    """The cells of a Markdown table as its readers split them: at bars alone."""
    lines = text.split("\n")
    cells = [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in lines
    ]
    assert len({len(row) for row in cells}) == 1
    assert set("".join(cells[1])) <= {"-", ":"}
    return [cells[0], *cells[2:]]


def parse_csv(text):
    return list(csv.reader(io.StringIO(text, newline="")))


# What is in a row.


def test_figures_step_and_time(tmp_path):
    (row,) = table(make_run(tmp_path / "a", figures=mean(0.5)))
    assert row["run"] == str(tmp_path / "a")
    assert row["step"] == "20"
    assert [row[name] for name in FIGURES] == [
        *("50.0", "51.0", "52.0", "53.0", "54.0", "55.0", "56.0")
    ]
    # Ten steps at five a second, and ten at two.
    assert row["training time"] == "0:00:07"
    assert list(row) == ["run", "step", *FIGURES, "training time"]


def test_only_settings_that_differ_have_columns(tmp_path):
    first = make_run(tmp_path / "a", figures=mean())
    second = make_run(tmp_path / "b", train__num_steps=7, model__gate="ideal")
    rows = table(first, second)
    assert list(rows[0])[:4] == ["run", "step", "model.gate", "train.num_steps"]
    assert [row["model.gate"] for row in rows] == ["sigmoid", "ideal"]
    assert [row["train.num_steps"] for row in rows] == ["10000", "7"]


def test_lists_and_truths_differ_too(tmp_path):
    first = make_run(tmp_path / "a", encoder__taps=(1, 2), model__mirror=True)
    second = make_run(tmp_path / "b", encoder__taps=(1, 2, 3), model__mirror=False)
    rows = table(first, second)
    assert [row["encoder.taps"] for row in rows] == ["1 2", "1 2 3"]
    assert [row["model.mirror"] for row in rows] == ["True", "False"]


def test_a_setting_that_an_older_version_did_not_have(tmp_path):
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    config = json.loads((second / "config.json").read_text())
    del config["calibration"]
    (second / "config.json").write_text(json.dumps(config))
    rows = table(first, second)
    assert [row["calibration.holdout"] for row in rows] == ["0.1", "-"]
    assert "train.num_steps" not in rows[0]


def test_runs_stand_in_the_order_that_they_are_named_in(tmp_path):
    folders = [make_run(tmp_path / name) for name in "cab"]
    assert [row["run"] for row in table(*folders)] == [str(f) for f in folders]


@pytest.mark.parametrize(
    ("log", "time"),
    [
        ([], "0:00:00"),
        ([(1, 0.01)], "0:01:40"),
        ([(3600, 1.0), (7200, 0.5)], "3:00:00"),
        ([(100_000, 0.25)], "111:06:40"),
    ],
)
def test_time_is_that_of_the_steps(tmp_path, log, time):
    assert table(make_run(tmp_path / "a", log=log))[0]["training time"] == time


# Runs that are not finished, or damaged.


def test_a_run_without_results_shows_how_far_it_is(tmp_path):
    (row,) = table(make_run(tmp_path / "a"))
    assert row["step"] == "20"
    assert {row[name] for name in FIGURES} == {"-"}
    assert row["training time"] == "0:00:07"


def test_a_run_that_has_not_made_a_step(tmp_path):
    (row,) = table(make_run(tmp_path / "a", log=None))
    assert (row["step"], row["training time"]) == ("-", "0:00:00")


def test_undefined_figures_and_no_test_images_are_dashes(tmp_path):
    undefined = {**mean(), "image_ap": None}
    first = make_run(tmp_path / "a", figures=undefined)
    second = make_run(tmp_path / "b", figures={})
    rows = table(first, second)
    assert [rows[0][name] for name in ("I-AUROC", "I-AP")] == ["50.0", "-"]
    assert {rows[1][name] for name in FIGURES} == {"-"}


@pytest.mark.parametrize(
    "tail",
    [
        "{",
        '{"step": 30, "loss": 0.',
        '{"step": 30, "steps_per_second": 1.0',
        "\n",
        "\x00" * 9,
    ],
)
def test_a_last_line_that_is_not_whole_is_left_out(tmp_path, tail):
    """The run is being written, or was killed."""
    folder = make_run(tmp_path / "a")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(tail)
    (row,) = table(folder)
    assert (row["step"], row["training time"]) == ("20", "0:00:07")


def test_every_cut_of_the_log_is_read(tmp_path):
    folder = make_run(tmp_path / "a")
    path = folder / "metrics.jsonl"
    content = path.read_bytes()
    steps = set()
    for end in range(len(content)):
        path.write_bytes(content[:end])
        steps.add(table(folder)[0]["step"])
    assert steps == {"-", "10", "20"}


@pytest.mark.parametrize("name", ["config.json", "results.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"7"])
def test_a_damaged_file_is_named(tmp_path, name, content):
    folder = make_run(tmp_path / "a", figures=mean())
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(f"{folder / name} is damaged")):
        read_run(folder)


def test_a_log_of_another_kind_is_named(tmp_path):
    folder = make_run(tmp_path / "a")
    (folder / "metrics.jsonl").write_text('{"epoch": 1}\n')
    with pytest.raises(
        UserError, match=re.escape(f"{folder / 'metrics.jsonl'} is damaged")
    ):
        read_run(folder)


def test_what_is_no_run(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("Dear reader")
    for name in ("empty", "file", "nowhere"):
        assert not is_run(tmp_path / name)
    assert is_run(make_run(tmp_path / "run"))


def test_an_encoder_is_no_run(tmp_path):
    """It has a config.json as well, and may lie beside the runs."""
    config = {"model_type": "dinov2", "hidden_size": 384, "architectures": ["Dinov2Model"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not is_run(tmp_path)


# The two formats.

ODD = ["a|b", "comma, space", 'quo"te', "|", "-", "ä 产品", "a\\b", ""]


@pytest.mark.parametrize("value", ODD)
def test_any_value_comes_back_from_both_formats(tmp_path, value):
    folders = [
        make_run(tmp_path / "plain", figures=mean(), data__root="elsewhere"),
        make_run(tmp_path / "o|d,d", data__root=value),
    ]
    runs = [read_run(folder) for folder in folders]
    rows = summary_rows(runs)
    assert rows[2][rows[0].index("data.root")] == value
    assert parse_csv(write_summary(runs, "csv")) == rows
    assert parse_markdown(write_summary(runs, "markdown")) == rows


def test_a_value_of_several_lines_breaks_no_table(tmp_path):
    folders = [make_run(tmp_path / "a"), make_run(tmp_path / "b", data__root="x\ny\r\nz")]
    runs = [read_run(folder) for folder in folders]
    assert parse_csv(write_summary(runs, "csv")) == summary_rows(runs)
    assert len(parse_markdown(write_summary(runs, "markdown"))) == 3


def test_markdown_is_aligned(tmp_path):
    folders = [make_run(tmp_path / name, figures=mean()) for name in ("a", "longer|name")]
    text = write_summary([read_run(folder) for folder in folders], "markdown")
    assert len({len(line) for line in text.split("\n")}) == 1


# The command itself, and a run of this program.


summarize = functools.partial(call_command, "summarize")


def test_the_command_prints_a_table_and_says_what_it_left_out(tmp_path):
    make_run(tmp_path / "runs/a", figures=mean())
    make_run(tmp_path / "runs/b", train__seed=3)
    (tmp_path / "runs/notes").mkdir()
    folders = ["runs/a", "runs/b", "runs/notes"]
    done = summarize(*folders, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "runs/notes is no run: left out\n"
    rows = parse_markdown(done.stdout.rstrip("\n"))
    assert rows[0][:3] == ["run", "step", "train.seed"]
    assert [row[0] for row in rows[1:]] == ["runs/a", "runs/b"]
    done = summarize("--format=csv", *folders, folder=tmp_path)
    assert parse_csv(done.stdout) == rows


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((), "name the folders of runs"),
        (("tests", "nowhere"), "none of these is a run"),
        (("--format=html", "tests"), "markdown"),
        (("--nonsense", "tests"), "nonsense"),
    ],
)
def test_bad_arguments_are_a_line_and_status_two(arguments, part):
    done = summarize(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert part in done.stderr
    assert done.stdout == ""


def test_a_run_of_this_program_is_read(trained_run):
    assert is_run(trained_run.workdir)
    (row,) = table(trained_run.workdir)
    results = json.loads((trained_run.workdir / "results.json").read_text())
    assert row["step"] == str(trained_run.config.train.num_steps)
    for name, heading in HEADINGS.items():
        assert row[heading] == f"{100 * results['mean'][name]:.1f}"
    assert re.fullmatch(r"0:\d\d:\d\d", row["training time"])
