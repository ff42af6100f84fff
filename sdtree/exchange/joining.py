"""Joining: a tree takes up leaves of other ranks, each at its path, after its own."""

from __future__ import annotations

from collections.abc import Sequence

from sdtree.errors import RankMismatch
from sdtree.naming.modules import metadata_of, with_metadata
from sdtree.path import same_key, where
from sdtree.tree.beside import State
from sdtree.tree.containers import ABSENT, is_mapping
from sdtree.tree.deep import Deep, run
from sdtree.tree.spec import Node, Shape, TreeSpec, node_of
from sdtree.typing import Key, Path


def joined(spec: TreeSpec, more: TreeSpec) -> TreeSpec:
    """Return a spec with the leaves of another.

    Containers that both have stay those of the first; a list or tuple grows. A path
    that is taken raises ``RankMismatch``.

    >>> joined(sd.structure({"a": [1]}), sd.structure({"b": 2, "a": [sd.ABSENT, 3]}))
    TreeSpec({'a': [*, *], 'b': *})
    """
    return TreeSpec(run(_joined(spec.shape, more.shape, ())))


def _joined(own: Shape, other: Shape, path: Path) -> Deep[Shape]:
    if other is ABSENT:
        return own
    if own is ABSENT or (isinstance(own, Node) and not own.keys and not path):
        return other
    if not (isinstance(own, Node) and isinstance(other, Node)):
        raise _taken(path, own, other)
    keys, theirs = [*own.keys], dict(other.parts())
    if is_mapping(own.cls) and is_mapping(other.cls):
        known = {key: key for key in keys}
        for key in theirs:
            if not same_key(known.setdefault(key, key), key):
                raise _taken((*path, key), own, other)
        keys = [*known]
    elif own.cls is not other.cls:
        raise _taken(path, own, other)
    elif own.cls in (list, tuple):
        keys = [*range(max(len(keys), len(theirs)))]
    elif keys != [*theirs]:
        raise _taken(path, own, other)
    mine = dict(own.parts())
    children: list[Shape] = []
    for key in keys:
        pair = mine.get(key, ABSENT), theirs.get(key, ABSENT)
        children.append((yield _joined(*pair, (*path, key))))
    return node_of(own.cls, _like(own, keys), children, _state(own.aux, other.aux))


def _like(own: Node, keys: Sequence[Key]) -> Sequence[Key]:
    return range(len(keys)) if type(own.keys) is range else tuple(keys)


def _state(own: State | None, other: State | None) -> State | None:
    """Return what a container is beside its children, with the modules of both."""
    here, there = metadata_of(own), metadata_of(other)
    if own is None or here is None or there is None:
        return own
    return with_metadata(own, {**there, **here})


def _taken(path: Path, own: Shape, other: Shape) -> RankMismatch:
    here, there = (
        f"a {x.cls.__name__}" if isinstance(x, Node) else "a leaf" for x in (own, other)
    )
    return RankMismatch(
        f"a leaf that is sent to another rank finds its path taken there, and nothing "
        f"was moved; at {where(path)} the rank has {here}, the sender {there}; rename "
        "or drop one of them",
        (path,),
    )
