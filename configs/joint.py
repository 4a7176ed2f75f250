"""MVTec AD, VisA and BTAD in one model: 30 categories, 14087 training images.

python -m harmoniad_jax.train --config configs/joint.py --workdir runs/joint

Categories are called mvtec_ad/bottle, visa/candle, btad/01. Results are for each, their
mean for each data set, and the mean over all categories. Another encoder:
--config configs/joint.py:encoder=clip-b16, see configs/encoders.py.
"""

from configs import common


def get_config(arguments: str = ""):
    return common.dataset_config(arguments, "mvtec_ad", "visa", "btad")
