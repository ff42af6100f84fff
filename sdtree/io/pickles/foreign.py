"""Objects of files whose classes are not loaded: leaves that hold what a file says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from torch import Tensor

from sdtree.errors import UnknownContainer, UnknownLeaf
from sdtree.kinds.handler import Handler, add_handler, find_handler, handler_of
from sdtree.kinds.values import same_leaf, same_value
from sdtree.tree.containers import ABSENT, container_of
from sdtree.typing import Aux, Leaf

SETS = (set, frozenset)


class Foreign:
    """An object of a file whose class was not loaded: data, and nothing that runs.

    ``name`` is that of its class, with the module. It would be made by a call of it
    with ``args``, which is None where the class itself, or a function, is meant; then
    ``items`` would be put into it, elements or pairs, and ``state`` given to it.

    A Foreign is a leaf that is passed on as it is. It cannot be written to a file.

    >>> import argparse
    >>> path = getfixture("tmp_path") / "train.pt"
    >>> torch.save({"args": argparse.Namespace(lr=0.1), "w": torch.ones(2)}, path)
    >>> sd.load(path)["args"], sd.load(path)["args"].state
    (Foreign(argparse.Namespace), {'lr': 0.1})
    """

    __slots__ = ("args", "items", "name", "state")

    def __init__(self, name: str, args: tuple[Any, ...] | None = None) -> None:
        self.name = name
        self.args = args
        self.items: list[Any] = []
        self.state: Any = None

    def tensors(self) -> list[Tensor]:
        """Return the local tensors of all leaves that are in it, however deep.

        >>> path = getfixture("tmp_path") / "model.pt"
        >>> torch.save(torch.nn.Linear(2, 3), path)
        >>> [tuple(t.shape) for t in sd.load(path).tensors()]
        [(3,), (3, 2)]
        """
        leaves = filter(_is_leaf, _inside(self))
        return [t for x in leaves for t in handler_of(x).flatten(x)[0]]

    def told(self) -> str:
        """Return the name, and how many tensors are in it.

        >>> path = getfixture("tmp_path") / "model.pt"
        >>> torch.save([torch.nn.Linear(2, 3), torch.nn.ReLU], path)
        >>> for leaf in sd.load(path):
        ...     print(leaf.told())
        torch.nn.modules.linear.Linear, holds 2 tensors
        <torch.nn.modules.activation.ReLU>
        """
        held = len(self.tensors())
        what = f"<{self.name}>" if self.args is None else self.name
        many = "tensor" if held == 1 else "tensors"
        return f"{what}, holds {held} {many}" if held else what

    def __repr__(self) -> str:
        return f"Foreign({self.told()})"


class Inert:
    """What is in a ``Foreign``, to be compared: the same if the file says the same."""

    __slots__ = ("leaf",)

    def __init__(self, leaf: Foreign) -> None:
        self.leaf = leaf

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Inert) and _say_the_same(self.leaf, other.leaf)

    __hash__ = None  # type: ignore[assignment]

    def told(self) -> str:
        return self.leaf.told()


def _parts(x: object) -> Sequence[Any] | None:
    """Return what an object holds that may hold more, None if it is in one piece."""
    if isinstance(x, Foreign):
        return x.name, x.args, x.items, x.state
    if isinstance(x, Tensor):
        return [*chain(*vars(x).items())]
    try:
        container = None if x is ABSENT else container_of(type(x))
    except (UnknownLeaf, UnknownContainer):
        return None
    if container is None:
        return None
    keys, children, aux = container.apart(x)
    return *keys, *children, *([dict(aux)] if aux else ())


def _inside(root: object) -> Iterator[object]:
    """Yield each object that can be reached, once."""
    stack, seen = [root], dict[int, object]()
    while stack:
        x = stack.pop()
        if id(x) not in seen:
            seen[id(x)] = x  # kept: another might come to have its id
            stack.extend(x if isinstance(x, SETS) else _parts(x) or ())
            yield x


def _is_leaf(x: object) -> bool:
    is_other = isinstance(x, (Foreign, *SETS))  # a set may hold what has no path
    return not is_other and find_handler(type(x)) is not None


def _say_the_same(a: object, b: object) -> bool:
    """Return whether two objects hold the same, shared at the same places.

    Each is looked at once, however often it is shared.
    """
    stack = [(a, b)]
    ours, theirs = dict[int, tuple[Any, Any]](), dict[int, tuple[Any, Any]]()
    while stack:
        x, y = pair = stack.pop()
        here, there = _parts(x), _parts(y)
        if not _are_alike(x, y) or len(here or ()) != len(there or ()):
            return False
        if here:
            known = ours.setdefault(id(x), pair)
            if theirs.setdefault(id(y), pair) is not known:
                return False
            stack.extend(zip(here, there or (), strict=True) if known is pair else ())
    return True


def _are_alike(x: object, y: object) -> bool:
    """Return whether two objects are the same as far as their parts do not tell."""
    if type(x) is not type(y):
        return False
    if isinstance(x, SETS):
        return same_value(x, y)
    return same_leaf(x, y) if _is_leaf(x) else x is y or _parts(x) is not None


def _flatten(x: Foreign) -> tuple[Sequence[Tensor], Aux]:
    return (), Inert(x)


def _unflatten(aux: Inert, ts: Sequence[Tensor]) -> Leaf:
    return aux.leaf


add_handler(Handler(Foreign, _flatten, _unflatten, is_plain=True))
