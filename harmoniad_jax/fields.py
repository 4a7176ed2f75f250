"""Fields of nested dataclasses: their paths, their types, and values of these types."""

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from typing import Any


def field_types(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and type of every single field of nested dataclasses."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from field_types(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, hints[field.name]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted path -> value."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def type_name(hint: Any) -> str:
    """A type as the reader of an error message knows it."""
    names = {
        int: "a whole number",
        float: "a number",
        bool: "True or False",
        str: "text",
        tuple[str, ...]: "names separated by commas",
        tuple[int, ...]: "whole numbers separated by commas",
    }
    return names[hint]


def convert(value: Any, hint: Any) -> Any:
    """The value as the type that a field declares; no silent rounding or truth.

    Raises:
      TypeError, ValueError: it is of another type.
    """
    if typing.get_origin(hint) is tuple:
        (item_type, _) = typing.get_args(hint)
        items: list[Any] = []
        for item in [value] if isinstance(value, str | int) else value:
            items += item.split(",") if isinstance(item, str) else [item]
        items = [item.strip() if isinstance(item, str) else item for item in items]
        items = [item for item in items if item != ""]
        if item_type is int:
            items = [int(item) if isinstance(item, str) else item for item in items]
        return tuple(convert(item, item_type) for item in items)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise TypeError(value)
    return value
