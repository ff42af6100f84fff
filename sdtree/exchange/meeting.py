"""What ranks find out together about trees of which each has a part.

They agree on what they look at, then each does its own work, then they hear of all.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import Any, TypeVar

from sdtree.exchange.checks import check_members
from sdtree.exchange.exchange import refuse_during_stream
from sdtree.exchange.leaf_plan import described
from sdtree.kinds.abstract import Abstract
from sdtree.kinds.handler import served_by
from sdtree.layout.schedule import alike
from sdtree.tensors.modes import settled
from sdtree.tree.containers import whatever_is_in
from sdtree.tree.flattening import items, leaves
from sdtree.typing import Leaf, Path, Tree
from sdtree.wire.agreement import (
    Fingerprint,
    LeafSet,
    agree,
    canonical,
    check_names,
    join_as_failed,
    report_failures,
)
from sdtree.wire.collectives import ALONE, RankGroup, gather_bytes, greatest

T = TypeVar("T")

Looked = Iterable[tuple[Path, Sequence[Leaf]]]
"""Paths, and the leaves that are to be looked at there."""


def rank_group_for(verb: str, a: Tree, b: Tree, group: Any) -> RankGroup:
    """Return who is to look at two trees: other ranks only if a leaf is sharded.

    With a ``group`` its ranks always take part, also one that holds nothing. They hear
    of it if a tree cannot be taken apart here. Otherwise there are no ``others``.
    """
    is_shared, error = group is not None, None
    for tree in (a, b):
        found, failure = _share(tree)
        is_shared, error = is_shared or found, error or failure
    rank_group = RankGroup.of(group, verb) if is_shared else ALONE
    if rank_group.others:
        refuse_during_stream(verb)
    try:
        if error is not None:
            if rank_group.others:
                join_as_failed(rank_group, error)
            raise error
    finally:
        error = None  # it would hold this frame, and the frame it
    return rank_group


def _share(tree: Tree) -> tuple[bool, BaseException | None]:
    """Return whether a leaf is sharded, and what keeps the tree from coming apart."""
    try:
        return any(map(_is_shared, leaves(tree))), None
    except BaseException as error:  # an interrupt, too
        with suppress(Exception):
            return any(map(_may_be_shared, whatever_is_in(tree))), error
        return False, error


def _may_be_shared(x: object) -> bool:
    """Return whether this is a sharded leaf, and not what no kind serves."""
    with suppress(Exception):
        return _is_shared(x)
    return False


def _is_shared(leaf: Leaf) -> bool:
    layout = served_by(leaf).layout
    return layout is not None and len(layout(leaf).boxes) > 1


def decide(rank_group: RankGroup, look: Looked, work: Callable[[], bool]) -> bool:
    """Return whether the work of every rank comes out true. Collective."""
    _agree(rank_group, look)
    found, error = _tried(work)
    failed, denied = greatest(rank_group, [int(error is not None), int(not found)])
    if failed:
        _raise(rank_group, error)
    return not denied


def collect(rank_group: RankGroup, look: Looked, work: Callable[[], T]) -> dict[int, T]:
    """Return what the work of each rank comes to. Collective."""
    _agree(rank_group, look)
    found, error = _tried(lambda: pickle.dumps(work()))
    failed = any(greatest(rank_group, [int(error is not None)]))
    if failed:
        _raise(rank_group, error)
    every = gather_bytes(rank_group, found or b"")
    return {
        r: pickle.loads(data) for r, data in zip(rank_group.ranks, every, strict=True)
    }


def looked(a: Tree, b: Tree) -> Looked:
    """Return the paths of both trees, with the leaves that stand there."""
    found: dict[Path, list[Leaf]] = {}
    for path, leaf in (*items(a), *items(b)):
        found.setdefault(path, []).append(leaf)
    return found.items()


@settled
def _agree(rank_group: RankGroup, look: Looked) -> None:
    """Hear whether all ranks are about to look at the same leaves."""
    fingerprints, error = _tried(lambda: _fingerprints(rank_group, look))
    try:
        if error is not None:
            join_as_failed(rank_group, error)
            raise error
    finally:
        error = None  # it would hold this frame, and the frame it
    agree(rank_group, fingerprints or {})


def _fingerprints(
    rank_group: RankGroup, look: Looked
) -> dict[tuple[int, ...], Fingerprint]:
    """Return what this rank is to look at with each set of ranks it is in."""
    fingerprints: dict[tuple[int, ...], Fingerprint] = {}
    keyed = [(canonical(path), path, sides) for path, sides in look]
    ordered = sorted(keyed, key=itemgetter(0))
    check_names((key, path) for key, path, _ in ordered)
    for key, path, sides in ordered:
        forms = [*map(Abstract.of, sides)]
        layouts = [form.layout for form in forms if form.layout is not None]
        for layout in layouts:
            check_members(path, layout.ranks, rank_group)
        ranks = alike(rank_group.me, *layouts)
        if ranks:
            text = f"{rank_group.text} of {' and '.join(map(described, forms))}"
            leaf_sets = fingerprints.setdefault(ranks, Fingerprint()).leaf_sets
            leaf_set = leaf_sets.setdefault(text, LeafSet([], []))
            leaf_set.paths.append(path)
            leaf_set.keys.append(key)
    return fingerprints


def _tried(work: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    try:
        return work(), None
    except BaseException as error:  # an interrupt, too
        return None, error


def _raise(rank_group: RankGroup, error: BaseException | None) -> None:
    """Raise this rank's own error, or ``RankFailed`` for that of another."""
    report_failures(rank_group, error, None, f"in {rank_group.text}")
    if error is not None:
        raise error
