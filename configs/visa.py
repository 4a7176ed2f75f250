"""VisA: 12 categories, 8659 training images.

python -m harmoniad_jax.train --config configs/visa.py --workdir runs/visa

Prepares the data set first if need be, from what was downloaded to config.data.manual_dir.
Another encoder: --config configs/visa.py:encoder=clip-b16. The short names are in
harmoniad_jax/clip_models.py.
"""

from harmoniad_jax.config_files import dataset_config


def get_config(arguments: str = ""):
    return dataset_config(arguments, "visa")
