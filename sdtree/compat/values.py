"""Values as torch's functions take them: what they expect, and what becomes of others.

Where ``type_check`` is off, a value that torch does not expect is copied as a whole. It
passes through transforms as a ``Whole``, a leaf of which nobody knows what is in it.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch

from sdtree.errors import UnknownContainer, UnknownLeaf
from sdtree.kinds.plain import add_plain
from sdtree.path import where
from sdtree.tree.containers import container_of
from sdtree.tree.shape import Node, walk
from sdtree.tree.spec import TreeSpec, take
from sdtree.typing import Leaf, Path, Tree

EXPECTED: Final = (
    *(torch.Tensor, int, float, str, bytes, io.BytesIO, type(None)),
    *(dict, list, tuple),
)


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """A value that passes as it is, whatever is in it.

    A tensor without dimensions goes to other ranks as the number that it holds.
    """

    value: Any

    def __reduce__(self) -> tuple[Any, ...]:
        if not torch.is_tensor(self.value):
            return Whole, (self.value,)
        t = self.value.detach().cpu()
        return (Whole, (t,)) if t.dim() else (_number, (t.item(), t.dtype))


def _number(value: Any, dtype: torch.dtype) -> Whole:
    return Whole(torch.tensor(value, dtype=dtype, device="cpu"))


add_plain(Whole)


class Shielded(NamedTuple):
    """A tree whose leaves are what torch expects, or ``Whole``.

    ``fault`` is the error that is to be raised, where other ranks hear of it.
    """

    tree: Tree
    fault: Exception | None = None

    def checked(self) -> Tree:
        """Return the tree; raise what is to be raised."""
        if self.fault is not None:
            raise self.fault
        return self.tree


def shielded(tree: Tree, *, type_check: bool) -> Shielded:
    """Return the tree with each value that torch does not expect made ``Whole``."""
    tree = wrapped(tree)
    if type_check:
        return Shielded(tree, _unexpected(tree))
    try:
        return Shielded(with_wholes(tree, lambda value: Whole(copy.deepcopy(value))))
    except Exception as error:
        return Shielded(tree, error)


def bared(tree: Tree) -> Tree:
    """Return the tree with the values in the place of what is ``Whole``."""
    return with_wholes(tree, lambda value: value)


def with_wholes(tree: Tree, fn: Callable[[Any], Leaf]) -> Tree:
    """Return the tree with what a function makes of the values that are ``Whole``."""
    leaves, spec = take(tree)
    if Whole not in {*map(type, leaves)}:
        return tree
    return spec.make([fn(x.value) if type(x) is Whole else x for x in leaves])


def wrapped(tree: Tree) -> Tree:
    """Return the tree with each leaf ``Whole`` that is of no type torch expects."""
    try:
        leaves, spec = take(tree)
    except (UnknownLeaf, UnknownContainer):
        leaves, spec = take(tree := _known(tree))
    known = (*EXPECTED, Whole)
    if all(issubclass(kind, known) for kind in {*map(type, leaves)}):
        return tree
    return spec.make([x if isinstance(x, known) else Whole(x) for x in leaves])


def _known(x: Tree) -> Tree:
    """Return a tree with what no kind serves made ``Whole``."""
    try:
        container = container_of(type(x))
    except (UnknownLeaf, UnknownContainer):
        return Whole(x)
    if container is None:
        return x
    keys, children, aux = container.apart(x)
    return container.together(keys, [*map(_known, children)], aux)


def _unexpected(tree: Tree) -> Exception | None:
    """Return the error for the first value of a type that torch does not expect."""
    leaves, spec = take(tree)
    found = [*_strange_containers(spec)]
    if Whole in {*map(type, leaves)}:
        values = zip(spec.every_path, leaves, strict=True)
        found += [(p, type(x.value)) for p, x in values if type(x) is Whole]
    if not found:
        return None
    path, kind = found[0]
    return ValueError(
        f"{where(path)}: Unexpected value type {kind}; type_check=False has values of "
        "any type copied"
    )


def _strange_containers(spec: TreeSpec) -> Iterator[tuple[Path, type]]:
    """Yield where there are containers that torch does not expect, and their types."""
    if all(issubclass(cls, EXPECTED) for cls in _containers(spec)):
        return
    for path, shape in walk(spec.shape):
        if isinstance(shape, Node) and not issubclass(shape.cls, EXPECTED):
            yield path, shape.cls


def _containers(spec: TreeSpec) -> set[type]:
    """Return the types of the containers; to walk with paths takes longer."""
    found: set[type] = set()
    left = [spec.shape]
    while left:
        here = left.pop()
        if isinstance(here, Node):
            found.add(here.cls)
            left.extend(here.children or ())
    return found
