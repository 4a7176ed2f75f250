"""Fields of nested dataclasses: each described once, where it is defined.

    cutoff: float = setting(0.25, above=0, below=1, touches=LEARNING)

The type, the default, the allowed range and what the setting touches stand at the field.
What follows is derived here: mistakes in words, which settings touch what, the values of
runs that were saved before a field existed.
"""

import copy
import dataclasses
import enum
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


class Touches(enum.Enum):
    """What a setting changes, and so what must follow when it does.

    LEARNING: what is learnt. A run is continued with the same value only.
    FEATURES: what the encoder gives, and so what is learnt. Stored features of another
      value are not read.
    SCORES: the scores of a trained run. Thresholds of another value are measured again.
    NOTHING: neither. It may change whenever a command is called.
    """

    LEARNING = "learning"
    FEATURES = "features"
    SCORES = "scores"
    NOTHING = "nothing"


LEARNING, FEATURES = Touches.LEARNING, Touches.FEATURES
SCORES, NOTHING = Touches.SCORES, Touches.NOTHING
_METADATA = "setting"
_ABSENT = object()


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is known of a field besides its type and its default.

    Attributes:
      touches: what it changes.
      above, at_least, below, at_most: ends of its range; None: there is no such end.
      choices: the allowed values; empty: all of its range.
      older: the value of runs that were saved before the field existed.
      earlier: other defaults of versions since then.
    """

    touches: Touches
    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    choices: Sequence[Any] = ()
    older: Any = None
    earlier: Sequence[Any] = ()

    def problem(self, value: Any) -> str | None:
        """What is allowed, in words, if the value is not; else None."""
        if self.choices:
            allowed = ", ".join(map(str, self.choices))
            return None if value in self.choices else f"allowed are {allowed}"
        if isinstance(value, float) and not math.isfinite(value):
            return "it must be a finite number"
        inside = (
            (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )
        return None if inside else self._range_in_words()

    def _range_in_words(self) -> str:
        if self.at_least == 0 and 1 in (self.below, self.at_most):
            return "it must be a share between 0 and 1"
        if self.at_least == 0 and self.below is self.at_most is None:
            return "it must not be negative"
        ends = (
            ("greater than", self.above),
            ("at least", self.at_least),
            ("less than", self.below),
            ("at most", self.at_most),
        )
        words = [f"{name} {end:g}" for name, end in ends if end is not None]
        return f"it must be {' and '.join(words)}"


def setting(default: Any, *, touches: Touches, older: Any = _ABSENT, **known: Any) -> Any:
    """A field of a dataclass of settings.

    Args:
      default: its value if nobody sets it; immutable.
      touches: what it changes.
      older: the value of runs that were saved before the field existed. Give it where the
        default of a new field is not what such runs did.
      **known: its range and `earlier`, see `Setting`.
    """
    older = default if older is _ABSENT else older
    described = Setting(touches=touches, older=older, **known)
    return dataclasses.field(default=default, metadata={_METADATA: described})


def _single_fields(kind: type, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted path, type and field of every single field of nested dataclasses."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint, path = hints[field.name], prefix + field.name
        if dataclasses.is_dataclass(hint):
            yield from _single_fields(hint, f"{path}.")
        else:
            yield path, hint, field


def settings_of(kind: type) -> Iterator[tuple[str, Setting]]:
    """Dotted path and description of every single field of nested dataclasses."""
    return ((path, field.metadata[_METADATA]) for path, _, field in _single_fields(kind))


def touching(kind: type, *what: Touches) -> tuple[str, ...]:
    """Dotted paths of the settings that touch one of these."""
    return tuple(path for path, known in settings_of(kind) if known.touches in what)


def range_problems(settings: Any) -> dict[str, str]:
    """Dotted path -> what is allowed, for every value outside of its field's range.

    Args:
      settings: nested dataclasses.
    """
    values = flatten(dataclasses.asdict(settings))
    found = (
        (path, known.problem(values[path])) for path, known in settings_of(type(settings))
    )
    return {path: problem for path, problem in found if problem}


@dataclasses.dataclass(frozen=True)
class Removed:
    """A setting that earlier versions had.

    Attributes:
      neutral: the value that does what is always done now.
      meant: what the setting was for, as a message says it.
    """

    neutral: Any
    meant: str


def without_removed(
    stored: Mapping[str, Any], removed: Mapping[str, Removed]
) -> tuple[dict[str, Any], list[str]]:
    """Stored nested values without settings that there are no more.

    Args:
      stored: what an earlier version wrote down.
      removed: dotted path -> what is known of each such setting.

    Returns:
      The values, and a problem in words for each removed setting whose value mattered.
    """
    values, problems = copy.deepcopy(dict(stored)), []
    for path, known in removed.items():
        *groups, name = path.split(".")
        group: Any = values
        for part in groups:
            group = group.get(part) if isinstance(group, dict) else None
        if not isinstance(group, dict) or name not in group:
            continue
        value = group.pop(name)
        value = tuple(value) if isinstance(value, list) else value
        if value != known.neutral:
            problems.append(
                f"config.{path} is {value!r}; it meant {known.meant}, and was removed: "
                f"only {known.neutral!r} can still be read"
            )
    return values, problems


def with_older_values(kind: type, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Stored nested values, completed with what runs did that lacked a field.

    Args:
      kind: the dataclass of settings that the values are for.
      stored: what an earlier version wrote down. A group may be missing. What is no group
        where one is expected is left as it is.
    """
    values = copy.deepcopy(dict(stored))
    for path, known in settings_of(kind):
        *groups, name = path.split(".")
        group: Any = values
        for part in groups:
            group = group.setdefault(part, {})
            if not isinstance(group, dict):
                break
        else:
            group.setdefault(name, known.older)
    return values


def older_values(kind: type, stored: Mapping[str, Any]) -> dict[str, Any]:
    """What a run has as earlier versions did, where that is not the default now.

    It lacks such settings, or has a value that was their default once, whoever chose it.

    Returns:
      Dotted path -> the older value.
    """
    values = flatten(stored)
    older = {}
    for path, _, field in _single_fields(kind):
        known = field.metadata[_METADATA]
        value = values.get(path, known.older)
        if value != field.default and value in (known.older, *known.earlier):
            older[path] = value
    return older


def replaced(settings: Any, values: Mapping[str, Any]) -> Any:
    """Nested dataclasses with other values at dotted paths.

    A value that was set to something else than the default of its field is kept.
    """
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        current = getattr(settings, field.name)
        if dataclasses.is_dataclass(current):
            prefix = f"{field.name}."
            below = {
                path.removeprefix(prefix): value
                for path, value in values.items()
                if path.startswith(prefix)
            }
            changes[field.name] = replaced(current, below)
        elif field.name in values and current == field.default:
            changes[field.name] = values[field.name]
    return dataclasses.replace(settings, **changes)


def field_types(kind: type) -> Iterator[tuple[str, Any]]:
    """Dotted path and type of every single field of nested dataclasses."""
    return ((path, hint) for path, hint, _ in _single_fields(kind))


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
