"""The scaling analysis: its reader on written programs, its arithmetic, a compiled step."""

import analyse_scaling
import jax
import pytest
from scaling.hlo import Array, collectives, group_size
from scaling.prediction import CHIPS, Chip, Work, gather_seconds, predict
from scaling.programs import abstract_run, by_purpose, compile_step, joined_names, purpose

from harmoniad_jax.errors import UserError

HEADER = "HloModule jit_step, is_scheduled=true, num_partitions=8"


def program(*lines, rest=""):
    """A program whose entry consists of some instructions."""
    body = "\n".join(f"  {line}" for line in lines)
    return f"{HEADER}\n\n{rest}\nENTRY %main.1 (p: f32[4]) -> f32[4] {{\n{body}\n}}\n"


def only(*lines, **keywords):
    (found,) = collectives(program(*lines, **keywords))
    return found


# Reading.


@pytest.mark.parametrize(
    ("array", "num_bytes"),
    [
        (Array("f32", (2, 3)), 24),
        (Array("bf16", (8,)), 16),
        (Array("pred", (3,)), 3),
        (Array("c64", (2,)), 16),
        (Array("f8e4m3fn", (5,)), 5),
        (Array("s4", (3,)), 2),
        (Array("u32", ()), 4),
    ],
)
def test_bytes_of_an_array(array, num_bytes):
    assert array.num_bytes == num_bytes


@pytest.mark.parametrize(
    ("line", "num_bytes", "sent_bytes"),
    [
        ("%a = f32[4,2]{1,0} all-reduce(%p), replica_groups={{0,1,2,3}}", 32, 48),
        (
            "%a = (f32[4]{0}, /*index=1*/bf16[2]{0}) all-reduce(%p, %q), "
            "replica_groups=[2,4]<=[8]",
            20,
            30,
        ),
        ("%a = f32[4]{0} all-reduce-start(%p), replica_groups={{0,1},{2,3}}", 16, 16),
        ("%a = f32[8]{0} all-gather(%p), replica_groups=[4,2]<=[8]", 32, 16),
        (
            "%a = (f32[2]{0}, f32[8]{0}) all-gather-start(%p), replica_groups=[2,4]<=[8]",
            32,
            24,
        ),
        (
            "%a = ((f32[2]{0}, f32[1]{0}), (f32[8]{0}, f32[4]{0})) "
            "all-gather-start(%p, %q), replica_groups=[2,4]<=[8]",
            48,
            36,
        ),
        ("%a = f32[2]{0} reduce-scatter(%p), replica_groups=[2,4]<=[8]", 32, 24),
        (
            "%a = (f32[8]{0}, f32[2]{0}) reduce-scatter-start(%p), "
            "replica_groups=[2,4]<=[8]",
            32,
            24,
        ),
        (
            "%a = (f32[1,4]{1,0}, f32[1,4]{1,0}) all-to-all(%p, %q), "
            "replica_groups={{0,1},{2,3}}",
            32,
            16,
        ),
        (
            "%a = f32[4]{0} collective-permute(%p), source_target_pairs={{0,1},{1,0}}",
            16,
            16,
        ),
        (
            "%a = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%p), "
            "source_target_pairs={{0,1},{1,0}}",
            16,
            16,
        ),
        # As a TPU lays arrays out.
        (
            "%a = f32[4,2]{1,0:T(8,128)S(1)} all-reduce(%p), replica_groups={{0,1}}",
            32,
            32,
        ),
    ],
)
def test_every_form_of_every_collective(line, num_bytes, sent_bytes):
    found = only(line)
    assert (found.num_bytes, found.sent_bytes) == (num_bytes, sent_bytes)


def test_what_is_no_collective_is_not_counted():
    found = program(
        "%a = f32[4]{0} all-reduce-start(%p), replica_groups={{0,1}}",
        "%b = f32[4]{0} all-reduce-done(%a)",
        '%c = f32[4]{0} add(%b, %b), metadata={op_name="all-reduce(x)"}',
    )
    assert len(collectives(found)) == 1


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        ("replica_groups=[4,2]<=[8]", 2),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", 4),
        ("replica_groups={}", 8),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}", 2),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}", 8),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", 4),
        ("replica_groups=mesh['a'=8] {'a':(2)4}", 4),
    ],
)
def test_the_size_of_a_group(groups, size):
    assert (
        group_size(f"%a = f32[8]{{0}} all-gather(%p), {groups}, dimensions={{0}}", 8)
        == size
    )


BODY = """\
%body (p: f32[4]) -> f32[4] {
  %g = f32[8]{0} all-gather(%p), replica_groups=[4,2]<=[8]
}
%condition (p: f32[4]) -> pred[] {
  %n = pred[] constant(true)
}
"""


@pytest.mark.parametrize(
    ("known", "times", "is_open"),
    [(', backend_config={"known_trip_count":{"n":"6"}}', 6, False), ("", 1, True)],
)
def test_loops_count_as_often_as_is_known(known, times, is_open):
    line = f"%w = f32[4]{{0}} while(%p), condition=%condition, body=%body{known}"
    found = only(line, rest=BODY)
    assert (found.times, found.in_open_loop) == (times, is_open)
    assert found.num_bytes == times * 32


def test_what_is_called_twice_counts_twice_and_what_is_not_called_does_not():
    call = "%c = f32[8]{0} call(%p), to_apply=%body"
    assert only(call, call, rest=BODY).times == 2
    assert only("%c = f32[8] conditional(%p), branch_computations={%body}", rest=BODY)
    assert not collectives(program("%c = f32[4]{0} add(%p, %p)", rest=BODY))


