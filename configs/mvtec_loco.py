"""MVTec LOCO AD: 5 categories, 1778 training images.

python -m harmoniad_jax.train --config configs/mvtec_loco.py --workdir runs/mvtec_loco

Prepares the data set first if need be, from what was downloaded to config.data.manual_dir.
Thresholds are set on its validation images. sPRO, up to a false-positive rate of 5 %, and
image AUROC are given for logical and structural defects.
Another encoder: --config configs/mvtec_loco.py:encoder=clip-b16. The short names are in
harmoniad_jax/clip_models.py.
"""

from harmoniad_jax.config_files import dataset_config


def get_config(arguments: str = ""):
    return dataset_config(arguments, "mvtec_loco")
