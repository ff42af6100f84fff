"""Receivers: the ranks on which a leaf is to be whole, as they are chosen."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from heapq import heapreplace
from typing import Any, Literal, NamedTuple

from sdtree.errors import reraise
from sdtree.exchange.checks import fault_in
from sdtree.exchange.leaf_plan import (
    UNKNOWN_FORMS,
    LeafPlan,
    StageInput,
    gather_leaf_plan,
)
from sdtree.exchange.sets import (
    Claim,
    Sets,
    bond_of,
    check_goes,
    mismatched,
    supposed_of,
    told_form,
)
from sdtree.exchange.twins import order_of
from sdtree.kinds.abstract import (
    Abstract,
    Groups,
    by_form,
    check_layouts,
    grouped,
    nbytes_of,
    whole_form,
)
from sdtree.layout.layout import Layout
from sdtree.path import where
from sdtree.typing import Leaf, Path
from sdtree.wire.agreement import canonical
from sdtree.wire.collectives import RankGroup

Choice = int | Iterable[int] | None
Ranks = Choice | Literal["balanced"] | Callable[[Path], Choice]


class Chosen(NamedTuple):
    """Who is to have a leaf: the ranks that were named, None if it is its own.

    ``own`` are those of its own ranks; whether the others take it from these depends on
    what sets of ranks hold its path.
    """

    named: tuple[int, ...] | None
    own: tuple[int, ...]


@dataclass(slots=True)
class Receivers:
    """Who gets each leaf that is gathered, by position, for all that is known.

    ``wholes`` are what it is to be, ``at`` the ranks that are to have it from its own,
    ``carried`` those of all that travel with one that leads a tie, where these are
    more. It ``writes`` if they have buffers. ``strange`` are the leaves of sets that
    this rank is not in, ``holders`` all ranks that hold a leaf which several sets hold.
    """

    ranks: Ranks
    rank_group: RankGroup
    stage_input: StageInput
    given: Sequence[Abstract]
    wholes: list[Leaf]
    chosen: list[Chosen]
    at: list[tuple[int, ...]]
    wires: list[str]
    writes: bool = False
    carried: dict[int, tuple[int, ...]] = field(
        default_factory=dict[int, tuple[int, ...]]
    )
    strange: dict[int, Claim] = field(default_factory=dict[int, Claim])
    holders: dict[int, tuple[int, ...]] = field(
        default_factory=dict[int, tuple[int, ...]]
    )

    @classmethod
    def of(
        cls, stage_input: StageInput, ranks: Ranks, rank_group: RankGroup
    ) -> Receivers:
        """Return who gets the leaves that come to the stage, if each is in one set."""
        forms, paths = stage_input.forms, stage_input.paths
        assert forms is not None, UNKNOWN_FORMS
        check_layouts(forms, partial(fault_in, me=rank_group.me), paths)
        groups = grouped(forms)
        chosen = chosen_of(paths, forms, groups, ranks, rank_group)
        own = [found.own for found in chosen]
        wires = rank_group.wires(stage_input.leaves)
        firsts = [forms[i] for i in groups.first]
        every = [x if x.layout is None else whole_form(x) for x in firsts]
        wholes = [every[k] for k in groups.of]
        return cls(ranks, rank_group, stage_input, forms, wholes, chosen, own, wires)

    def all_of(self, i: int) -> tuple[int, ...]:
        """Return the ranks that a leaf travels to, for all that travel with it."""
        return self.carried.get(i, self.at[i])

    def leaf_plans(self) -> list[LeafPlan]:
        """Return the plan of each leaf, worked out once for those that are alike."""
        groups = grouped(self.given, self.chosen, self.at, self.wires)
        plans = [self.leaf_plan(i, self.rank_group.me) for i in groups.first]
        return [plans[k] for k in groups.of]

    def leaf_plan(self, i: int, me: int) -> LeafPlan:
        """Return what is to become of a leaf as a rank sees it."""
        chosen, named = self.all_of(i), self.chosen[i].named
        to = "balanced" if self.ranks == "balanced" else f"ranks {named or chosen}"
        writes = self.writes and me in chosen
        return gather_leaf_plan(self.given[i], chosen, to, self.wires[i], me, writes)

    def ends(self, i: int) -> tuple[int, ...] | None:
        """Return the ranks on which a leaf is to be, None if it is on all."""
        if self.given[i].layout is not None:
            return self.at[i]
        if self.given[i].dtype is None or self.ranks == "balanced":
            return None
        if callable(self.ranks):
            return asked(self.ranks, self.stage_input.paths[i])
        return ranks_in(self.ranks)

    def members(self, i: int) -> tuple[int, ...]:
        """Return the ranks that a leaf lies on, none if it is not sharded."""
        layout = self.given[i].layout
        return () if layout is None else layout.ranks

    def order(self, i: int) -> int:
        """Return how the dimensions of a leaf lie in memory; see ``twins.order_of``."""
        claim = self.strange.get(i)
        return order_of(self.stage_input.held[i]) if claim is None else claim.order

    # -- sets of ranks that do not see each other ----------------------------------

    def is_open(self, i: int, *, of_all: bool) -> bool:
        """Return whether other sets decide who gets a leaf of which this rank has.

        ``of_all``: or another rank has.
        """
        layout, (named, own) = self.given[i].layout, self.chosen[i]
        if layout is None or not (of_all or self.rank_group.me in layout.ranks):
            return False
        if self.ranks == "balanced":
            return not self._is_of_all(layout)
        return named is not None and own != named

    def supposed(self) -> str:
        """Return what is taken of other sets, which matter where ranks are chosen."""
        if self.ranks is None:
            return ""
        return supposed_of((form.layout for form in self.given), self.rank_group)

    def _is_of_all(self, layout: Layout) -> bool:
        return {*layout.ranks} >= {*self.rank_group.ranks}

    def claims(
        self, ids: Iterable[int], *, are_apart: bool, of_all: bool
    ) -> dict[int, Claim]:
        """Return what sets of this rank, or of all, have to do with some leaves."""
        me, found = self.rank_group.me, dict[int, Claim]()
        for i in ids:
            form, leaf = self.given[i], self.stage_input.leaves[i]
            layout, named = form.layout, self.chosen[i].named
            if layout is None or self._is_of_all(layout):
                continue
            if not of_all and me not in layout.ranks:
                continue
            found[i] = Claim(
                layout.ranks,
                told_form(form, layout),
                source=layout,
                chosen=named,
                wire=self.wires[i],
                home=getattr(getattr(leaf, "device", None), "type", "cpu"),
                requires_grad=getattr(leaf, "requires_grad", False),
                order=self.order(i),
            )
        return found

    def follow(self, sets: Sets) -> None:
        """Take note who gets the leaves that were told, and which come from others."""
        me, known = self.rank_group.me, dict[tuple[int, ...], tuple[int, ...]]()
        for i, path in enumerate(self.stage_input.paths):
            key = canonical(path)
            if key not in sets or self.given[i].layout is None:
                continue  # a leaf of this rank alone is its own, whatever others have
            claim = sets.at(key, me) or sets.claims[key][0]
            found = sets.receivers(key, claim)
            self.at[i] = known.setdefault(found, found)
            check_goes(path, claim, found)
            self.holders[i] = sets.holders(key)
            if me in found and me not in claim.ranks:
                if self.chosen[i].named != claim.chosen:
                    raise mismatched(
                        path,
                        f"the ranks {claim.ranks} have ranks= {claim.chosen}, and rank "
                        f"{me} {self.chosen[i].named}",
                        (claim.ranks[0], me),
                    )
                self.strange[i] = claim
                self.wires[i] = claim.wire

    def bond(self, i: int, sets: Sets) -> Hashable:
        """Return the tie of a leaf in the set that it comes from.

        Members that go to other ranks outside the set go as leaves of their own. If
        balanced, all sets must see it. One that is not sharded is in none of them.
        """
        if self.given[i].layout is None:
            return i
        key = canonical(self.stage_input.paths[i])
        claim = sets.at(key, self.rank_group.me) or sets.claims[key][0]
        every = sets.claims[key] if self.ranks == "balanced" else [claim]
        outside = [rank for rank in self.at[i] if rank not in claim.ranks]
        return bond_of(i, every, outside)

    # -- after the agreement -------------------------------------------------------

    def balance(self, ids: Sequence[int], leaders: Mapping[int, int]) -> list[int]:
        """Give each leaf to one rank of its own: largest first, to the least loaded.

        Return the positions of the leaves that have been given.
        """
        loads: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        paths, sizes = self.stage_input.paths, by_form(nbytes_of, self.given)
        order, given = {i: canonical(paths[i]) for i in ids}, [*leaders]
        for i in sorted(ids, key=lambda i: (-sizes[i], order[i])):
            layout = self.given[i].layout
            if layout is None or not layout.ranks or i in leaders:
                continue
            ranks = self.holders.get(i, layout.ranks)
            if ranks not in loads:
                loads[ranks] = [(0, rank) for rank in ranks]
            load, rank = loads[ranks][0]
            heapreplace(loads[ranks], (load + sizes[i], rank))
            self.at[i] = (rank,) if rank in layout.ranks else ()
            given.append(i)
        for i, leader in leaders.items():
            self.at[i] = self.at[leader]
        return given

    def carry(self, leader: int, others: Iterable[int]) -> bool:
        """Carry the leader of a tie to all that get a member; return if it is more."""
        wide = {rank for i in (leader, *others) for rank in self.at[i]}
        if wide == {*self.at[leader]}:
            return False
        self.carried[leader] = tuple(sorted(wide))
        return True


def chosen_of(
    paths: Sequence[Path],
    forms: Sequence[Abstract],
    groups: Groups,
    ranks: Ranks,
    rank_group: RankGroup,
) -> list[Chosen]:
    """Return for each leaf the ranks on which it is to be whole.

    The same tuple for leaves of one form, unless a function of the path chooses.
    """
    if callable(ranks):
        both = zip(paths, forms, strict=True)
        return [_chosen(path, form, ranks, rank_group) for path, form in both]
    found = [_chosen(paths[i], forms[i], ranks, rank_group) for i in groups.first]
    return [found[k] for k in groups.of]


def _chosen(path: Path, form: Abstract, ranks: Ranks, rank_group: RankGroup) -> Chosen:
    """Return the ranks on which a leaf is to be whole."""
    me = rank_group.me
    layout = form.layout
    members = (me,) if layout is None else layout.ranks
    if ranks == "balanced":
        return Chosen(None, members)
    found = asked(ranks, path) if callable(ranks) else ranks_in(ranks)
    if found is None:
        return Chosen(None, members)
    outside = [rank for rank in found if rank not in rank_group.ranks]
    if outside:
        raise ValueError(
            f"gather: ranks={ranks!r} at {where(path)} names {outside}, which are not "
            f"in the group of {rank_group.ranks}; ranks are global"
        )
    if layout is None or {*found} <= {*members}:
        return Chosen(found, found)
    return Chosen(found, tuple(rank for rank in found if rank in members))


def ranks_in(choice: Choice) -> tuple[int, ...] | None:
    """Return the ranks that are chosen, in order, None for all; raise if it is none."""
    if choice is None:
        return None
    try:
        found: list[Any] = [*choice] if isinstance(choice, Iterable) else [choice]
    except TypeError:  # a tensor of no dims says that it can be iterated
        found = [choice]
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
        reraise(error, f"in the function given as ranks=, at {where(path)}")
