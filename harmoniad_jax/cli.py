"""What the commands share: flags in, one call, errors as one line."""

import logging
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from harmoniad_jax import terminal
from harmoniad_jax.config import Config, parse_config, unknown_field
from harmoniad_jax.config_files import find_config, shipped_configs
from harmoniad_jax.errors import UserError, raise_problems
from harmoniad_jax.fields import field_types, type_name

# Settings that commands without --config have a flag of their own for.
FLAGS_OF_SETTINGS = {
    "data.root": "root",
    "data.csv": "csv",
    "data.data_dir": "data_dir",
    "data.test_split": "test_split",
    "encoder.name": "encoder",
    "calibration.false_positive_rate": "false_positive_rate",
    "calibration.pixel_false_positive_rate": "pixel_false_positive_rate",
}
OVERRIDE = re.compile(r"--?(?P<negated>no)?config\.(?P<path>[^=]+)(?:=(?P<value>.*))?$")


def define_process_flags() -> Callable[[], dict[str, Any]]:
    """The flags of a command that several processes can run together.

    Returns:
      A function that gives their values, once they are parsed, as keyword arguments.
    """
    holders = (
        flags.DEFINE_string(
            "coordinator_address", None, "HOST:PORT of process 0, if there are several."
        ),
        flags.DEFINE_integer("num_processes", None, "How many processes there are."),
        flags.DEFINE_integer("process_id", None, "Which of them this is, from 0."),
    )
    return lambda: {holder.name: holder.value for holder in holders}


def run(
    main: Callable[..., None], *, takes_arguments: bool = False, continues: bool = False
) -> None:
    """Parses the flags and calls `main`, see `terminal.run`.

    Args:
      main: the command.
      takes_arguments: whether it is called with a list of what stands beside the flags.
      continues: whether the same command goes on where a signal ended it.
    """
    terminal.configure_output()
    _configure_logging()

    def call(argv: Sequence[str]) -> None:
        if takes_arguments:
            main(argv[1:])
            return
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]!r}; flags begin with --")
        main()

    app.run(
        lambda argv: terminal.run(lambda: call(argv), fail=_fail, continues=continues),
        flags_parser=_parse_flags,
    )


def _configure_logging() -> None:
    """Our own messages as plain lines; of the libraries' only what is wrong."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("harmoniad_jax", "tfds_builders"):
        ours = logging.getLogger(name)
        ours.addHandler(handler)
        ours.setLevel(logging.INFO)
        ours.propagate = False
    absl_logging.set_verbosity(absl_logging.ERROR)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        _check_overrides(argv)
        return flags.FLAGS(_find_config(_quote_names(argv)))
    except UserError as error:
        _fail(error)
    except flags.Error as error:
        _fail(_explain(error))


def _check_overrides(argv: Sequence[str]) -> None:
    """Refuses overrides of settings that do not exist, with a suggestion."""
    known = dict(field_types(Config))
    groups = {path.rpartition(".")[0] for path in known}
    for argument in argv[1:]:
        match = OVERRIDE.match(argument)
        if match is None or match["path"] in known:
            continue
        if match["path"] in groups:
            raise UserError(
                f"config.{match['path']} is a group of settings; "
                f"set one of its fields, such as --config.{match['path']}.NAME=VALUE."
            )
        raise_problems([unknown_field(match["path"])])


def _quote_names(argv: Sequence[str]) -> list[str]:
    """Makes a,b of a list of names the tuple ('a', 'b') that ml_collections can read.

    It would take the category 01 for a number, and stumble over 1x.
    """
    lists = {path for path, kind in field_types(Config) if kind == tuple[str, ...]}
    quoted = []
    for argument in argv:
        match = OVERRIDE.match(argument)
        value = match and match["path"] in lists and match["value"]
        if isinstance(value, str) and not value.startswith("("):
            names = tuple(filter(None, value.split(",")))
            argument = f"--config.{match['path']}={names!r}"
        quoted.append(argument)
    return quoted


def _find_config(argv: Sequence[str]) -> list[str]:
    """Makes `--config mvtec` the path of that shipped config."""
    found = list(argv)
    for index, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag not in ("--config", "-config"):
            continue
        if equals:
            found[index] = f"{flag}={find_config(value)}"
        elif index + 1 < len(argv):
            found[index + 1] = find_config(argv[index + 1])
    return found


def read_config(holder: flags.FlagHolder) -> Config:
    """The checked settings of a `--config` flag.

    Raises:
      UserError: there is no such file, or it holds what is no config.
    """
    config = holder.value
    try:
        # A file that could not be read is a config whose every attribute raises.
        hasattr(config, "to_dict")
    except OSError:
        path = config_flags.get_config_filename(flags.FLAGS[holder.name])
        raise UserError(
            f"--config={path} is not a file; the shipped configs are "
            f"{', '.join(shipped_configs())}."
        ) from None
    return parse_config(config)


def overridden(holder: flags.FlagHolder) -> set[str]:
    """Dotted paths of the settings of a `--config` flag that the command line sets."""
    return set(config_flags.get_override_values(flags.FLAGS[holder.name]))


def _explain(error: flags.Error) -> str:
    """A flag error as one line that says what is expected."""
    text = " ".join(str(error).split())
    match = re.search(r"--?config\.([\w.]+)=(\S*)", text) or re.search(
        r"flag --config\.([\w.]+)=(.*?):", text
    )
    if "parsing config file" in text:
        # ml_collections puts a whole traceback into its message; the cause comes last.
        return f"{text.partition(': Error whilst')[0]}: {text.rpartition('Error: ')[2]}"
    types = dict(field_types(Config))
    if match and match[1] in types:
        value = match[2].rstrip(":")
        return f"config.{match[1]} is {value!r}; expected {type_name(types[match[1]])}."
    return text


def _fail(error: Exception | str) -> NoReturn:
    terminal.fail(_with_own_flags(str(error)))


def _with_own_flags(text: str) -> str:
    """A message that names no --config.data.root where the command has a --root instead."""
    if "config" in flags.FLAGS:
        return text
    for setting, flag in FLAGS_OF_SETTINGS.items():
        if flag in flags.FLAGS:
            text = re.sub(rf"(--)?\bconfig\.{re.escape(setting)}\b", f"--{flag}", text)
    return text
