"""What is read from compiled programs, and the arithmetic on it."""

import argparse

import jax
import pytest
from scaling.hlo import Collective, collectives
from scaling.prediction import CHIPS, Chip, Cost, efficiency
from scaling.program import Program

LINES = """
  %a = f32[384,1536]{1,0} all-reduce(%x), replica_groups=[1,8]<=[8], to_apply=%add
  %b = (f32[2,3]{1,0}, bf16[5]{0}) all-reduce(%y, %z), replica_groups={{0,1},{2,3}}
  %c = (f16[4]{0}, f16[16]{0}) all-gather-start(%v), replica_groups=[2,4]<=[8]
  %d = f16[16]{0} all-gather-done(%c)
  %e = f32[2]{0} reduce-scatter(%u), replica_groups={}, to_apply=%add
  %f = pred[] collective-permute(%t), metadata={op_name="jit(s)/x"}
  %g = f32[8]{0} add(%all-reduce.1, %all-gather.2)
"""


def test_every_form_of_a_collective_is_read():
    assert list(collectives(LINES, devices=8)) == [
        Collective("all-reduce", (384, 1536), 384 * 1536 * 4, 8, ""),
        Collective("all-reduce", (2, 3), 24, 2, ""),
        Collective("all-reduce", (5,), 10, 2, ""),
        Collective("all-gather", (16,), 32, 4, ""),
        Collective("reduce-scatter", (2,), 64, 8, ""),
        Collective("collective-permute", (), 1, 8, "jit(s)/x"),
    ]


def test_what_a_ring_sends():
    assert Collective("all-reduce", (), 800, 8, "").sent == 2 * 700
    assert Collective("all-gather", (), 800, 8, "").sent == 700
    assert Collective("collective-permute", (), 800, 8, "").sent == 800


def test_efficiency_by_hand():
    """2 s of computation at half the rate; 8 chips send 2 x 7/8 x 800 bytes at 700/s."""
    chip = Chip("", 100.0, 50.0, bandwidth=700.0, island=8, network=7.0, source="")
    cost = Cost(encoder=20.0, head=40.0, moved=800.0)
    settings = {"chips": 8, "images": 1, "utilisation": 0.5}
    assert efficiency(chip, cost, **settings, overlap=False) == pytest.approx(0.5)
    assert efficiency(chip, cost, **settings, overlap=True) == 1.0
    settings["chips"] = 16  # more than the fast links join
    assert efficiency(chip, cost, **settings, overlap=True) < 0.01


@pytest.mark.parametrize("chip", CHIPS)
def test_more_images_for_each_chip_pay(chip):
    cost = Cost(encoder=4e11, head=3e11, moved=4e8)
    found = [efficiency(chip, cost, 64, images, 0.4, False) for images in (1, 4, 16)]
    assert 0 < found[0] < found[1] < found[2] < 1


def test_what_a_step_moves_is_its_gradients():
    options = argparse.Namespace(width=32, depth=2, patch=8, image_side=32, images=1)
    program = Program(options, 8, 1)
    found = list(program.collectives(program.compile("head")))
    gradients = sum(one.size for one in found if program.purpose(one) == "gradients")
    params = jax.tree.leaves(program.run.abstract_state().params)
    assert gradients == pytest.approx(4 * sum(leaf.size for leaf in params), rel=0.03)
    assert "MB of parameters" in program.describe()
