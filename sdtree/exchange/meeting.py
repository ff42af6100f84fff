"""What ranks find out together about trees of which each has a part.

They agree on what they look at, then each does its own work, then they hear of all.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any, TypeVar

from sdtree.exchange.guards import meeting, refuse_during_stream
from sdtree.exchange.joint import check_members, described
from sdtree.kinds.abstract import Abstract
from sdtree.kinds.handler import served_by
from sdtree.layout.schedule import alike
from sdtree.tensors.modes import settled
from sdtree.tree.flattening import items, leaves
from sdtree.typing import Leaf, Path, Tree
from sdtree.wire.agreement import (
    Deed,
    Offer,
    agree,
    canonical,
    join_as_failed,
    report_failures,
)
from sdtree.wire.collectives import Team, gather_bytes, greatest

T = TypeVar("T")

Looked = Iterable[tuple[Path, Sequence[Leaf]]]
"""Paths, and the leaves that are to be looked at there."""


def team_for(verb: str, a: Tree, b: Tree, group: Any) -> Team | None:
    """Return who is to look at two trees: other ranks only if a leaf is sharded.

    With a ``group`` its ranks always take part, also one that holds nothing. They hear
    of it if a tree cannot be taken apart here.
    """
    error, is_shared = None, group is not None
    for tree in (a, b):
        try:
            is_shared |= any(map(_is_shared, leaves(tree)))
        except Exception as failure:
            error = error or failure
    team = Team.of(group) if is_shared else None
    team = team if team is not None and team.others else None
    if team is not None:
        refuse_during_stream(verb)
    if error is not None:
        if team is not None:
            with meeting(team, verb):
                join_as_failed(team, error)
        raise error
    return team


def _is_shared(leaf: Leaf) -> bool:
    layout = served_by(leaf).layout
    return layout is not None and len(layout(leaf).boxes) > 1


def decide(verb: str, team: Team, look: Looked, work: Callable[[], bool]) -> bool:
    """Return whether the work of every rank comes out true. Collective."""
    _agree(verb, team, look)
    found, error = _tried(work)
    with meeting(team, verb):
        failed, denied = greatest(team, [int(error is not None), int(not found)])
    if failed:
        _raise(verb, team, error)
    return not denied


def collect(verb: str, team: Team, look: Looked, work: Callable[[], T]) -> dict[int, T]:
    """Return what the work of each rank comes to. Collective."""
    _agree(verb, team, look)
    found, error = _tried(lambda: pickle.dumps(work()))
    with meeting(team, verb):
        failed = any(greatest(team, [int(error is not None)]))
    if failed:
        _raise(verb, team, error)
    with meeting(team, verb):
        every = gather_bytes(team, found or b"")
    return {r: pickle.loads(data) for r, data in zip(team.ranks, every, strict=True)}


def looked(a: Tree, b: Tree) -> Looked:
    """Return the paths of both trees, with the leaves that stand there."""
    found: dict[Path, list[Leaf]] = {}
    for path, leaf in (*items(a), *items(b)):
        found.setdefault(path, []).append(leaf)
    return found.items()


@settled
def _agree(verb: str, team: Team, look: Looked) -> None:
    """Hear whether all ranks are about to look at the same leaves."""
    offers, error = _tried(lambda: _offers(verb, team, look))
    with meeting(team, verb):
        if error is not None:
            join_as_failed(team, error)
        else:
            agree(team, offers or {})
    if error is not None:
        raise error


def _offers(verb: str, team: Team, look: Looked) -> dict[tuple[int, ...], Offer]:
    """Return what this rank is to look at with each set of ranks it is in."""
    offers: dict[tuple[int, ...], Offer] = {}
    keyed = [(canonical(path), path, sides) for path, sides in look]
    for key, path, sides in sorted(keyed, key=itemgetter(0)):
        forms = [*map(Abstract.of, sides)]
        layouts = [form.layout for form in forms if form.layout is not None]
        for layout in layouts:
            check_members(path, layout.ranks, team)
        ranks = alike(team.me, *layouts)
        if ranks:
            text = f"{verb} of {' and '.join(map(described, forms))}"
            deeds = offers.setdefault(ranks, Offer()).deeds
            deed = deeds.setdefault(text, Deed([], []))
            deed.paths.append(path)
            deed.keys.append(key)
    return offers


def _tried(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        return None, error


def _raise(verb: str, team: Team, error: Exception | None) -> None:
    """Raise this rank's own error, or ``RankFailed`` for that of another."""
    with meeting(team, verb):
        report_failures(team, error, None, "while comparing")
    if error is not None:
        raise error
