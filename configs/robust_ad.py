"""RobustAD: 3 categories.

python -m harmoniad_jax.train --config configs/robust_ad.py --workdir runs/robust_ad

Prepares the data set first if need be, from what was downloaded to config.data.manual_dir.
It is measured under the conditions of training. Under others, into results-test1.json:
python -m harmoniad_jax.evaluate --workdir runs/robust_ad --test_split=test1
Another encoder: --config configs/robust_ad.py:encoder=clip-b16. The short names are in
harmoniad_jax/clip_models.py.
"""

from harmoniad_jax.config_files import dataset_config


def get_config(arguments: str = ""):
    return dataset_config(arguments, "robust_ad")
