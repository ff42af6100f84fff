"""Gathering: the deal by which sharded leaves become whole on the ranks chosen."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from heapq import heapreplace
from typing import Any, Literal

import torch
from torch import Tensor

from sdtree.agree import canonical
from sdtree.arena import dense_strides
from sdtree.deals import Cargo, Lane, Leg, Origin, per_lane
from sdtree.errors import LayoutError, Mismatch, SpecMismatch
from sdtree.filling import Targets
from sdtree.joint import (
    blank,
    by_form,
    cargo_of,
    check_data,
    checked_layout,
    groups_of,
    identity_of,
    is_blind,
    junk_like,
    kinds_of_wire,
    layouts_of,
    leaders_of,
    marked,
    me_in,
    nbytes_of,
    once,
    own_part,
    told_by,
    wholes_of,
)
from sdtree.kinds.abstract import Abstract, Local
from sdtree.layout import Layout, whole
from sdtree.leaf import arrived, find_handler, handler_of
from sdtree.manifest import has_no_makeup
from sdtree.path import where
from sdtree.routes import is_whole, settled
from sdtree.treespec import TreeSpec
from sdtree.twins import Turn, Twins, turn_between, twins_of, unseen
from sdtree.typing import Leaf, Path, Tree
from sdtree.wire import Team

Choice = int | Iterable[int] | None
Ranks = Choice | Literal["balanced"] | Callable[[Path], Choice]


@dataclass(slots=True)
class Gathering:
    """What is gathered, and who gets it; see ``Deal``.

    A leaf that leads a tie is ``carried`` to the receivers of all its members.
    ``twins`` are leaves whose data is one and the same, wherever it is to go.
    """

    origin: Origin
    team: Team | None
    me: int
    ranks: Ranks
    targets: Targets | None
    spec: TreeSpec
    forms: list[Leaf]
    given: Sequence[Abstract]
    receivers: list[tuple[int, ...]]
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

    @classmethod
    def of(
        cls, origin: Origin | None, team: Team | None, ranks: Ranks, into: Tree | None
    ) -> Gathering:
        """Return the deal for the leaves that come to the stage."""
        assert origin is not None, "every rank is a source"
        forms, paths = origin.known(), origin.spec.paths()
        me = me_in(team)
        receivers = _receivers(paths, forms, ranks, team)
        results = by_form(_result, forms)
        deal = cls(
            origin, team, me, ranks, None, origin.spec, results, forms, receivers
        )
        if into is not None:
            mine = [me in chosen for chosen in receivers]
            deal.targets = Targets.of(into, origin.spec, mine)
            deal.consequence = "the buffers of into= are partly written"
        deal.wires = kinds_of_wire(origin.leaves, team)
        deal.legs = deal._all_legs()
        if deal.targets is not None:
            deal.shared = deal._shared_buffers(deal.targets)
        apart = {i for group in deal.shared for i in group}
        shared = (i for i, leg in enumerate(deal.legs) if leg.text and leg.nbytes)
        held = {i: origin.held[i] for i in shared if i not in apart}
        deal.twins = twins_of(held, forms)
        deal.ties = [*deal._ties_seen_by(me), *deal.shared]
        if deal.targets is not None:
            deal.targets.check(results, origin, deal.ties)
        return deal

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
        return once(self._leg, self.given, self.receivers, self.wires)

    def _leg(self, i: int) -> Leg:
        return self.leg_on(i, self.me)

    def ends(self, i: int) -> tuple[int, ...] | None:
        """Return the ranks on which a leaf is to be; see ``Deal``."""
        if self.given[i].layout is not None:
            return self.receivers[i]
        if self.given[i].dtype is None or self.ranks == "balanced":
            return None
        if callable(self.ranks):
            return _asked(self.ranks, self.spec.every_path[i])
        return ranks_in(self.ranks)

    @property
    def report(self) -> Mismatch:
        """Return that nothing is left out; see ``Deal``."""
        return Mismatch()

    def home(self, i: int) -> torch.device | None:
        """Return None: what is gathered stays on its device; see ``Deal``."""
        return None

    def members(self, i: int) -> tuple[int, ...]:
        """Return the ranks that a leaf lies on; see ``Deal``."""
        layout = self.given[i].layout
        return () if layout is None else layout.ranks

    def leg_on(self, i: int, me: int) -> Leg:
        """Return what is to become of a leaf as a rank sees it; see ``Deal``."""
        chosen = self.carried.get(i, self.receivers[i])
        to = "balanced" if self.ranks == "balanced" else f"ranks {chosen}"
        writes = self.targets is not None and me in chosen
        return _leg_of(self.given[i], chosen, to, self.wires[i], me, writes)

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
                    "there are not tied on all ranks; nothing was written to it, give "
                    "each its own"
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
            ranks = layout.ranks
            if ranks not in loads:
                loads[ranks] = [(0, rank) for rank in ranks]
            load, rank = loads[ranks][0]
            heapreplace(loads[ranks], (load + sizes[i], rank))
            self._give(i, (rank,))
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
        ts = self.origin.tensors(i, leaf)
        if lanes and self.origin.is_acted_on:
            check_data(self.spec.every_path[i], ts)
        sources = per_lane(ts, len(lanes)) if lanes else []
        if self.me not in self.carried.get(i, chosen):
            return Cargo(self.forms[i], sources, [()] * len(lanes))
        if self.targets is not None:
            if self.origin.is_acted_on and not has_no_makeup(form):
                self.targets.check_beside(i, leaf)
            return self.targets.cargo(i, ts, len(lanes))
        if form.layout is None:
            return Cargo(arrived(leaf))
        if form.layout.parts is not None:
            return self._cargo_inside(i, leaf, sources, leader)
        if leader is not None and leader.targets:
            [[out]] = leader.targets
            out = out.permute(self._turn(self.leaders[i], i))
            return Cargo(marked(out, leaf), [ts], [[out]])
        if not lanes:
            return Cargo(marked(own_part(form.layout, ts, self.me), leaf))
        out = blanks[id(form)] = blank(form, ts[0].device, blanks.get(id(form)))
        if self.me not in chosen:
            return Cargo(self.forms[i], [ts], [[out]])
        marks = getattr(leaf, "requires_grad", False)
        return Cargo(marked(out, leaf) if marks else out, [ts], [[out]])

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


@lru_cache(maxsize=4096)
def _leg_of(
    form: Abstract, chosen: tuple[int, ...], to: str, wire: str, me: int, writes: bool
) -> Leg:
    """Return what is to become of a leaf of a form, wherever it stands."""
    layout, dtype = form.layout, form.dtype
    if dtype is None:
        return Leg()
    if layout is None:
        here = [Lane.here(t.shape, t.dtype, me) for t in form.tensors if writes]
        return Leg(nbytes_of(form), lanes=tuple(here))
    if me not in layout.ranks:
        return Leg()
    comes = layout.is_partial or not is_whole(layout, chosen)
    lanes = [
        Lane(settled(source), whole(shape, chosen), kind)
        for source, (shape, kind) in zip(
            layouts_of(layout), wholes_of(form), strict=True
        )
    ]
    return Leg(
        nbytes_of(form),
        layout.ranks,
        f"gather to {to} of {told_by(form)} by {wire}",
        layout.is_partial or (comes and len(layout.ranks) > 1),
        layout.is_partial,
        wire,
        tuple(lanes) if comes or writes else (),
        is_blind(layout, me),
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


def _receivers(
    paths: Sequence[Path],
    forms: Sequence[Abstract],
    ranks: Ranks,
    team: Team | None,
) -> list[tuple[int, ...]]:
    """Return for each leaf the ranks on which it is to be whole.

    The same tuple for leaves of one form, unless a function of the path chooses.
    """
    me = me_in(team)

    def receivers(i: int) -> tuple[int, ...]:
        layout = checked_layout(paths[i], forms[i], me)
        return _chosen(paths[i], layout, ranks, team)

    if callable(ranks):
        return [*map(receivers, range(len(forms)))]
    return once(receivers, forms)


def _chosen(
    path: Path, layout: Layout | None, ranks: Ranks, team: Team | None
) -> tuple[int, ...]:
    """Return the ranks on which a leaf is to be whole."""
    me = me_in(team)
    members = (me,) if layout is None else layout.ranks
    if ranks == "balanced":
        return members
    found = _asked(ranks, path) if callable(ranks) else ranks_in(ranks)
    if found is None:
        return members
    group = (0,) if team is None else team.ranks
    outside = [rank for rank in found if rank not in group]
    if outside:
        raise ValueError(
            f"gather: ranks={ranks!r} at {where(path)} names {outside}, which are not "
            f"in the group of {group}; ranks are global"
        )
    if layout is None:
        return found
    strangers = [rank for rank in found if rank not in members]
    if strangers and me in members:
        raise LayoutError(
            f"{where(path)}: to be gathered to the ranks {strangers}, and its own are "
            f"{members}; choose among these, with a function say: "
            "ranks=lambda path: ..."
        )
    return found


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


def _asked(choose: Callable[[Path], Choice], path: Path) -> tuple[int, ...] | None:
    try:
        return ranks_in(choose(path))
    except Exception as error:
        error.add_note(f"in the function given as ranks=, at {where(path)}")
        raise
