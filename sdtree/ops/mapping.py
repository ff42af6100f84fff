"""Functions as steps: of leaves, ``map`` and ``map_with_path``; of trees, ``whole``."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from itertools import repeat
from operator import ne
from typing import Any, TypeVar, overload

from torch import Tensor

from sdtree.errors import UnknownContainer, UnknownLeaf, reraise
from sdtree.kinds.calls import Call
from sdtree.path import where
from sdtree.tensors.modes import uncompiled
from sdtree.transform.stages import Action, LeafStage, StageContext, TreeStage
from sdtree.transform.transform import Transform
from sdtree.transform.window import Window
from sdtree.tree.containers import ABSENT, LEAF_TYPES, container_of
from sdtree.tree.pairing import pair
from sdtree.tree.spec import TreeSpec, take
from sdtree.typing import K, Leaf, LeafFunction, Path, Tree

A = TypeVar("A", bound=Tensor | int | float | str)
B = TypeVar("B")


@overload
def map(fn: LeafFunction, /) -> Transform: ...
@overload
def map(fn: Callable[[A], B], tree: dict[K, A], /) -> dict[K, B]: ...
@overload
def map(fn: Callable[[A], B], tree: list[A], /) -> list[B]: ...
@overload
def map(fn: LeafFunction, tree: Tree, /, *rest: Tree) -> Tree: ...
@uncompiled
def map(fn: LeafFunction, /, *trees: Tree) -> Any:
    """Return the tree of ``fn(leaf)``, or of ``fn(leaf, *others)`` of several trees.

    The others have the same paths, by which they are paired. Law: ``map(f)`` then
    ``map(g)`` is ``map(lambda x: g(f(x)))``. A function that returns a container raises
    ``TypeError``; an error of its own gets the path as a note. It is to leave its
    arguments as they are: one that writes in place, as ``Tensor.add_`` does, raises
    ``ValueError`` after the first tensor that it changed. Nobody sees it in an array of
    numpy, in a tensor of inference mode, or through ``.data``. What it makes of the
    members of a tie is tied no longer.

    >>> sd.map(lambda x, y: x + y, {"a": 1, "b": 2}, {"b": 20, "a": 10})
    {'a': 11, 'b': 22}
    """
    return _mapped("map", fn, trees, _each)


@overload
def map_with_path(fn: LeafFunction, /) -> Transform: ...
@overload
def map_with_path(fn: Callable[[Path, A], B], tree: dict[K, A], /) -> dict[K, B]: ...
@overload
def map_with_path(fn: Callable[[Path, A], B], tree: list[A], /) -> list[B]: ...
@overload
def map_with_path(fn: LeafFunction, tree: Tree, /, *rest: Tree) -> Tree: ...
@uncompiled
def map_with_path(fn: LeafFunction, /, *trees: Tree) -> Any:
    """Return the tree of ``fn(path, leaf)``; for the rest as ``map``.

    >>> sd.map_with_path(lambda path, x: f"{path[-1]}={x}", {"a": 1, "b": 2})
    {'a': 'a=1', 'b': 'b=2'}
    """
    return _mapped("map_with_path", fn, trees, _each_with_path)


@uncompiled
def whole(fn: Callable[[Tree], Tree], /) -> Transform:
    """Return the transform that does what a function of a tree does.

    Law: ``whole(f)(t) = f(t)``. The steps before it run to their end first, and those
    behind see what it returns: no window passes through. It is to leave its input as it
    is. On ranks that have no data it is called on ``Abstract`` leaves, and by
    ``explain`` on such alone; an error of its own gets the stage as a note.

    >>> stamped = sd.prefix("model") | sd.whole(lambda tree: {**tree, "step": 3})
    >>> stamped({"w": 1})
    {'model.w': 1, 'step': 3}
    """
    if isinstance(fn, Transform):
        return fn
    if not callable(fn):
        raise TypeError(
            f"sd.whole takes a function of a tree, and a {type(fn).__name__} cannot be "
            "called; write transform | sd.whole(fn)"
        )
    text = f"whole({getattr(fn, '__name__', repr(fn))})"
    return Transform((TreeStage.by(text, Call(_called, text, fn)),))


def _called(text: str, fn: Callable[[Tree], Tree], tree: Tree) -> Tree:
    try:
        return fn(tree)
    except Exception as error:
        reraise(error, f"in the stage {text}")


Each = Callable[[LeafFunction, Window, Sequence[Sequence[Leaf]], list[Leaf]], None]
"""Appends what the function makes of each leaf of a window and of its partners.

