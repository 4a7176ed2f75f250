"""VisA: 12 categories, 8659 training images.

python -m harmoniad_jax.train --config configs/visa.py --workdir runs/visa

Prepares the data set first if need be, from what was downloaded to config.data.manual_dir.
Another encoder: --config configs/visa.py:encoder=clip-b16, see configs/encoders.py.
"""

from configs import common


def get_config(arguments: str = ""):
    return common.dataset_config(arguments, "visa")
