"""Several public data sets in one model: MVTec AD, VisA and BTAD, or those that are named.

python -m harmoniad_jax.train --config configs/joint.py --workdir runs/joint
python -m harmoniad_jax.train --config configs/joint.py:sets=mvtec_ad,visa,mpdd \
    --workdir runs/joint

The first three have 30 categories and 14087 training images. Categories are called
mvtec_ad/bottle, visa/candle, btad/01. Results are for each, their mean for each data set,
and the mean over all categories. Another encoder:
--config configs/joint.py:encoder=clip-b16. The short names are in
harmoniad_jax/clip_models.py.
"""

from harmoniad_jax.clip_models import use_encoder
from harmoniad_jax.config import default_config
from harmoniad_jax.config_files import parse_arguments


def get_config(arguments: str = ""):
    """`sets`: names of the data sets. `encoder`: see `clip_models.use_encoder`."""
    config = default_config()
    given = parse_arguments(arguments, ["sets"], sets="mvtec_ad,visa,btad", encoder="")
    config.data.sources = tuple(filter(None, given["sets"].split(",")))
    use_encoder(config, given["encoder"])
    return config
