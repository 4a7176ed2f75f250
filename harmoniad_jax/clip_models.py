"""The four published CLIP models and how each is best read, by short name.

    python -m harmoniad_jax.train --config mvtec:encoder=clip-b16 ...

Each is read at eight mid-depth blocks, and at a side that gives a grid of at least 14 x 14
patches, up to the 24 x 24 that CLIP itself was published with: what is smaller than a patch
is hard to find. Where the side is not the one that a model was trained at, its position
embeddings are resized when it is loaded. docs/method.md tells more.
"""

from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from harmoniad_jax.errors import UserError

BASE_BLOCKS = (3, 4, 5, 6, 7, 8, 9, 10)
LARGE_BLOCKS = (5, 7, 9, 11, 13, 15, 17, 19)


class ClipModel(NamedTuple):
    """A published model.

    Attributes:
      name: on the model hub.
      patch: in pixels.
      native_side: that it was trained at, in pixels.
      side: recommended here, in pixels.
      taps: blocks to read, of 12 or 24.
    """

    name: str
    patch: int
    native_side: int
    side: int
    taps: tuple[int, ...]


CLIP_MODELS = {
    "clip-b32": ClipModel("openai/clip-vit-base-patch32", 32, 224, 448, BASE_BLOCKS),
    "clip-b16": ClipModel("openai/clip-vit-base-patch16", 16, 224, 336, BASE_BLOCKS),
    "clip-l14": ClipModel("openai/clip-vit-large-patch14", 14, 224, 336, LARGE_BLOCKS),
    "clip-l14-336": ClipModel(
        "openai/clip-vit-large-patch14-336", 14, 336, 336, LARGE_BLOCKS
    ),
}


def use_encoder(config: ConfigDict, encoder: str) -> None:
    """Sets the encoder: one of `CLIP_MODELS`, a local folder, or a name on the hub.

    The hub's own name of one of these models stands for the same settings. An empty name
    leaves the default, whose settings follow from the encoder when it is read.

    Raises:
      UserError: a short name that there is not.
    """
    if not encoder:
        return
    models = CLIP_MODELS | {model.name: model for model in CLIP_MODELS.values()}
    if encoder not in models:
        if encoder.startswith("clip-") and not Path(encoder).is_dir():
            raise UserError(
                f"encoder={encoder} is no folder and none of {', '.join(CLIP_MODELS)}."
            )
        config.encoder.name = encoder
        return
    model = models[encoder]
    config.encoder.name = model.name
    config.encoder.taps = model.taps
    config.data.image_side = model.side
