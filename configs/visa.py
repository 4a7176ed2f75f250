"""VisA: 12 categories, 8659 training images.

python -m harmoniad_jax.train --config configs/visa.py --workdir runs/visa

Prepares the data set first if need be, from what was downloaded to config.data.manual_dir.
"""

from configs import common


def get_config():
    return common.dataset_config("visa")
