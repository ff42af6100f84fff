"""What a tree is, without its data: ``spec``, ``nbytes``, ``ties``."""

from __future__ import annotations

from torch import Tensor

from sdtree.exchange.twins import groups_of
from sdtree.kinds.abstract import Abstract, look_at, nbytes_of
from sdtree.tensors.modes import making, uncompiled
from sdtree.tensors.storage import covered_bytes, identity_of, tie_groups
from sdtree.transform.window import apart_in, handled
from sdtree.tree.spec import take
from sdtree.typing import Path, Tree


@uncompiled
def spec(tree: Tree, /) -> Tree:
    """Return the tree with an ``Abstract`` in the place of every leaf.

    >>> sd.spec({"w": torch.ones(2), "step": 3})
    {'w': Abstract(Tensor, (2,), float32), 'step': Abstract(int)}
    """
    leaves, structure = take(tree)
    with making():
        return structure.make(look_at(leaves, lambda i: structure.every_path[i])[0])


@uncompiled
def nbytes(tree: Tree, /, *, whole: bool = False) -> int:
    """Return how many bytes the tensors of a tree hold; what ties share counts once.

    A tensor counts its elements, or the span from its first to its last if that is
    smaller, as of an expanded one; those that are tied count the spans that they cover.
    An ``Abstract`` counts what it stands for. Of a sharded leaf that is this rank's
    part; with ``whole=True``, it is all of it, each part once. Nothing is asked of
    other ranks.

    >>> w = torch.ones(4)
    >>> sd.nbytes({"w": w, "tied": w, "step": 3})
    16
    """
    return handled(lambda: _nbytes(tree, whole), tree)


def _nbytes(tree: Tree, whole: bool) -> int:
    leaves, structure = take(tree)
    parts = apart_in(structure, leaves)
    if not whole:
        return covered_bytes(parts.tensors)
    forms = [*map(Abstract.of, leaves)]
    held: dict[int, list[Tensor]] = {}
    for i, t in zip(parts.owners(), parts.tensors, strict=True):
        held.setdefault(i, []).append(t)
    sharded = [i for i, form in enumerate(forms) if form.layout is not None]
    once = {identity_of(held.pop(i)): forms[i] for i in sharded}
    plain = [t for ts in held.values() for t in ts]
    return covered_bytes(plain) + sum(map(nbytes_of, once.values()))


@uncompiled
def ties(tree: Tree, /) -> list[list[Path]]:
    """Return the groups of paths whose leaves share storage.

    Zero-size and meta tensors have no storage to share; but where this rank's part of a
    sharded leaf is empty, the storage that it would lie in tells.

    >>> w = torch.ones(4)
    >>> sd.ties({"a": w, "b": w.view(2, 2), "c": w.clone()})
    [[('a',), ('b',)]]
    """
    return handled(lambda: _ties(tree), tree)


def _ties(tree: Tree) -> list[list[Path]]:
    leaves, structure = take(tree)
    parts = apart_in(structure, leaves)
    owners, paths = parts.owners(), structure.paths()
    groups = [sorted({owners[i] for i in group}) for group in tie_groups(parts.tensors)]
    groups += groups_of(
        {
            owner: identity_of([t])
            for owner, t in zip(owners, parts.tensors, strict=True)
            if not t.numel() and nbytes_of(Abstract.of(leaves[owner]))
        }
    )
    once = dict.fromkeys(tuple(group) for group in groups if len(group) > 1)
    return [[paths[k] for k in group] for group in once]