It stops at the first of these that the function has written into.
"""


def _mapped(name: str, fn: LeafFunction, trees: Sequence[Tree], each: Each) -> Any:
    if not callable(fn):
        raise TypeError(
            f"sd.{name} takes the function first, and a {type(fn).__name__} cannot be "
            f"called; write sd.{name}(fn, tree) or sd.{name}(fn)"
        )
    text = f"{name}({getattr(fn, '__name__', repr(fn))})"
    if len(trees) < 2:
        act = Call(_apply, fn, each, ())
        stage = LeafStage.by(text, act, by_leaf=True, copies=True)
    else:
        rest = tuple(take(tree) for tree in trees[1:])
        bind = Call(_bound, name, fn, each, rest)
        stage = LeafStage(text, bind, by_leaf=True, is_paired=True, copies=True)
    return Transform((stage,))(trees[0]) if trees else Transform((stage,))


def _bound(
    name: str,
    fn: LeafFunction,
    each: Each,
    rest: Sequence[tuple[Sequence[Leaf], TreeSpec]],
    entry: StageContext,
) -> Action:
    partners: list[list[Leaf]] = []
    for leaves, spec in rest:
        order = pair(entry.spec, spec, f"a further tree of {name}")
        partners.append([leaves[k] for k in order])
    return lambda window: _apply(fn, each, partners, window)


def _apply(
    fn: LeafFunction, each: Each, partners: Sequence[list[Leaf]], window: Window
) -> list[Leaf]:
    made: list[Leaf] = []
    others = [[leaves[k] for k in window.positions] for leaves in partners]
    before = [*builtins.map(_versions, others)]
    try:
        each(fn, window, others, made)
    except Exception as error:
        reraise(error, _place_of(window, len(made), error, bool(partners)))
    if len(made) < len(window.leaves):
        raise _in_place(window.path(len(made)))
    for leaves, versions in zip(others, before, strict=True):
        if (now := _versions(leaves)) != versions:
            raise _in_place(window.path([*builtins.map(ne, now, versions)].index(True)))
    if not LEAF_TYPES.issuperset(builtins.map(type, made)):
        reject_containers(made, window)
    return made


def _each(
    fn: LeafFunction,
    window: Window,
    others: Sequence[Sequence[Leaf]],
    made: list[Leaf],
) -> None:
    columns = (window.leaves, _versions(window.leaves), *others)
    if others:
        for leaf, version, *more in zip(*columns, strict=True):
            found = fn(leaf, *more)
            if version is not None and leaf._version != version:
                return
            made.append(found)
        return
    for leaf, version in zip(*columns, strict=True):
        found = fn(leaf)
        if version is not None and leaf._version != version:
            return
        made.append(found)


def _each_with_path(
    fn: LeafFunction,
    window: Window,
    others: Sequence[Sequence[Leaf]],
    made: list[Leaf],
) -> None:
    columns = (window.paths(), window.leaves, _versions(window.leaves), *others)
    for path, leaf, version, *more in zip(*columns, strict=True):
        found = fn(path, leaf, *more)
        if version is not None and leaf._version != version:
            return
        made.append(found)


def _versions(leaves: Sequence[Leaf]) -> Sequence[int | None]:
    """Return how often each has been written to, None of what nobody counts."""
    try:
        found = [*builtins.map(getattr, leaves, repeat("_version"), repeat(None))]
    except Exception:  # one was made in inference mode, say
        return [*builtins.map(_version, leaves)]
    return found


def _version(leaf: Leaf) -> int | None:
    try:
        return getattr(leaf, "_version", None)
    except Exception:
        return None


def _in_place(path: Path) -> ValueError:
    return ValueError(
        f"{where(path)}: the function wrote into a tensor that it was given, which is "
        "changed now; let it return a new one, t.mul(2) in place of t.mul_(2), and to "
        "change a tree on purpose write sd.copy(sd.map(fn, tree), into=tree)"
    )


def _place_of(window: Window, i: int, error: Exception, is_paired: bool) -> str:
    """Return where a function failed, and what to do if it was meant for tensors."""
    leaf, place = window.leaves[i], f"at {where(window.path(i))}"
    is_meant = not isinstance(error, (AttributeError, TypeError))
    if is_meant or hasattr(type(leaf), "shape"):
        return place
    advice = "sd.where(torch.Tensor, sd.map(fn)) leaves others as they are"
    if is_paired:
        advice = (
            "give it those of each tree: "
            "sd.map(fn, sd.select(a, torch.Tensor), sd.select(b, torch.Tensor))"
        )
    return (
        f"{place}, a leaf of type {type(leaf).__name__}; if the function is for "
        f"tensors alone, {advice}"
    )


def _is_container(leaf: Leaf, path: Path) -> bool:
    try:
        return leaf is ABSENT or container_of(type(leaf)) is not None
    except (UnknownLeaf, UnknownContainer) as error:
        told = f"{where(path)}: of what the function returned, {error}"
        raise type(error)(told) from None


def reject_containers(made: Sequence[Leaf], window: Window) -> None:
    """Raise a TypeError at the first of what a function returned that is no leaf."""
    for i, leaf in enumerate(made):
        if _is_container(leaf, window.path(i)):
            raise TypeError(
                f"{where(window.path(i))}: the function returned "
                f"{'ABSENT' if leaf is ABSENT else f'a {type(leaf).__name__}'}, "
                "and a leaf is mapped to a leaf; change the structure with "
                "sd.rename, sd.unflatten or sd.drop"
            )
