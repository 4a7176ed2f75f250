"""The benchmark of training: its arithmetic on made-up figures, and a tiny run of it."""

import json
import math

import pytest
import time_training
from training_parts import parts
from training_parts.matmul import best_rates
from training_parts.report import conclusion, limits, make_row, markdown_table
from training_parts.timing import Part, always_ready, nothing_read_ahead, time_parts

NOTHING = always_ready(lambda: None)


def row(name, seconds, flops=None, *, attention="", images=10):
    rates = {"bfloat16": 1000.0, "float32": 100.0}
    part = Part(name, NOTHING, images, flops or {}, attention, memory_bytes=2_000_000_000)
    return make_row(part, [seconds], rates)


# Arithmetic.


def test_a_share_counts_each_dtype_at_its_own_rate():
    """One second of bfloat16 and three of float32, done in eight."""
    mixed = row(parts.STEP, 8.0, {"bfloat16": 1000.0, "float32": 300.0})
    assert mixed.share == pytest.approx(0.5)
    assert (mixed.rate, mixed.flops) == (1.25, 1300.0)
    assert row(parts.READ_IMAGES, 8.0).share is None


def test_figures_are_medians_over_rounds():
    part = Part(parts.HEAD, NOTHING, 10, {"float32": 100.0})
    noisy = make_row(part, [1.0, 2.0, 50.0], {"float32": 100.0})
    assert (noisy.rate, noisy.share) == (5.0, 0.5)
    assert noisy.rounds == (10.0, 5.0, 0.2)


def test_operations_that_are_not_counted_have_no_share():
    part = Part(parts.HEAD, NOTHING, 10, None)
    assert make_row(part, [1.0], {"float32": 1.0}).share is None


def test_the_rate_of_a_dtype_is_that_of_its_fastest_shape():
    shapes = [
        Part("small", NOTHING, flops={"float32": 10.0}),
        Part("large", NOTHING, flops={"float32": 100.0}),
        Part("other", NOTHING, flops={"bfloat16": 100.0}),
    ]
    assert best_rates(shapes, [1.0, 5.0, 2.0]) == {"float32": 20.0, "bfloat16": 50.0}


def rows(read_images=1.0, read_features=0.1, encoder=2.0, fused=3.0, head=1.5):
    def step(encoder):
        return encoder + head

    return [
        row(parts.READ_IMAGES, read_images),
        row(parts.READ_FEATURES, read_features),
        row(parts.ENCODER, encoder, {"bfloat16": 1000.0}, attention="library"),
        row(parts.ENCODER, fused, {"bfloat16": 1000.0}, attention="fused"),
        row(parts.HEAD, head, {"float32": 75.0}),
        row(parts.STEP, step(encoder), attention="library"),
        row(parts.STEP, step(fused), attention="fused"),
        row(parts.FROM_IMAGES, max(read_images, step(encoder)), attention="library"),
        row(parts.FROM_FEATURES, max(read_features, head)),
    ]


@pytest.mark.parametrize(
    ("seconds", "from_images", "from_features"),
    [
        ({}, parts.ENCODER, parts.HEAD),
        # Slower than each of encoder and head, but not than both together.
        ({"read_images": 3.0}, parts.ENCODER, parts.HEAD),
        ({"read_images": 4.0}, parts.READ_IMAGES, parts.HEAD),
        ({"head": 2.5, "read_features": 2.6}, parts.HEAD, parts.READ_FEATURES),
        # The fastest encoder is the one that would be used.
        ({"encoder": 9.0, "fused": 1.0}, parts.HEAD, parts.HEAD),
    ],
)
def test_the_slowest_part_limits(seconds, from_images, from_features):
    found = limits(rows(**seconds))
    assert found == {parts.FROM_IMAGES: from_images, parts.FROM_FEATURES: from_features}


def test_the_conclusion_names_limits_and_the_encoders_shares():
    rates = {"bfloat16": 8e12}
    text = conclusion(rows(), rates, "bfloat16", 2, "gpu")
    assert "A bfloat16 matrix multiply reaches 4,000 GFLOP/s on each device." in text
    assert "train from images, 2.9 images/s, is limited by: encoder (5.0 images/s" in text
    assert "train from cached features, 6.7 images/s, is limited by: head" in text
    assert "reaches 50% with library and 33% with fused attention" in text
    assert "in bfloat16 is 50% or more." in text
    assert "With fused attention the encoder is 0.67 times as fast" in text
    assert "the aim" not in conclusion(rows(), rates, "bfloat16", 1, "cpu")


