"""A demo that needs no download: drawn products, and an encoder that was never trained.

    python -m harmoniad_jax.train --config configs/demo.py --workdir runs/demo

It shows that everything runs. Its figures say nothing about real images.
"""

from harmoniad_jax.config import default_config


def get_config():
    config = default_config()
    config.data.sources = ("demo",)
    config.data.image_side = 128
    config.encoder.name = "untrained"
    config.model.head_width = 32
    # Random features copy more easily than trained ones: more noise keeps them from it.
    config.model.dropout = 0.4
    config.train.num_steps = 300
    config.train.checkpoint_every_steps = 100
    return config
