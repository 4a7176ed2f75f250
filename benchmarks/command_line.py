"""What the command lines of several benchmarks share."""

import argparse
from typing import NoReturn

from harmoniad_jax.errors import UserError


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, as the commands of the package do."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help.")


def whole_number(text: str) -> int:
    """An argument that is a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} must be at least 1")
    return number
