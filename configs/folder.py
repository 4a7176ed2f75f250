"""Your own products: any folder in the MVTec layout.

    python -m harmoniad_jax.train \
        --config configs/folder.py:root=photos,encoder=weights/dinov2-small \
        --workdir runs/photos

    photos/bottle/train/good/*.png              defect-free photos to learn from
    photos/bottle/test/good/*.png               optional: good ones to test on
    photos/bottle/test/broken/*.png             optional: defective ones
    photos/bottle/ground_truth/broken/*.png     optional: their masks, same stem
"""

from harmoniad_jax.clip_models import use_encoder
from harmoniad_jax.config import default_config
from harmoniad_jax.config_files import parse_arguments


def get_config(arguments: str = ""):
    """`root`: the folder. `encoder`: see `clip_models.use_encoder`."""
    config = default_config()
    given = parse_arguments(arguments, root="", encoder="")
    config.data.root = given["root"]
    use_encoder(config, given["encoder"])
    # Products of one's own are few: a short run is enough, and its cost is seen first.
    config.train.num_steps = 1000
    return config