def test_the_table_has_rates_of_a_device_where_there_are_several():
    assert "| encoder (library) | 5.0 | 200.00 | 0.00 | 0 | 50% | 2.00 GB |" in (
        markdown_table(rows(), 1)
    )
    assert "| encoder (library) | 5.0 | 2.5 | 200.00 |" in markdown_table(rows(), 2)


def test_kinds_of_attention_are_compared_round_by_round():
    """The middle round was slow, and the last fast, for both."""
    made = [r for r in rows() if r.name != parts.ENCODER]
    for attention, seconds in (("library", [2.0, 8.0, 1.0]), ("fused", [1.0, 4.0, 2.0])):
        part = Part(parts.ENCODER, NOTHING, 10, {"float32": 1.0}, attention)
        made.append(make_row(part, seconds, {"float32": 1.0}))
    text = conclusion(made, {"float32": 1.0}, "float32", 1, "cpu")
    assert "With fused attention the encoder is 2.00 times as fast as with library" in text


# Timing.


def test_parts_are_timed_in_turn():
    called = []
    timed = [Part(n, always_ready(lambda n=n: called.append(n))) for n in "ab"]
    timed.append(Part("c", always_ready(lambda: called.append("c")), fewest_calls=3))
    seconds = time_parts(timed, rounds=2, seconds=1e-9)
    assert "".join(called) == 3 * "abccc"
    assert [len(column) for column in seconds] == [2, 2, 2]


def test_what_was_read_ahead_is_not_timed():
    batches = iter(range(100))
    with nothing_read_ahead(batches, 6, lambda: next(batches), warm=True) as work:
        assert work() == 7
    with nothing_read_ahead(batches, 6, lambda: next(batches), warm=False) as work:
        assert work() == 14


# The whole.

TINY = (
    *("--encoder", "untrained", "--image_side", "32", "--batch_size", "8"),
    *("--images", "6", "--drawn_side", "48", "--matmul_sides", "128,256"),
    *("--rounds", "1", "--seconds", "0.01"),
    "--config.encoder.untrained.width=32",
    "--config.model.variant=plain",
    "--config.model.plain_depth=2",
    "--config.model.head_width=16",
    "--config.evaluation.map_side=32",
    "--config.train.steps_per_call=2",
)


@pytest.mark.slow
def test_a_tiny_benchmark_has_every_part(tmp_path, capsys):
    path = tmp_path / "figures.json"
    time_training.main([*TINY, "--attention", "library,fused", "--json", str(path)])
    figures = json.loads(path.read_text())
    assert figures["devices"] == 8
    assert set(figures["matmul_flops_per_second"]) == {"float32"}
    found = [(part["name"], part["attention"]) for part in figures["parts"]]
    both = (parts.ENCODER, parts.STEP, parts.EVALUATION, parts.FROM_IMAGES)
    assert found == [
        (name, attention)
        for name in parts.IN_ORDER
        for attention in (("library", "fused") if name in both else (None,))
    ]
    reading = (parts.READ_IMAGES, parts.READ_FEATURES)
    for part in figures["parts"]:
        for rate in (part["images_per_second"], *part["images_per_second_of_rounds"]):
            assert math.isfinite(rate)
            assert rate > 0
        assert part["images_per_second_per_device"] == part["images_per_second"] / 8
        if part["name"] in reading:
            assert part["share_of_matmul_rate"] is part["memory_bytes_per_device"] is None
        else:
            assert 0 < part["share_of_matmul_rate"] <= 1.5
            assert part["memory_bytes_per_device"] > 0
    by_name = {part["name"]: part for part in figures["parts"]}
    operations = {name: part["flops_per_call"] for name, part in by_name.items()}
    assert operations[parts.STEP] == operations[parts.ENCODER] + operations[parts.HEAD]
    assert operations[parts.ENCODER] < operations[parts.EVALUATION]
    assert operations[parts.EVALUATION] < operations[parts.STEP]
    assert operations[parts.FROM_DEVICE] == 2 * operations[parts.HEAD]
    assert by_name[parts.FROM_DEVICE]["images_per_call"] == 16
    printed = capsys.readouterr().out
    assert printed.count("\n| ") == 2 + len(found)
    assert printed.endswith(figures["conclusion"] + "\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "argument --rounds: 0 must be at least 1; see --help."),
        (["--rouns", "3"], "'--rouns' is no option"),
        (["--config.train.bach_size=3"], "did you mean config.train.batch_size?"),
        (["--config.train.seed=x"], "config.train.seed is 'x'"),
        (["--attention", "fast"], "allowed are library, fused"),
        (["--root", "nowhere"], "data.root='nowhere' is not a folder"),
    ],
)
def test_bad_options_are_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        time_training.main([*TINY, *arguments])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
