"""MPDD: 6 categories, 888 training images.

python -m harmoniad_jax.train --config configs/mpdd.py --workdir runs/mpdd

Prepares the data set first if need be, from what was downloaded to config.data.manual_dir.
Another encoder: --config configs/mpdd.py:encoder=clip-b16. The short names are in
harmoniad_jax/clip_models.py.
"""

from harmoniad_jax.config_files import dataset_config


def get_config(arguments: str = ""):
    return dataset_config(arguments, "mpdd")
