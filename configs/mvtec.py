"""MVTec AD: 15 categories, 3629 training images.

python -m harmoniad_jax.train --config configs/mvtec.py --workdir runs/mvtec

Prepares the data set first if need be, from what was downloaded to config.data.manual_dir.
Another encoder: --config configs/mvtec.py:encoder=clip-b16, see configs/encoders.py.
"""

from configs import common


def get_config(arguments: str = ""):
    return common.dataset_config(arguments, "mvtec_ad")
