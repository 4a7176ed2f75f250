"""MVTec AD: 15 categories, 3629 training images.

python -m harmoniad_jax.train --config configs/mvtec.py --workdir runs/mvtec

Prepares the data set first if need be, from what was downloaded to config.data.manual_dir.
Another encoder: --config configs/mvtec.py:encoder=clip-b16. The short names are in
harmoniad_jax/clip_models.py.
"""

from harmoniad_jax.config_files import dataset_config


def get_config(arguments: str = ""):
    return dataset_config(arguments, "mvtec_ad")
