"""Goals: where leaves go that a source has, in one set of ranks or in several."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from sdtree.errors import LayoutError
from sdtree.exchange.checks import fault_in
from sdtree.exchange.leaf_plan import (
    LeafPlan,
    StageInput,
    exchange_leaf_plan,
    own_leaf_plan,
    spread_leaf_plan,
)
from sdtree.exchange.sets import (
    UNSEEN,
    Claim,
    Ranks,
    Sets,
    bond_of,
    mismatched,
    supposed_of,
    told_form,
)
from sdtree.exchange.source import DistributeOptions, Source
from sdtree.kinds.abstract import Abstract, check_layouts, grouped
from sdtree.layout.layout import Layout, whole
from sdtree.layout.schedule import alike, is_blind, united
from sdtree.path import where
from sdtree.typing import Leaf, Path
from sdtree.wire.agreement import canonical
from sdtree.wire.collectives import RankGroup


@dataclass(slots=True)
class Goals:
    """Where leaves go that a source has, by position, for all that is known.

    ``at`` are the layouts of the targets as this rank sees them, ``here`` tells whether
    it is to have a part. Where there are more sets, ``united`` are the layouts of all,
    and ``groups`` the ranks that are each to have a leaf as it is.
    """

    order: DistributeOptions
    source: Source
    rank_group: RankGroup
    forms: list[Abstract]
    at: list[Layout | None]
    here: list[bool]
    wires: list[str]
    united: dict[int, Layout] = field(default_factory=dict[int, Layout])
    groups: dict[int, Ranks] = field(default_factory=dict[int, Ranks])

    @classmethod
    def of(
        cls,
        order: DistributeOptions,
        source: Source,
        rank_group: RankGroup,
        likes: Sequence[Leaf],
        forms: list[Abstract],
        layouts: list[Layout | None],
    ) -> Goals:
        """Return where leaves go if each is in one set."""
        wires = rank_group.wires(likes)
        goals = cls(order, source, rank_group, forms, layouts, [], wires)
        for i, form in enumerate(forms):
            _, target = goals.layouts_of(i)
            has_part = target is None or rank_group.me in target.boxes
            goals.here.append(form.dtype is not None and has_part)
        return goals

    def _known_of(self, i: int) -> Layout | Ranks | None:
        """Return what is known of the sets of a leaf, None if it is all in one."""
        return self.united.get(i) or self.groups.get(i)

    def leaf_plans(self) -> list[LeafPlan]:
        """Return the plan of each leaf, worked out once for those that are alike."""
        known = [*map(self._known_of, range(len(self.forms)))]
        groups = grouped(self.forms, self.source.given, self.wires, known)
        plans = [self.leaf_plan(i, self.rank_group.me) for i in groups.first]
        return [plans[k] for k in groups.of]

    def leaf_plan(self, i: int, me: int) -> LeafPlan:
        """Return what is to become of a leaf as a rank sees it."""
        form, layout, given = self.forms[i], self.at[i], self.source.given[i]
        verb, src, wire = self.order.verb, self.order.src, self.wires[i]
        if form.dtype is None or (given is None and src is None):
            return LeafPlan()
        if src is not None:
            goal = self.united.get(i, layout)
            group = self.groups.get(i, self.rank_group.ranks)
            leaf_plan = spread_leaf_plan(verb, form, src, group, wire, layout, goal)
            is_ours = goal is None or i in self.united or me in goal.boxes
            if me not in leaf_plan.crew or not is_ours:  # nobody has asked for it
                return LeafPlan()
            return leaf_plan._replace(is_blind=is_blind(layout, me))
        if given is not None and given.layout is not None:
            goal, source = self.united.get(i), given.layout
            leaf_plan = exchange_leaf_plan(verb, form, source, layout, goal, wire, me)
            return self._with_sight(leaf_plan, layout, me)
        return own_leaf_plan(verb, form, layout, me)

    def _with_sight(
        self, leaf_plan: LeafPlan, layout: Layout | None, me: int
    ) -> LeafPlan:
        """Return a plan that tells whether a rank sees ties of what is written."""
        blind = is_blind(layout, me)
        if not self.order.given.is_written or leaf_plan.is_blind == blind:
            return leaf_plan
        return leaf_plan._replace(is_blind=blind)

    def layouts_of(self, i: int) -> tuple[Layout | None, Layout | None]:
        """Return the layouts from which and to which a leaf goes.

        What comes whole of a sharded leaf does so to the ranks of that.
        """
        given, target = self.source.given[i], self.at[i]
        if given is None or given.layout is None or self.order.src is not None:
            return None, target
        return given.layout, target or whole(given.shape, given.layout.ranks)

    def members(self, i: int) -> Ranks:
        """Return the ranks that a leaf goes from or to, none if it is not sharded."""
        layout, src, given = self.at[i], self.order.src, self.source.given[i]
        layout = given.layout or layout if given is not None else layout
        if layout is None or src is None:
            return () if layout is None else layout.ranks
        return tuple(sorted({src, *layout.ranks}))

    def ends(self, i: int) -> Ranks | None:
        """Return the ranks of the target."""
        layout = self.at[i]
        return None if layout is None else layout.ranks

    # -- sets of ranks that do not see each other ----------------------------------

    def is_open(self, i: int, *, of_all: bool) -> bool:
        """Return whether a leaf goes from or to ranks that see others.

        ``of_all``: or one of which another rank has a part.
        """
        ranks, source, target = self._way(i, of_all)
        if not ranks or target is None or self.forms[i].dtype is None:
            return False
        if source is None:
            return self.order.src not in ranks
        return source.ranks != target.ranks

    def supposed(self) -> str:
        """Return what is taken of ranks that have no part of a leaf, if they matter.

        Each distributes for itself.
        """
        if self.order.src is None and not self.order.moves:
            return ""
        return supposed_of(self.at, self.rank_group)

    def _way(self, i: int, of_all: bool) -> tuple[Ranks, Layout | None, Layout | None]:
        """Return from where to where a leaf goes, and the ranks that see it as this.

        There are none if this has no part of it, or it is not sharded.
        """
        source, target = self.layouts_of(i)
        if source is None and self.order.src is None:
            return (), None, None
        me, first = self.rank_group.me, source or target
        if of_all and first is not None and me not in first.boxes:
            me = first.ranks[0]
        known = [layout for layout in (source, target) if layout is not None]
        return alike(me, *known), source, target

    def _claim(self, i: int, of_all: bool) -> Claim | None:
        """Return what those that see a leaf as this rank does have to do with it."""
        ranks, source, target = self._way(i, of_all)
        form = self.forms[i]
        if not ranks or form.dtype is None:
            return None
        told = told_form(form, None)
        both = (target,) if self._ties_are_of_targets() else (source, target)
        sees = any(not is_blind(layout, rank) for layout in both for rank in ranks)
        tie = 0 if sees else UNSEEN
        return Claim(ranks, told, source, target, wire=self.wires[i], tie=tie)

    def _ties_are_of_targets(self) -> bool:
        """Return whether the source matters not to what is tied: it is for all."""
        return self.order.given.is_written or self.order.src is not None

    def claims(
        self, ids: Iterable[int], *, are_apart: bool, of_all: bool
    ) -> dict[int, Claim]:
        """Return what sets of this rank, or of all, have to do with some leaves."""
        me, group = self.rank_group.me, {*self.rank_group.ranks}
        found: dict[int, Claim] = {}
        for i in ids:
            claim = self._claim(i, of_all)
            if claim is not None and {*claim.ranks} != group:
                found[i] = claim
            elif are_apart and self.at[i] is None and self.here[i]:
                found[i] = Claim((me,), self.forms[i], wire=self.wires[i])
        return found

    def add(self, claims: Sequence[Claim]) -> list[Abstract]:
        """Add leaves that others claim, and this rank has no target for."""
        forms = [replace(claim.form, layout=claim.target) for claim in claims]
        self.forms = [*self.forms, *forms]
        self.at = [*self.at, *(claim.target for claim in claims)]
        self.here = [*self.here, *([False] * len(forms))]
        self.wires = [*self.wires, *(claim.wire for claim in claims)]
        return forms

    def bond(self, i: int, sets: Sets) -> Hashable:
        """Return the tie that all sets see a leaf in.

        A set that keeps the leaf to itself sees it alone.
        """
        key = canonical(self.source.paths[i])
        claims, own = sets.claims[key], sets.at(key, self.rank_group.me)
        if own is not None and own.source and own.target:
            claims = [own] if own.source.ranks == own.target.ranks else claims
        return bond_of(i, claims)

    def unite(self, i: int, sets: Sets) -> None:
        """Take note of the sets that are to have a leaf.

        One that this rank has for itself is none of theirs, unless one has it for all.
        """
        path, me = self.source.paths[i], self.rank_group.me
        is_sharded = self.layouts_of(i) != (None, None)
        if self.order.src is None and not is_sharded:
            return
        key = canonical(path)
        first, *_ = claims = sets.claims[key]
        if first.is_sharded is not is_sharded:
            raise mismatched(
                path,
                f"the ranks {first.ranks} have {first.form}, and rank {me} has "
                f"{self.forms[i]}; give leaves of one kind on every rank that holds a "
                "part",
                (first.ranks[0], me),
            )
        if is_sharded:
            if sets.at(key, me) is None:  # others know what it is over
                known = replace(first.form, layout=first.target)
                self.forms = [*self.forms[:i], known, *self.forms[i + 1 :]]
            targets = dict.fromkeys(x.target for x in claims if x.target is not None)
            self.united[i] = united(*targets)
        else:
            self.groups[i] = sets.holders(key)


def check_same_ranks(path: Path, claims: Sequence[Claim]) -> None:
    """Raise unless a leaf goes to the very ranks that have it, all sets together."""
    sources = {r for claim in claims if claim.source for r in claim.source.ranks}
    targets = {r for claim in claims if claim.target for r in claim.target.ranks}
    if sources and sources != targets:
        raise LayoutError(
            f"{where(path)}: the leaf lies on the ranks {sorted(sources)}, the target "
            f"on {sorted(targets)}; redistribute works over the same ranks, otherwise "
            "gather and broadcast"
        )


def check_layouts_of(source: Source, stage_input: StageInput, me: int) -> None:
    """Raise ``LayoutError`` if leaves of a source lie as none may that is sent."""
    order = source.order
    if order.moves and order.src is None:
        fault = partial(fault_in, me=me)
        check_layouts(stage_input.known(), fault, stage_input.paths)
        return
    for path, given in source.metadata.given.items():
        if given.layout is not None:
            raise LayoutError(
                f"{where(path)}: {order.verb} takes a whole leaf and this one is "
                "sharded; use sd.redistribute, or sd.gather first"
            )