def test_a_part_of_a_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives(BODY)


# What they are.


def test_joined_operations_are_told_apart():
    assert joined_names("jit(f)/(transpose(jvp(A))/x:jvp(jit(quantile))/y)", 2) == [
        "jit(f)/transpose(jvp(A))/x",
        "jit(f)/jvp(jit(quantile))/y)",
    ]
    assert joined_names("jit(f)/a", 3) == 3 * ["jit(f)/a"]


@pytest.mark.parametrize(
    ("kind", "shape", "name", "expected"),
    [
        ("all-gather", (2, 9216), "jit(f)/jvp(jit(quantile))/sort", "hard mining"),
        ("all-reduce", (), "jit(f)/reduce_sum", "scalars"),
        ("all-reduce", (4096, 1024), "transpose", "gradients"),
        ("all-gather", (1024, 4096), "constraint", "weights"),
        ("all-reduce", (1152, 1024), "transpose", "activations"),
    ],
)
def test_the_purpose_of_an_array(kind, shape, name, expected):
    assert purpose(kind, Array("f32", shape), name, {(1024, 4096)}) == expected


# Prediction.

CHIP = Chip(bfloat16=100.0, float32=50.0, near=4, near_bandwidth=10.0, far_bandwidth=1.0)
WORK = Work(encoder_flops=200.0, head_flops=100.0, gradient_bytes=80.0, mining_bytes=1.0)


def test_a_ring_of_few_and_rings_of_rings():
    assert gather_seconds(80.0, CHIP, 1) == 0.0
    assert gather_seconds(80.0, CHIP, 4) == 3 / 4 * 80 / 10
    assert gather_seconds(80.0, CHIP, 8) == 3 / 4 * 80 / 10 + 1 / 2 * 20 / 1


def test_times_and_efficiencies():
    times = predict(WORK, CHIP, 4, 3, peak_share=0.5, link_share=1.0)
    assert times.compute == 3 * (200 / 100 + 100 / 50) / 0.5
    assert times.gradients == 2 * 3 / 4 * 80 / 10
    assert times.mining == 3 / 4 * 12 / 10
    assert times.efficiency == pytest.approx(24 / (24 + 12 + 0.9))
    assert times.overlapped_efficiency == pytest.approx(24 / (24 + 0.9))
    assert predict(WORK, CHIP, 1, 3, peak_share=0.5, link_share=1.0).efficiency == 1.0


def test_more_chips_are_never_more_efficient():
    for chip in CHIPS.values():
        work = Work(3e11, 2e11, 4e8, 1e4)
        found = [predict(work, chip, 2**n, 4, 0.4, 0.8).efficiency for n in range(10)]
        assert found == sorted(found, reverse=True)


# The whole.

TINY = [
    "--config.data.image_side=32",
    "--config.encoder.untrained.width=32",
    "--config.encoder.untrained.depth=2",
    "--config.encoder.untrained.heads=2",
    "--config.encoder.untrained.patch=8",
    "--config.model.head_width=16",
    "--config.model.high_depth=2",
    "--config.model.low_depth=2",
]


@pytest.mark.parametrize("gate", ["fixed", "learnt"])
def test_the_gradients_of_a_compiled_step_are_the_parameters_bytes(gate):
    settings = [*TINY, f"--config.model.learnable_gate={gate == 'learnt'}"]
    options, config = analyse_scaling.parse(["--mesh", "8x1", "--images", "1", *settings])
    run = abstract_run(analyse_scaling.on_mesh(config, (8, 1), options.images))
    rows = by_purpose(compile_step(run, "features").collectives, run)
    flat = jax.tree_util.tree_leaves_with_path(run.abstract_state.params)
    # The kernels of a block are added up, and so have one gradient, that of the largest.
    summed = sum(
        leaf.size
        for path, leaf in flat
        if not jax.tree_util.keystr(path).endswith(("['fine']", "['dilated']"))
    )
    # A learnt gate's two numbers a group are replaced by its gain at 4 x 3 frequencies.
    gain = 8 * 2 * 4 * 3 if gate == "learnt" else 0
    scalars = 4 * 64
    found = rows["gradients", "all-reduce"].num_bytes
    assert abs(found - 4 * summed - gain) <= scalars
    assert rows["hard mining", "all-gather"].num_bytes == 3 * 4 * 8 * 2 * 4 * 4
    assert not any(what in ("activations", "weights") for what, _ in rows)
    text = analyse_scaling.describe_run(run)
    assert text.startswith("## 8 x 1 devices, 8 images")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--mesh", "8"], "'8' is not DATAxMODEL"),
        (["--chips", "8,x"], "'8,x' is no list"),
        (["--peak_share", "2"], "2 must be above 0"),
        (["--images", "0"], "--images=0"),
        (["--chip", "abacus"], "abacus"),
        (["--config.train.sized=3"], "sized"),
        (["--config.train.num_steps=many"], "num_steps"),
        (["somewhere"], "'somewhere' is no option"),
    ],
)
def test_a_mistake_is_one_line(arguments, named):
    with pytest.raises(UserError, match=named):
        analyse_scaling.parse(arguments)


def test_a_table_is_aligned():
    text = analyse_scaling.table(("what", "MB"), [("a", "1.0"), ("bcdef", "20.0")], words=1)
    assert text.splitlines() == [
        "| what  |   MB |",
        "|-------|-----:|",
        "| a     |  1.0 |",
        "| bcdef | 20.0 |",
    ]
