"""What the project promises, in full length: bash scripts/test.sh -m slow"""

import pytest

from configs import demo, folder
from harmoniad_jax.config import parse_config
from harmoniad_jax.training.loop import train_and_evaluate

pytestmark = pytest.mark.slow


def test_the_demo_finds_its_defects(tmp_path):
    config = demo.get_config()
    config.data.root = str(tmp_path / "demo")
    results = train_and_evaluate(parse_config(config), tmp_path / "run")
    assert results["mean"]["image_auroc"] >= 0.90


def test_real_products_after_300_steps(real_products, real_encoder, tmp_path):
    config = folder.get_config(f"root={real_products},encoder={real_encoder}")
    config.train.num_steps = 300
    results = train_and_evaluate(parse_config(config), tmp_path)
    assert results["mean"]["image_auroc"] >= 0.90
    assert results["mean"]["pixel_auroc"] >= 0.88
