"""MVTec AD, VisA and BTAD in one model: 30 categories, 14087 training images.

python -m harmoniad_jax.train --config configs/joint.py --workdir runs/joint

Categories are called mvtec_ad/bottle, visa/candle, btad/01. Results are for each, their
mean for each data set, and the mean over all categories. Another encoder:
--config configs/joint.py:encoder=clip-b16. The short names are in
harmoniad_jax/clip_models.py.
"""

from harmoniad_jax.config_files import dataset_config


def get_config(arguments: str = ""):
    return dataset_config(arguments, "mvtec_ad", "visa", "btad")
