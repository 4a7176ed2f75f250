"""What tests of settings share: all of them, and another value of each."""

from harmoniad_jax.config import Config
from harmoniad_jax.fields import field_types

FIELDS = dict(field_types(Config))


def another_value(path):
    """A value of the field's type that is not its default."""
    value = Config()
    for part in path.split("."):
        value = getattr(value, part)
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return ("other",) if FIELDS[path] == tuple[str, ...] else (1, 2)
    return value + "x" if isinstance(value, str) else value + 1
