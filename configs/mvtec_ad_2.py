"""MVTec AD 2: 8 categories, 2528 training images.

python -m harmoniad_jax.train --config configs/mvtec_ad_2.py --workdir runs/mvtec_ad_2

Prepares the data set first if need be, from what was downloaded to config.data.manual_dir.
Thresholds are set on its validation images. It is measured on the public test set, with
AUPRO up to a false-positive rate of 5 %. Predictions of the private test sets, for the
server that has their labels: python -m harmoniad_jax.submit.
Another encoder: --config configs/mvtec_ad_2.py:encoder=clip-b16. The short names are in
harmoniad_jax/clip_models.py.
"""

from harmoniad_jax.config_files import dataset_config


def get_config(arguments: str = ""):
    return dataset_config(arguments, "mvtec_ad_2", fpr_limit=0.05)
