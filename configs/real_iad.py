"""Real-IAD: 30 categories, 36465 training images.

python -m harmoniad_jax.train --config configs/real_iad.py --workdir runs/real_iad

Prepares the data set first if need be, from what was downloaded to config.data.manual_dir.
Metrics are of images, and of products by the highest score of their five views.
Another encoder: --config configs/real_iad.py:encoder=clip-b16. The short names are in
harmoniad_jax/clip_models.py.
"""

from harmoniad_jax.config_files import dataset_config


def get_config(arguments: str = ""):
    return dataset_config(arguments, "real_iad")
