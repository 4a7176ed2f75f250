"""MVTec AD: 15 categories, 3629 training images.

python -m harmoniad_jax.train --config configs/mvtec.py --workdir runs/mvtec

Prepares the data set first if need be, from what was downloaded to config.data.manual_dir.
"""

from configs import common


def get_config():
    return common.dataset_config("mvtec_ad")
