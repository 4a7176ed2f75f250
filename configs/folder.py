"""Your own products: any folder in the MVTec layout.

    python -m harmoniad_jax.train \
        --config configs/folder.py:root=photos,encoder=weights/dinov2-small \
        --workdir runs/photos

    photos/bottle/train/good/*.png              defect-free photos to learn from
    photos/bottle/test/good/*.png               optional: good ones to test on
    photos/bottle/test/broken/*.png             optional: defective ones
    photos/bottle/ground_truth/broken/*.png     optional: their masks, same stem

Other layouts: folders by name, for one product or for each folder in `root`,

    --config configs/folder.py:root=photos/bottle,good=OK,abnormal_dir=NG,mask_dir=masks

or a table with the columns image_path and label, see harmoniad_jax/data/table.py:

    --config configs/folder.py:csv=bottle.csv,normal_split_ratio=0.2
"""

from harmoniad_jax.clip_models import use_encoder
from harmoniad_jax.config import default_config
from harmoniad_jax.config_files import parse_arguments
from harmoniad_jax.errors import UserError

FOLDERS = ("normal_dir", "abnormal_dir", "normal_test_dir", "mask_dir")


def get_config(arguments: str = ""):
    """`root`: the folder. `encoder`: see `clip_models.use_encoder`.

    `csv`, `normal_dir`, `abnormal_dir`, `normal_test_dir`, `mask_dir` and
    `normal_split_ratio` are the settings of these names; several folders are
    "abnormal_dir=scratch,dent". `good` is another name of `normal_dir`.
    """
    config = default_config()
    names = dict.fromkeys(("good", *FOLDERS), "")
    given = parse_arguments(
        arguments, names, root="", encoder="", csv="", **names, normal_split_ratio="0"
    )
    if given["good"] and given["normal_dir"]:
        raise UserError("good and normal_dir are two names of one argument; give one.")
    given["normal_dir"] = given["normal_dir"] or given["good"]
    config.data.root, config.data.csv = given["root"], given["csv"]
    for name in FOLDERS:
        config.data[name] = tuple(filter(None, given[name].split(",")))
    try:
        config.data.normal_split_ratio = float(given["normal_split_ratio"])
    except ValueError:
        raise UserError(
            f"normal_split_ratio is {given['normal_split_ratio']!r}; expected a number."
        ) from None
    use_encoder(config, given["encoder"])
    # Products of one's own are few: a short run is enough, and its cost is seen first.
    config.train.num_steps = 1000
    return config
