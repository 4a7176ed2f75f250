"""Your own products: any folder in the MVTec layout.

    python -m harmoniad_jax.train \
        --config configs/folder.py:root=photos,encoder=weights/dinov2-small \
        --workdir runs/photos

    photos/bottle/train/good/*.png              defect-free photos to learn from
    photos/bottle/test/good/*.png               optional: good ones to test on
    photos/bottle/test/broken/*.png             optional: defective ones
    photos/bottle/ground_truth/broken/*.png     optional: their masks, same stem
"""

from configs import common
from configs.encoders import use_encoder


def get_config(arguments: str = ""):
    """`root`: the folder. `encoder`: see `encoders.use_encoder`."""
    config = common.get_config()
    given = common.parse_arguments(arguments, root="", encoder="")
    config.data.root = given["root"]
    use_encoder(config, given["encoder"])
    # Products of one's own are few: a short run is enough, and its cost is seen first.
    config.train.num_steps = 1000
    return config
