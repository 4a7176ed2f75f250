"""The config files that are shipped: where they are, and what they share.

They are in configs/ of a checkout, and in harmoniad_jax/configs/ of an installed wheel. So
they import from the package, and not from each other.
"""

import difflib
import runpy
from collections.abc import Collection
from pathlib import Path

from ml_collections import ConfigDict

from harmoniad_jax.clip_models import use_encoder
from harmoniad_jax.config import default_config
from harmoniad_jax.errors import UserError

_INSTALLED = Path(__file__).with_name("configs")
_CHECKOUT = Path(__file__).parents[1] / "configs"


def shipped_configs() -> dict[str, Path]:
    """The shipped config files by short name, such as "mvtec"."""
    folder = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
    files = sorted(folder.glob("[!_]*.py"))
    return {path.stem: path for path in files}


def load_config(name: str, *arguments: str) -> ConfigDict:
    """The settings of a shipped config: `load_config("folder", "root=photos")`.

    Args:
      name: its short name.
      *arguments: what would stand behind the colon of `--config`, if anything.

    Raises:
      UserError: an argument that it does not take.
    """
    return runpy.run_path(str(shipped_configs()[name]))["get_config"](*arguments)


def find_config(text: str) -> str:
    """Replaces the short name of a shipped config by the path of its file.

    Args:
      text: what stands behind `--config`: a path or a short name, then perhaps a colon and
        arguments. A file of that path has precedence over a short name.

    Returns:
      The same with the file's path. A path stays as it is, even if there is no such file.

    Raises:
      UserError: a word that is neither a file nor a short name.
    """
    name, colon, arguments = text.partition(":")
    is_word = name == Path(name).name and not Path(name).suffix
    if not is_word or Path(name).is_file():
        return text
    shipped = shipped_configs()
    if name not in shipped:
        close = difflib.get_close_matches(name, shipped, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UserError(
            f"--config={name} is neither a file nor a shipped config; those are "
            f"{', '.join(shipped)}.{hint}"
        )
    return f"{shipped[name]}{colon}{arguments}"


def dataset_config(arguments: str, *names: str, fpr_limit: float = 0.3) -> ConfigDict:
    """The default setting on public data sets, in one model.

    Args:
      arguments: what stands behind the colon of `--config file.py:...`: "encoder=..."
      *names: of the data sets.
      fpr_limit: that they are measured to.
    """
    config = default_config()
    config.data.sources = names
    config.evaluation.fpr_limit = fpr_limit
    use_encoder(config, parse_arguments(arguments, encoder="")["encoder"])
    return config


def parse_arguments(
    text: str, lists: Collection[str] = (), **defaults: str
) -> dict[str, str]:
    """Reads the "key=value,key=value" behind the colon of `--config file.py:...`.

    Args:
      text: what stands behind the colon.
      lists: keys that take several values, "key=value,value": they keep their commas.
      **defaults: the allowed keys with their defaults.

    Raises:
      UserError: a key that is not allowed, or something that is not key=value.
    """
    arguments = dict(defaults)
    allowed = ", ".join(f"{key}=..." for key in defaults)
    key = ""
    for part in filter(None, text.split(",")):
        if "=" not in part and key in lists:
            arguments[key] += f",{part}"
            continue
        key, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"config argument {part!r} is not key=value; give {allowed}.")
        if key not in defaults:
            close = difflib.get_close_matches(key, defaults, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise UserError(f"config argument {key!r} is unknown; give {allowed}.{hint}")
        arguments[key] = value
    return arguments
