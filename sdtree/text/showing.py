"""How values show themselves: asked of what draws them, which stands above them.

What draws is registered by class, and imported when a value is first to be shown.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, TypeVar

T = TypeVar("T")
Shows = dict[type, Callable[..., Any]]

DRAWN_IN: Final = (
    "sdtree.look.picture",
    "sdtree.look.structure",
    "sdtree.look.transform_html",
    "sdtree.look.rule_html",
    "sdtree.look.notebook",
    "sdtree.look.terminal",
    "sdtree.look.differences",
)
"""The modules that register what they draw, those first that need the least."""

_TEXTS: Shows = {}
_PAGES: Shows = {}
_PROMPTS: Shows = {}


def add_showing(
    cls: type[T],
    *,
    html: Callable[[T], str] | None = None,
    text: Callable[[T], str] | None = None,
    rich: Callable[[T, int], Iterable[Any]] | None = None,
) -> None:
    """Have the values of a class shown by functions, as far as these are given.

    That is in a notebook, in a line, and by rich in some width.
    """
    for known, shows in ((_PAGES, html), (_TEXTS, text), (_PROMPTS, rich)):
        if shows is not None:
            known[cls] = shows


def text_of(x: object) -> str:
    """Return in a line what a value holds."""
    return _found(_TEXTS, type(x))(x)


def html_of(x: object) -> str:
    """Return what a notebook shows of a value."""
    return _found(_PAGES, type(x))(x)


def rich_of(x: object, width: int) -> Iterable[Any]:
    """Return what rich prints of a value."""
    return _found(_PROMPTS, type(x))(x, width)


def at_prompt(x: object) -> str | None:
    """Return what an interactive terminal shows, None where there is none, or no rich.

    What is written to files and pipes never comes this way.
    """
    is_asked = hasattr(sys, "ps1") and sys.stdout.isatty()
    if not is_asked or find_spec("rich") is None:
        return None
    from rich.console import Console

    console = Console()
    with console.capture() as captured:
        console.print(x)
    return captured.get().rstrip("\n")


def _found(known: Shows, cls: type) -> Callable[..., Any]:
    for module in DRAWN_IN if cls not in known else ():
        import_module(module)
        if cls in known:
            break
    return next(known[base] for base in cls.__mro__ if base in known)
