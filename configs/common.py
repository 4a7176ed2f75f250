"""What the config files share.

`get_config()` is the default of every setting. What each means is written where it is
defined, in `harmoniad_jax/config.py`.
"""

import difflib

from ml_collections import ConfigDict

from configs.encoders import use_encoder
from harmoniad_jax.config import default_config
from harmoniad_jax.errors import UserError


def get_config() -> ConfigDict:
    """Every default: CLIP ViT-L/14 at 336 px, all categories in one model."""
    return default_config()


def dataset_config(arguments: str, *names: str) -> ConfigDict:
    """The default setting on public data sets, in one model.

    Args:
      arguments: what stands behind the colon of `--config file.py:...`: "encoder=..."
      *names: of the data sets.
    """
    config = get_config()
    config.data.sources = names
    use_encoder(config, parse_arguments(arguments, encoder="")["encoder"])
    return config


def parse_arguments(text: str, **defaults: str) -> dict[str, str]:
    """Reads the "key=value,key=value" behind the colon of `--config file.py:...`.

    Args:
      text: what stands behind the colon.
      **defaults: the allowed keys with their defaults.

    Raises:
      UserError: a key that is not allowed, or something that is not key=value.
    """
    arguments = dict(defaults)
    allowed = ", ".join(f"{key}=..." for key in defaults)
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"config argument {part!r} is not key=value; give {allowed}.")
        if key not in defaults:
            close = difflib.get_close_matches(key, defaults, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise UserError(f"config argument {key!r} is unknown; give {allowed}.{hint}")
        arguments[key] = value
    return arguments
