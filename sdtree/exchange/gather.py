"""Gathering: the deal by which sharded leaves become whole on the ranks chosen."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from heapq import heapreplace

import torch
from torch import Tensor

from sdtree.errors import LayoutError, Mismatch, SpecMismatch
from sdtree.exchange.filling import Targets
from sdtree.exchange.joint import (
    blank,
    by_form,
    cargo_of,
    check_data,
    groups_of,
    junk_like,
    kinds_of_wire,
    leaders_of,
    marked,
    me_in,
    nbytes_of,
    once,
    own_part,
    wholes_of,
)
from sdtree.exchange.leaf_plan import Cargo, Leg, Origin, per_lane
from sdtree.exchange.legs import gather_leg
from sdtree.exchange.metadata import has_no_makeup
from sdtree.exchange.receivers import Chosen, Ranks, asked, chosen_of, ranks_in
from sdtree.exchange.sets import Claim, Sets, mismatched, origin_with, told_form
from sdtree.exchange.twins import Turn, Twins, turn_between, twins_of, unseen
from sdtree.kinds.abstract import Abstract, Local
from sdtree.kinds.handler import arrived, find_handler, handler_of
from sdtree.layout.layout import Layout
from sdtree.path import where
from sdtree.tensors.storage import dense_strides, identity_of
from sdtree.tree.spec import TreeSpec
from sdtree.typing import Leaf, Path, Tree
from sdtree.wire.agreement import Canonical, canonical
from sdtree.wire.collectives import Team


@dataclass(slots=True)
class Gathering:
    """What is gathered, and who gets it; see ``Deal``.

    A leaf that leads a tie is ``carried`` to the receivers of all its members.
    ``twins`` are leaves whose data is one and the same, wherever it is to go.
    ``strange`` are the leaves of sets that this rank is not in, ``holders`` all ranks
    that hold a leaf which several sets hold. It ``lacks`` leaves if there are buffers
    for more.
    """

    origin: Origin
    team: Team | None
    me: int
    ranks: Ranks
    into: Tree | None
    targets: Targets | None
    spec: TreeSpec
    forms: list[Leaf]
    given: Sequence[Abstract]
    chosen: list[Chosen]
    receivers: list[tuple[int, ...]]
    strange: dict[int, Claim] = field(default_factory=dict[int, Claim])
    holders: dict[int, tuple[int, ...]] = field(
        default_factory=dict[int, tuple[int, ...]]
    )
    lacks: bool = False
    wires: list[str] = field(default_factory=list[str])
    legs: list[Leg] = field(default_factory=list[Leg])
    ties: list[list[int]] = field(default_factory=list[list[int]])
    leaders: dict[int, int] = field(default_factory=dict[int, int])
    carried: dict[int, tuple[int, ...]] = field(
        default_factory=dict[int, tuple[int, ...]]
    )
    twins: Twins = field(default_factory=lambda: Twins([], []))
    shared: list[list[int]] = field(default_factory=list[list[int]])
    fault: Exception | None = None
    consequence: str = "nothing was changed"
    common: str = ""
    others: Sequence[Canonical] = ()

    @classmethod
    def of(
        cls,
        origin: Origin | None,
        team: Team | None,
        ranks: Ranks,
        into: Tree | None,
        sets: Sets | None = None,
    ) -> Gathering:
        """Return the deal for the leaves that come to the stage."""
        assert origin is not None, "every rank is a source"
        forms, paths = origin.known(), origin.spec.paths()
        me = me_in(team)
        chosen = chosen_of(paths, forms, ranks, team)
        receivers = [found.own for found in chosen]
        results, spec = by_form(_result, forms), origin.spec
        deal = cls(
            origin, team, me, ranks, into, None, spec, results, forms, chosen, receivers
        )
        deal.wires = kinds_of_wire(origin.leaves, team)
        if sets is not None:
            deal._follow(sets)
        if into is not None:
            deal._take_buffers(into, is_last=sets is not None)
        deal.legs = deal._all_legs()
        if deal.targets is not None:
            deal.shared = deal._shared_buffers(deal.targets)
        apart = {i for group in deal.shared for i in group}
        shared = (i for i, leg in enumerate(deal.legs) if leg.text and leg.nbytes)
        apart |= deal.strange.keys()
        held = {i: origin.held[i] for i in shared if i not in apart}
        deal.twins = twins_of(held, forms)
        deal.ties = [*deal._ties_seen_by(me), *deal.shared]
        if sets is not None:
            deal.ties += groups_of({i: deal.bond(i, sets) for i in deal.strange})
        if deal.targets is not None:
            deal.targets.check(results, origin, deal.ties)
        return deal

    def _take_buffers(self, into: Tree, *, is_last: bool) -> None:
        """Have the leaves written into buffers, for which others may yet come."""
        mine = [self.me in chosen for chosen in self.receivers]
        try:
            self.targets = Targets.of(into, self.spec, mine)
        except SpecMismatch:
            self.lacks = self.team is not None and self.team.others > 0 and not is_last
            if not self.lacks:
                raise
        self.consequence = "the buffers of into= are partly written"

    def asks(self, me: int) -> bool:
        """Return False: all is known; see ``Deal``."""
        return False

    def ties_on(self, me: int) -> list[list[int]]:
        """Return the ties that a rank sees, for all that is known; see ``Deal``."""
        return self.ties if me == self.me else self._ties_seen_by(me)

    def _ties_seen_by(self, me: int) -> list[list[int]]:
        """Return the twins that are gathered once for all of them.

        Where a rank is given buffers these must be one, or each has its own to fill.
        """
        targets = self.targets
        if targets is None:
            return self.twins.tied

        def goal(i: int, first: int) -> Hashable:
            chosen = self.receivers[i]
            ts = targets.tensors[i] if me in chosen else ()
            back = self._turn(i, first)
            fit = all(t.ndim == len(back) for t in ts)  # what does not is told later
            return chosen, identity_of([t.permute(back) for t in ts] if fit else ts)

        groups = self.twins.tied
        return groups_of({i: (g[0], goal(i, g[0])) for g in groups for i in g})

    def _turn(self, i: int, k: int) -> Turn:
        """Return in which order the dimensions of a leaf stand in one that is tied."""
        here, there = self.given[i].layout, self.given[k].layout
        assert here is not None
        assert there is not None
        turn = turn_between(here, there)
        assert turn is not None, "they would not be tied"
        return turn

    def unseen_ties(self) -> list[list[int]]:
        """Return the leaves that may be tied, for all that is known; see ``Deal``.

        The buffers of other ranks are not seen.
        """
        found = unseen(self.me, self.given, ((form.layout,) for form in self.given))
        if self.targets is None:
            return found
        receives = [self.me in chosen for chosen in self.receivers]
        return found + [
            group for group in self.twins.tied if not all(receives[i] for i in group)
        ]

    def _shared_buffers(self, targets: Targets) -> list[list[int]]:
        """Return the leaves that are to go into one buffer, and may be one.

        This rank holds nothing of them; whether they are tied, others will tell.
        """
        return groups_of(
            {
                i: (identity_of(targets.tensors[i]), self.given[i].layout)
                for i, leg in enumerate(self.legs)
                if leg.is_blind and leg.nbytes and targets.wanted[i]
            }
        )

    def untied(self) -> list[list[int]]:
        """Return the leaves whose wholes could not share memory; see ``Deal``."""
        moved = ([i for i in g if self.legs[i].lanes] for g in self.twins.apart)
        return [group for group in moved if group[1:]]

    def _all_legs(self) -> list[Leg]:
        """Return the leg of each leaf, worked out once for those that are alike."""
        return once(self._leg, self.given, self.chosen, self.receivers, self.wires)

    def _leg(self, i: int) -> Leg:
        return self.leg_on(i, self.me)

    def ends(self, i: int) -> tuple[int, ...] | None:
        """Return the ranks on which a leaf is to be; see ``Deal``."""
        if self.given[i].layout is not None:
            return self.receivers[i]
        if self.given[i].dtype is None or self.ranks == "balanced":
            return None
        if callable(self.ranks):
            return asked(self.ranks, self.spec.every_path[i])
        return ranks_in(self.ranks)

    @property
    def report(self) -> Mismatch:
        """Return that nothing is left out; see ``Deal``."""
        return Mismatch()

    def stays(self, i: int) -> Sequence[Tensor]:
        """Return the tensors of a leaf, and those of its buffer; see ``Deal``."""
        into = () if self.targets is None else self.targets.tensors[i]
        return [*self.origin.held[i], *into]

    def home(self, i: int) -> torch.device | None:
        """Return None: what is gathered stays on its device; see ``Deal``."""
        return None

    def members(self, i: int) -> tuple[int, ...]:
        """Return the ranks that a leaf lies on; see ``Deal``."""
        layout = self.given[i].layout
        return () if layout is None else layout.ranks

    def leg_on(self, i: int, me: int) -> Leg:
        """Return what is to become of a leaf as a rank sees it; see ``Deal``."""
        chosen, named = self.carried.get(i, self.receivers[i]), self.chosen[i].named
        to = "balanced" if self.ranks == "balanced" else f"ranks {named or chosen}"
        writes = self.targets is not None and me in chosen
        return gather_leg(self.given[i], chosen, to, self.wires[i], me, writes)

    # -- sets of ranks that do not see each other ----------------------------------

    def seeks(self, ids: Iterable[int], *, of_all: bool = False) -> bool:
        """Return whether leaves go to ranks that are not their own; see ``Deal``."""
        alike = {(id(self.legs[i]), id(self.given[i])): i for i in ids}
        return self.lacks or any(self._is_open(i, of_all) for i in alike.values())

    def _is_open(self, i: int, of_all: bool) -> bool:
        """Return whether other sets decide who gets a leaf of which this rank has."""
        layout, (named, own) = self.given[i].layout, self.chosen[i]
        if layout is None or not (of_all or self.me in layout.ranks):
            return False
        if self.ranks == "balanced":
            return not self._is_of_all(layout)
        return named is not None and own != named

    def _is_of_all(self, layout: Layout) -> bool:
        return self.team is None or {*layout.ranks} >= {*self.team.ranks}

    def claims(
        self, ids: Iterable[int], *, are_apart: bool = False, of_all: bool = False
    ) -> dict[int, Claim]:
        """Return the leaves that lie on some ranks alone; see ``Deal``."""
        found: dict[int, Claim] = {}
        for i in ids:
            form, leaf = self.given[i], self.origin.leaves[i]
            layout, named = form.layout, self.chosen[i].named
            if layout is None or self._is_of_all(layout):
                continue
            if not of_all and self.me not in layout.ranks:
                continue
            found[i] = Claim(
                layout.ranks,
                told_form(form, layout),
                source=layout,
                chosen=named,
                wire=self.wires[i],
                home=getattr(getattr(leaf, "device", None), "type", "cpu"),
                requires_grad=getattr(leaf, "requires_grad", False),
            )
        return found

    def met(self, sets: Sets) -> Gathering:
        """Return the deal with the leaves that come from other sets; see ``Deal``."""
        origin = origin_with(self.origin, sets, self.me)
        return Gathering.of(origin, self.team, self.ranks, self.into, sets)

    def _follow(self, sets: Sets) -> None:
        """Take note who gets the leaves that were told, and which come from others."""
        known: dict[tuple[int, ...], tuple[int, ...]] = {}
        for i, path in enumerate(self.spec.every_path):
            key = canonical(path)
            if key not in sets:
                continue
            claim = sets.at(key, self.me) or sets.claims[key][0]
            found = sets.receivers(key, claim)
            self.receivers[i] = known.setdefault(found, found)
            _check_goes(path, claim, found)
            self.holders[i] = sets.holders(key)
            if self.me in found and self.me not in claim.ranks:
                if self.chosen[i].named != claim.chosen:
                    raise mismatched(
                        path,
                        f"the ranks {claim.ranks} have ranks= {claim.chosen}, and rank "
                        f"{self.me} {self.chosen[i].named}",
                        (claim.ranks[0], self.me),
                    )
                self.strange[i] = claim
                self.wires[i] = claim.wire

    def bond(self, i: int, sets: Sets) -> Hashable:
        """Return the tie of a leaf in the set that it comes from; see ``Deal``.

        Members that go to other ranks outside the set go as leaves of their own. If
        balanced, all sets must see it.
        """
        key = canonical(self.spec.every_path[i])
        claim = sets.at(key, self.me) or sets.claims[key][0]
        every = sets.claims[key] if self.ranks == "balanced" else [claim]
        if not all(one.tie for one in every):
            return i
        outside = [rank for rank in self.receivers[i] if rank not in claim.ranks]
        return str(([(one.ranks, one.tie) for one in every], outside))

    # -- after the agreement -------------------------------------------------------

    def open(
        self, ids: Sequence[int], ties: Sequence[Sequence[int]], asked: bool
    ) -> None:
        """Choose the ranks that are to be balanced; see ``Deal``."""
        self.leaders = leaders_of(ties)
        if self.targets is not None:
            self._check_shared(ids, self.targets)
        if self.ranks == "balanced":
            self._balance(ids)
        for leader, *others in ties:
            wide = {r for i in (leader, *others) for r in self.receivers[i]}
            if wide != {*self.receivers[leader]}:
                self.carried[leader] = tuple(sorted(wide))
                self.legs[leader] = self._leg(leader)

    def _check_shared(self, ids: Sequence[int], targets: Targets) -> None:
        """Note a fault if leaves that go into one buffer are not tied on all ranks."""
        for group in (*self.shared, *self.ties):
            wanted = [i for i in group if i in ids and targets.wanted[i]]
            if len({self.leaders.get(i, i) for i in wanted}) > 1:
                names = " and ".join(where(self.spec.every_path[i]) for i in wanted)
                self.fault = SpecMismatch(
                    f"into= has one and the same buffer at {names}, and the leaves "
                    "there are not tied on all ranks, or go to other ranks each; "
                    "nothing was written to it, give each its own"
                )

    def _balance(self, ids: Sequence[int]) -> None:
        """Give each leaf to one rank of its own: largest first, to the least loaded."""
        loads: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        paths, sizes = self.spec.paths(), by_form(nbytes_of, self.given)
        order = {i: canonical(paths[i]) for i in ids}
        for i in sorted(ids, key=lambda i: (-sizes[i], order[i])):
            layout = self.given[i].layout
            if layout is None or not layout.ranks or i in self.leaders:
                continue
            ranks = self.holders.get(i, layout.ranks)
            if ranks not in loads:
                loads[ranks] = [(0, rank) for rank in ranks]
            load, rank = loads[ranks][0]
            heapreplace(loads[ranks], (load + sizes[i], rank))
            self._give(i, (rank,) if rank in layout.ranks else ())
        for i, leader in self.leaders.items():
            self._give(i, self.receivers[leader])

    def _give(self, i: int, chosen: tuple[int, ...]) -> None:
        self.receivers[i] = chosen
        self.legs[i] = self._leg(i)

    def check_data(self, ids: Sequence[int]) -> None:
        """Raise if leaves that are wanted have no data; see ``Deal``."""
        if not self.origin.is_acted_on:
            for i in ids:
                if self.legs[i].lanes:
                    check_data(self.spec.every_path[i], self.origin.held[i])

    def openings(self) -> list[tuple[str, int]]:
        """Return no collectives: all is known; see ``Deal``."""
        return []

    def pull(self, ids: Sequence[int]) -> Sequence[Leaf]:
        """Return the leaves as the stages before leave them; see ``Deal``."""
        return self.origin.pull(ids)

    def reduce(self, i: int, leaf: Leaf | None) -> Leaf:
        """Return a leaf without terms to reduce; see ``Deal``."""
        if leaf is None:
            leaf = junk_like(self.origin.leaves[i], self.given[i])
        return handler_of(leaf).reduced(leaf)

    def load(self, ids: Sequence[int], leaves: Sequence[Leaf]) -> Sequence[Cargo]:
        """Return what to read and where to write; see ``Deal``."""
        make = partial(self._cargo, {})
        return cargo_of(ids, leaves, self.leaders, self.spec.every_path, make)

    def _cargo(
        self, blanks: dict[int, Tensor], i: int, leaf: Leaf, leader: Cargo | None
    ) -> Cargo:
        form, lanes, chosen = self.given[i], self.legs[i].lanes, self.receivers[i]
        if form.dtype is None:
            return Cargo(leaf)
        if not lanes and self.me not in chosen:
            return Cargo(self.forms[i])
        ts = () if i in self.strange else self.origin.tensors(i, leaf)
        if lanes and self.origin.is_acted_on:
            check_data(self.spec.every_path[i], ts)
        sources = per_lane(ts, len(lanes)) if lanes else []
        if self.me not in self.carried.get(i, chosen):
            return Cargo(self.forms[i], sources, [()] * len(lanes))
        if self.targets is not None:
            if self.origin.is_acted_on and not has_no_makeup(form):
                self.targets.check_beside(i, leaf)
            return self._into(self.targets, i, ts, leader)
        if form.layout is None:
            return Cargo(arrived(leaf))
        if form.layout.parts is not None:
            return self._cargo_inside(i, leaf, sources, leader)
        marks = self._requires_grad(i, leaf)
        if leader is not None and leader.targets:
            [[out]] = leader.targets
            out = out.permute(self._turn(self.leaders[i], i))
            return Cargo(marked(out, marks), [ts], [[out]])
        if ts and not lanes:
            return Cargo(marked(own_part(form.layout, ts, self.me), marks))
        device = ts[0].device if ts else self._device(i)
        out = blanks[id(form)] = blank(form, device, blanks.get(id(form)))
        if self.me not in chosen:
            return Cargo(self.forms[i], [ts], [[out]])
        return Cargo(marked(out, marks) if marks else out, [ts], [[out]])

    def _into(
        self, targets: Targets, i: int, ts: Sequence[Tensor], leader: Cargo | None
    ) -> Cargo:
        """Return what is written of a leaf; of a strange tie each buffer by itself."""
        cargo = targets.cargo(i, ts, len(self.legs[i].lanes))
        if leader is None or i not in self.strange:
            return cargo
        turn = self._turn(self.leaders[i], i)
        return cargo._replace(finish=partial(_filled, cargo.leaf, leader.leaf, turn))

    def _requires_grad(self, i: int, leaf: Leaf) -> bool:
        claim = self.strange.get(i)
        own = getattr(leaf, "requires_grad", False)
        return own if claim is None else claim.requires_grad

    def _device(self, i: int) -> torch.device:
        """Return where a leaf is made that comes from a set of other ranks."""
        kind = self.strange[i].home
        if kind == "cpu":
            return torch.device(kind)
        return torch.device(kind, torch.accelerator.current_device_index())

    def _cargo_inside(
        self,
        i: int,
        leaf: Leaf,
        sources: Sequence[Sequence[Tensor]],
        leader: Cargo | None,
    ) -> Cargo:
        """Return what to read and where to write of a leaf over several tensors."""
        new = ts = self.origin.tensors(i, leaf)
        if leader is not None and leader.targets:
            new = [t for lane in leader.targets for t in lane]
        elif sources:
            new = _blanks(self.given[i], ts)
        targets = per_lane(new, len(sources)) if sources else []
        if self.me not in self.receivers[i]:
            return Cargo(self.forms[i], sources, targets)
        return Cargo(leaf, sources, targets, partial(_made_whole, leaf, new))


def _made_whole(leaf: Leaf, ts: Sequence[Tensor]) -> Leaf:
    """Return the leaf over these tensors, which are those of the whole."""
    makeup = handler_of(leaf).whole(leaf)
    assert makeup is not None
    handler = find_handler(makeup.kind)
    assert handler is not None
    return handler.unflatten(makeup.aux, ts)


def _blanks(form: Abstract, ts: Sequence[Tensor]) -> list[Tensor]:
    """Return an unfilled tensor for each local tensor of the whole."""
    return [
        torch.empty(shape, dtype=dtype, device=t.device)
        for (shape, dtype), t in zip(wholes_of(form), ts, strict=True)
    ]


def _filled(buffer: Leaf, other: Leaf, turn: Turn) -> Leaf:
    """Return a buffer with the data of another, its dimensions in another order."""
    if buffer is not other:
        buffer.copy_(other.permute(turn))
    return buffer


def _check_goes(path: Path, claim: Claim, receivers: Sequence[int]) -> None:
    """Raise ``LayoutError`` if a leaf over several tensors is to leave its own ranks.

    What it is beside these, other ranks do not know.
    """
    outside = [rank for rank in receivers if rank not in claim.ranks]
    if outside and claim.source is not None and claim.source.parts is not None:
        raise LayoutError(
            f"{where(path)}: a leaf over {claim.source.parts.kind.__name__} is to go "
            f"to the ranks {outside}, and its own are {claim.ranks}; choose among "
            "these, with a function say: ranks=lambda path: ..."
        )


def _result(form: Abstract) -> Leaf:
    """Return what becomes of a leaf, without its data."""
    if form.layout is None or form.dtype is None:
        return form
    parts = form.layout.parts
    if parts is None:
        return Abstract.dense(form.shape, form.dtype)
    held = [Local(shape, dense_strides(shape), t) for shape, t in wholes_of(form)]
    return Abstract(parts.kind, form.shape, form.dtype, tuple(held))
