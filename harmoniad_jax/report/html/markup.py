"""HTML that cannot be broken by what stands in it: text is escaped on its way in."""

import html
from collections.abc import Iterable
from typing import Any

_VOID = frozenset({"img", "input", "meta", "source"})
# A line break after these would be a space in the middle of a sentence.
_INLINE = frozenset({"a", "bdi", "button", "code", "span", "strong"})

# Control characters have no place in HTML, but file names may have them: each is shown
# as its picture, a newline as U+2424. Those without a picture become U+FFFD, and so do
# the ones that turn the direction of writing: they make one name look like another.
_CONTROLS = (
    {code: 0x2400 + code for code in range(0x20)}
    | {0x0A: 0x2424, 0x7F: 0x2421}
    | dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F)], 0xFFFD)
    | dict.fromkeys(range(0x2066, 0x206A), 0xFFFD)
)


class Markup(str):
    """HTML that goes into a page as it is. Never made of somebody's text."""


def element(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An HTML element.

    Args:
      name: of the element; constant, never somebody's text.
      children: `Markup` is taken as it is, text is escaped, of other iterables every
        item is a child, None is nothing.
      attributes: underscores stand for hyphens, and one at the end is dropped:
        `class_`, `aria_label`. True is an attribute without a value, None and False are
        none.
    """
    opening = name
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        opening += f" {key.rstrip('_').replace('_', '-')}"
        if value is not True:
            opening += f'="{text(value)}"'
    if name in _VOID:
        return Markup(f"<{opening}>")
    end = "" if name in _INLINE else "\n"
    return Markup(f"<{opening}>{join(*children)}</{name}>{end}")


def join(*children: Any) -> Markup:
    """The children of an element, see there, without the element."""
    parts = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Markup):
            parts.append(child)
        elif isinstance(child, Iterable) and not isinstance(child, str):
            parts.append(join(*child))
        else:
            parts.append(text(child))
    return Markup("".join(parts))


def text(value: Any) -> Markup:
    """`str(value)`, escaped for the inside of elements and of quoted attributes."""
    # A file name that is not UTF-8 has lone surrogates, which cannot be written.
    valid = str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    return Markup(html.escape(valid.translate(_CONTROLS), quote=True))
