"""BTAD: 3 categories, 1799 training images.

python -m harmoniad_jax.train --config configs/btad.py --workdir runs/btad

Prepares the data set first if need be, from what was downloaded to config.data.manual_dir.
"""

from configs import common


def get_config():
    return common.dataset_config("btad")
