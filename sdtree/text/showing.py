"""How values show themselves: asked of what draws them, which stands above them.

What draws is registered by class, and imported when a value is first to be shown.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Final, TypeVar

T = TypeVar("T")
Shows = dict[type, Callable[[Any], str]]

DRAWN_IN: Final = (
    "sdtree.look.picture",
    "sdtree.look.structure",
    "sdtree.look.transform_html",
)
"""The modules that register what they draw."""

_TEXTS: Shows = {}
_PAGES: Shows = {}


def add_showing(
    cls: type[T],
    *,
    html: Callable[[T], str],
    text: Callable[[T], str] | None = None,
) -> None:
    """Have the values of a class shown by functions: in a notebook, and in a line."""
    _PAGES[cls] = html
    if text is not None:
        _TEXTS[cls] = text


def text_of(x: object) -> str:
    """Return in a line what a value holds."""
    return _found(_TEXTS, type(x))(x)


def html_of(x: object) -> str:
    """Return what a notebook shows of a value."""
    return _found(_PAGES, type(x))(x)


def _found(known: Shows, cls: type) -> Callable[[Any], str]:
    if cls not in known:
        for module in DRAWN_IN:
            import_module(module)
    return next(known[base] for base in cls.__mro__ if base in known)
