"""Leaves by the ranks that they lie on, which alone take part, as with torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container
from typing import Any

from sdtree.kinds.handler import served_by
from sdtree.tree.pairing import atoms, prune
from sdtree.tree.spec import LEAF, TreeSpec, take
from sdtree.typing import Leaf, Path, Tree
from sdtree.wire.collectives import RankGroup

Act = Callable[[Tree, tuple[int, ...], Any], Tree]
"""Makes a tree of one whose leaves lie on some ranks, in the group of these."""


def on_each_set(tree: Tree, act: Act) -> Tree:
    """Return the tree of what is made of leaves, set of ranks by set. Collective.

    Whole leaves come first, as on no ranks. A rank goes through its sets in one order,
    so that none waits in vain, and to the end also where one of them fails: others are
    in the next with it. A leaf that lies on other ranks stays as it is.
    """
    made, spec = take(tree)
    error: BaseException | None = None
    for ranks, ids in sorted(_sets_of(made).items()):
        part = _part(spec, {*ids}).make([made[i] for i in ids])
        try:
            found, _ = take(act(part, ranks, _group_of(ranks)))
            made = [*made]
            for i, leaf in zip(ids, found, strict=True):
                made[i] = leaf
        except BaseException as raised:  # an interrupt, too
            error = error or raised
    if error is not None:
        raise error
    return spec.make(made)


def _sets_of(leaves: list[Leaf]) -> dict[tuple[int, ...], list[int]]:
    """Return the positions of leaves by their ranks, of sets that this rank is in."""
    me = RankGroup.of().me
    sets: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, leaf in enumerate(leaves):
        layout = served_by(leaf).layout
        ranks = () if layout is None else layout(leaf).ranks
        if me in ranks or not ranks:
            sets[ranks].append(i)
    return sets


def at(tree: Tree, paths: Container[Path]) -> Tree:
    """Return what a tree has at some paths."""
    leaves, spec = take(tree)
    ids = [i for i, path in enumerate(spec.every_path) if path in paths]
    return _part(spec, {*ids}).make([leaves[i] for i in ids])


def _part(spec: TreeSpec, ids: set[int]) -> TreeSpec:
    """Return the spec of some leaves, at the paths where they stand."""
    if len(ids) == len(spec):
        return spec
    shapes = [shape for _, shape in atoms(spec)]
    numbers = iter(range(len(spec)))
    return prune(spec, [shape is LEAF and next(numbers) in ids for shape in shapes])


def _group_of(ranks: tuple[int, ...]) -> Any:
    """Return the process group of some ranks; they all call, the first time."""
    everyone = RankGroup.of()
    return everyone.of_ranks(ranks).group if everyone.is_there and ranks else None
