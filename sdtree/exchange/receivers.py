"""Receivers: the ranks on which a leaf is to be whole, as they are chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

from sdtree.exchange.joint import checked_layout, me_in, once
from sdtree.kinds.abstract import Abstract
from sdtree.path import where
from sdtree.typing import Path
from sdtree.wire.collectives import Team

Choice = int | Iterable[int] | None
Ranks = Choice | Literal["balanced"] | Callable[[Path], Choice]


class Chosen(NamedTuple):
    """Who is to have a leaf: the ranks that were named, None if it is its own.

    ``own`` are those of its own ranks; whether the others take it from these depends on
    what sets of ranks hold its path.
    """

    named: tuple[int, ...] | None
    own: tuple[int, ...]


def chosen_of(
    paths: Sequence[Path],
    forms: Sequence[Abstract],
    ranks: Ranks,
    team: Team | None,
) -> list[Chosen]:
    """Return for each leaf the ranks on which it is to be whole.

    The same tuple for leaves of one form, unless a function of the path chooses.
    """

    def chosen(i: int) -> Chosen:
        return _chosen(paths[i], forms[i], ranks, team)

    if callable(ranks):
        return [*map(chosen, range(len(forms)))]
    return once(chosen, forms)


def _chosen(path: Path, form: Abstract, ranks: Ranks, team: Team | None) -> Chosen:
    """Return the ranks on which a leaf is to be whole."""
    me = me_in(team)
    layout = checked_layout(path, form, me)
    members = (me,) if layout is None else layout.ranks
    if ranks == "balanced":
        return Chosen(None, members)
    found = asked(ranks, path) if callable(ranks) else ranks_in(ranks)
    if found is None:
        return Chosen(None, members)
    group = (0,) if team is None else team.ranks
    outside = [rank for rank in found if rank not in group]
    if outside:
        raise ValueError(
            f"gather: ranks={ranks!r} at {where(path)} names {outside}, which are not "
            f"in the group of {group}; ranks are global"
        )
    if layout is None or {*found} <= {*members}:
        return Chosen(found, found)
    return Chosen(found, tuple(rank for rank in found if rank in members))


def ranks_in(choice: Choice) -> tuple[int, ...] | None:
    """Return the ranks that are chosen, in order, None for all; raise if it is none."""
    if choice is None:
        return None
    found: list[Any] = [*choice] if isinstance(choice, Iterable) else [choice]
    if not isinstance(choice, bytes) and all(type(rank) is int for rank in found):
        return tuple(sorted({*found}))
    raise TypeError(
        f"gather: ranks={choice!r}; give a rank, several, a function from a path to "
        "ranks, 'balanced', or None for all"
    )


def asked(choose: Callable[[Path], Choice], path: Path) -> tuple[int, ...] | None:
    """Return the ranks that a function chooses for a path, None for all."""
    try:
        return ranks_in(choose(path))
    except Exception as error:
        error.add_note(f"in the function given as ranks=, at {where(path)}")
        raise
