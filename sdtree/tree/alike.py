"""When two trees, and two leaves, are alike: in form, and in data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sdtree.kinds.abstract import Abstract
from sdtree.kinds.handler import handler_of
from sdtree.kinds.values import same_leaf, same_value
from sdtree.tree.pairing import mismatch, pair
from sdtree.tree.spec import take
from sdtree.typing import Leaf, Tree


def paired(a: Tree, b: Tree) -> tuple[list[Leaf], list[Leaf]] | None:
    """Return the leaves of both trees in one order, None if the structures differ."""
    (here, spec), (there, other) = take(a), take(b)
    if spec != other:
        if mismatch(spec, other):
            return None
        there = [there[k] for k in pair(spec, other, "the second tree")]
    return here, there


def compared(leaf: Leaf) -> Leaf:
    """Return a leaf in the form in which its kind compares."""
    return handler_of(leaf).compared(leaf)


def _form(leaf: Leaf) -> object:
    """Return what ``similar`` compares of a leaf."""
    found = Abstract.of(leaf)
    return found.kind, found.shape, found.dtype, found.forms()


def same_form(x: Leaf, y: Leaf) -> bool:
    """Return whether two leaves are alike in all but the data."""
    x, y = compared(x), compared(y)
    if _form(x) != _form(y):
        return False
    if type(x) is not type(y):  # one of them is abstract, and has no other form
        return True
    (ours, aux), (_, other) = handler_of(x).flatten(x), handler_of(y).flatten(y)
    return not ours or same_value(aux, other)


@dataclass(frozen=True, slots=True, eq=False)
class Like:
    """A tree that was given to tell what is wanted: equal to one of the same bits.

    ``is_written`` tells whether it is to be written into.
    """

    is_written: ClassVar[bool] = False
    tree: Tree

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other) or not isinstance(other, Like):
            return False
        (here, spec), (there, its) = take(self.tree), take(other.tree)
        return spec == its and all(map(self._are_same, here, there))

    def __hash__(self) -> int:
        return hash(take(self.tree)[1])

    @staticmethod
    def _are_same(x: Leaf, y: Leaf) -> bool:
        return x is y or same_leaf(x, y)


class Into(Like):
    """A tree that was given to be written into: equal to one of the very tensors."""

    __slots__ = ()
    is_written: ClassVar[bool] = True

    @staticmethod
    def _are_same(x: Leaf, y: Leaf) -> bool:
        return x is y or (handler_of(x).is_plain and same_leaf(x, y))
