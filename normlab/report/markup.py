"""HTML and SVG as strings, with everything escaped that isn't markup already."""

from html import escape
from typing import Any


class Markup(str):
    """Text that is HTML already."""


def element(tag: str, *children: Any, **attributes: Any) -> Markup:
    """`<tag attributes>children</tag>`.

    Children that aren't `Markup` are text and are escaped; lists are their items; None is nothing.
    Attributes: `class_` is class, other underscores are dashes (`data_sort` is data-sort); None and
    False leave one out, True is one without a value.
    """
    given = "".join(_attribute(name, value) for name, value in attributes.items())
    return Markup(f"<{tag}{given}>{text(children)}</{tag}>")


def text(child: Any) -> Markup:
    """What may stand between two tags."""
    if isinstance(child, Markup):
        return child
    if isinstance(child, (list, tuple)):
        return Markup("".join(map(text, child)))
    return Markup("" if child is None else escape(str(child)))


def _attribute(name: str, value: Any) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'


def anchor(*parts: Any) -> str:
    """An id for what `parts` name: letters, digits and dashes, so that a link finds it."""
    said = "-".join(map(str, parts))
    return "".join(
        c if c.isascii() and (c.isalnum() or c in "-_.") else f"_{ord(c):x}" for c in said
    )
