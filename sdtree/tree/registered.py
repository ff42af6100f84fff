"""Containers that come apart by functions of users, whose results are checked.

What keys there are is looked at always; that a container is made again of the children
that it had, and of no others, where it is met first, and where it has more than before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from operator import is_
from typing import Any, Final

from sdtree.errors import UnknownContainer
from sdtree.path import distinct, exact
from sdtree.tree.beside import State
from sdtree.tree.builtin import Container, Keys
from sdtree.typing import Aux, Tree

PAIR: Final = (
    "flatten(x) returns (children, metadata) or (children, metadata, entries), and "
    "unflatten(metadata, children) the container of these children again"
)
"""What a container is, for messages."""

Apart = tuple[Keys, Sequence[Tree], Any]
"""Keys, children, metadata."""


def of_functions(cls: type, flatten: Callable[[Any], Any], unflatten: Any) -> Container:
    """Return how a class comes apart by a pair of functions."""
    most = 0

    def apart(x: Any) -> tuple[Keys, Collection[Tree], Aux]:
        nonlocal most
        parts = keys, children, metadata = _parted(cls, flatten(x))
        if len(children) > most:
            _check_rebuilt(cls, flatten, unflatten, parts)
            most = len(children)
        return keys, children, State(metadata=metadata)

    def together(keys: Keys, children: Sequence[Tree], aux: Aux) -> Any:
        return unflatten(aux["metadata"], tuple(children))

    return Container(apart, together)


def _parted(cls: type, told: Any) -> Apart:
    """Return what a flatten told; raise ``UnknownContainer`` if it is not as it is."""
    if not isinstance(told, tuple) or len(told) not in (2, 3):  # type: ignore[arg-type]
        raise _unlike(cls, f"its flatten returned a {type(told).__name__}")
    children, metadata, *rest = told
    children = tuple(children)
    entries = rest[0] if rest else None
    if entries is None:
        return range(len(children)), children, metadata
    keys = tuple(entries)
    if len(keys) != len(children):
        told = f"its flatten gives {len(keys)} entries for {len(children)} children"
        raise _unlike(cls, told)
    if fault := _fault_in(keys):
        raise _unlike(cls, fault)
    return keys or range(0), children, metadata


def _fault_in(keys: Keys) -> str:
    """Return why no child could be told from another by these, empty if each can."""
    try:
        is_once = len({*keys}) == len(keys) or len(distinct(keys)) == len(keys)
    except TypeError as error:
        return f"its entries are to be keys of a path, and one is none: {error}"
    return "" if is_once else f"its flatten gives one entry twice: {keys!r:.80}"


def _check_rebuilt(
    cls: type, flatten: Callable[[Any], Any], unflatten: Any, parts: Apart
) -> None:
    """Raise ``UnknownContainer`` unless one of the same children is made of any.

    Where a class does not take any, it is tried with those that it had.
    """
    keys, children, metadata = parts

    def again(given: Sequence[Tree]) -> Apart:
        made = unflatten(metadata, tuple(given))
        if type(made) is not cls:
            raise _unlike(cls, f"its unflatten returned a {type(made).__name__}")
        return _parted(cls, flatten(made))

    marks = [object() for _ in children]
    try:
        its, found, _ = again(marks)
    except Exception:
        its, found, _ = again(children)
        marks = found
    is_same = exact(its) == exact(keys) and len(found) == len(children)
    if not (is_same and all(map(is_, found, marks))):
        told = f"of {len(children)} children its unflatten makes one of others"
        raise _unlike(cls, told)


def _unlike(cls: type, told: str) -> UnknownContainer:
    return UnknownContainer(f"{cls.__qualname__} does not come apart: {told}; {PAIR}")
