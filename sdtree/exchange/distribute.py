"""Delivery: the deal by which leaves take the layouts of another tree."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from sdtree.errors import LayoutError, Mismatch, SpecMismatch
from sdtree.exchange.filling import Targets
from sdtree.exchange.goals import Goals, check_same_ranks, claim_of
from sdtree.exchange.joint import (
    by_form,
    cargo_of,
    check_data,
    check_is_leaf,
    checked_layouts,
    described,
    groups_of,
    is_blind,
    kinds_of_wire,
    layouts_of,
    leaders_of,
    made_like,
    me_in,
    nbytes_of,
    once,
    refuse_partial,
    ties_of,
    wholes_of,
)
from sdtree.exchange.leaf_plan import Cargo, Leg, Origin, per_lane
from sdtree.exchange.legs import exchange_leg, spread_leg
from sdtree.exchange.sets import Claim, Sets
from sdtree.exchange.source import Order, Supply
from sdtree.exchange.twins import unseen
from sdtree.kinds.abstract import Abstract, look_at
from sdtree.kinds.handler import handler_of
from sdtree.layout.layout import Layout, whole
from sdtree.layout.schedule import Lane, only
from sdtree.path import where
from sdtree.tensors.bits import same_bits
from sdtree.tree.spec import TreeSpec, take
from sdtree.typing import Leaf, Path
from sdtree.wire.agreement import Canonical, canonical
from sdtree.wire.collectives import Team


@dataclass(slots=True)
class Delivery:
    """What is brought into the layouts of a tree; see ``Deal``."""

    order: Order
    supply: Supply
    team: Team | None
    me: int
    spec: TreeSpec
    likes: list[Leaf]
    forms: list[Leaf]
    held: list[Sequence[Tensor]]
    layouts: list[Layout | None]
    here: list[bool] = field(default_factory=list[bool])
    targets: Targets | None = None
    wires: list[str] = field(default_factory=list[str])
    legs: list[Leg] = field(default_factory=list[Leg])
    twins: dict[int, tuple[int, Hashable]] = field(
        default_factory=dict[int, tuple[int, Hashable]]
    )
    ties: list[list[int]] = field(default_factory=list[list[int]])
    leaders: dict[int, int] = field(default_factory=dict[int, int])
    fault: Exception | None = None
    consequence: str = "nothing was changed"
    common: str = ""
    others: list[Canonical] = field(default_factory=list[Canonical])
    goals: Goals = field(default_factory=Goals)

    @classmethod
    def of(cls, order: Order, origin: Origin | None, team: Team | None) -> Delivery:
        """Return the deal for what comes to the stage, None off the source."""
        order.check(team)
        likes, spec = take(order.tree)
        me, paths = me_in(team), spec.paths()
        forms, held = look_at(likes, paths.__getitem__)
        layouts = checked_layouts(paths, forms, me)
        supply = Supply.of(order, origin, paths, likes, forms)
        deal = cls(order, supply, team, me, spec, likes, forms, held, layouts)
        deal.here = by_form(deal._is_here, forms)
        deal.wires = kinds_of_wire(likes, team)
        if origin is not None:
            deal._check_sources(origin)
        refuse_partial(paths, layouts)
        if order.src is not None:
            strictness = "strict" if order.strict else "not strict"
            told = ", with a report" if order.reports else ""
            deal.common = f"{order.verb} from rank {order.src}, {strictness}{told}"
            if deal.asks(me) and not (team is None or team.planned):
                supply.take_values()
                supply.telling()
        else:
            supply.check_fit(supply.misfit())
            if order.reports:
                deal.common = f"{order.verb}, with a report"
        deal.legs = deal._all_legs()
        deal.twins = deal._twins()
        deal.ties = deal.ties_on(me)
        if order.is_into:
            deal.consequence = "the leaves of into= are partly written"
            deal._check_into()
        return deal

    # -- does it fit ---------------------------------------------------------------

    def _check_sources(self, origin: Origin) -> None:
        if self.order.moves and self.order.src is None:
            checked_layouts(origin.spec.paths(), origin.known(), self.me)
            return
        for path, given in self.supply.manifest.given.items():
            if given.layout is not None:
                raise LayoutError(
                    f"{where(path)}: {self.order.verb} takes a whole leaf and this one "
                    "is sharded; use sd.redistribute, or sd.gather first"
                )

    @property
    def report(self) -> Mismatch:
        """Return what does not fit, and is allowed; see ``Deal``."""
        return self.supply.report

    def _check_into(self) -> None:
        paths = self.spec.paths()
        held = [
            ts if is_in else () for ts, is_in in zip(self.held, self.here, strict=True)
        ]
        self.targets = Targets(paths, self.likes, self.here, held)
        for i, path in enumerate(paths):
            reason = self.targets.unfit(i)
            if reason:
                raise SpecMismatch(f"into= does not fit at {where(path)}: {reason}")
        supply = self.supply
        origin = supply.origin
        self.targets.check_apart(origin, self.ties)
        if origin is None or origin.is_acted_on:
            return
        for group in self.ties:
            seen = [i for i in group if not is_blind(self.layouts[i], self.me)]
            found = [i for i in seen if supply.places[i] >= 0]
            for i in found[1:]:
                a, b = (origin.held[supply.places[k]] for k in (found[0], i))
                self._check_same(found[0], i, a, b)

    def _is_here(self, form: Abstract) -> bool:
        """Return whether this rank is to have a part of a leaf of a form."""
        here = form.layout is None or self.me in form.layout.ranks
        return here and form.dtype is not None

    def _check_same(
        self, i: int, j: int, a: Sequence[Tensor], b: Sequence[Tensor]
    ) -> None:
        """Raise unless what is to go into one and the same target is equal."""
        if not all(map(same_bits, a, b)):
            names = " and ".join(where(self.supply.paths[k]) for k in (i, j))
            raise SpecMismatch(
                f"into= has one and the same buffer at {names}, and the leaves of the "
                "source differ; nothing was moved to it, give each its own"
            )

    def _twins(self) -> dict[int, tuple[int, Hashable]]:
        """Return, of leaves that are tied here or there, with which they are.

        That is the first such target, and the tie in the source, None if it is free.
        """
        sizes, supply = by_form(nbytes_of, self.forms), self.supply
        held = {i: ts for i, ts in enumerate(self.held) if ts and sizes[i]}
        ties = ties_of(held, lambda _: None)
        first = {i: group[0] for group in ties for i in group}
        is_free = self.order.is_into or self.order.src is not None
        tied = {} if is_free else supply.manifest.tied
        others = (i for i in held if tied and self.spec.every_path[i] in tied)
        return {
            i: (first.get(i, i), None if is_free else supply.tie_of(i))
            for i in sorted({*first, *others})
        }

    def asks(self, me: int) -> bool:
        """Return whether a rank must hear what the source has; see ``Deal``."""
        if self.order.src is None:
            return self.order.reports
        return not self.supply.is_agreed_on(me)

    def ties_on(self, me: int) -> list[list[int]]:
        """Return the targets that a rank would fill as one; see ``Deal``.

        It knows of no ties but those of which it has a part.
        """
        found: dict[int, Hashable] = {}
        for i, (target, source) in self.twins.items():
            layout, given = self.layouts[i], self.supply.given[i]
            if not self.leg_on(i, me).is_blind:
                is_far = given is None or is_blind(given.layout, me)
                seen = None if is_blind(layout, me) else target
                found[i] = seen, None if is_far else source, layout
        return groups_of(found)

    def unseen_ties(self) -> list[list[int]]:
        """Return the leaves that may be tied, for all that is known; see ``Deal``."""
        given = (x and x.layout for x in self.supply.given)
        return unseen(self.me, self.forms, zip(self.layouts, given, strict=True))

    def untied(self) -> list[list[int]]:
        """Return no leaves: they are tied as targets are; see ``Deal``."""
        return []

    # -- the legs ------------------------------------------------------------------

    def _all_legs(self) -> list[Leg]:
        """Return the leg of each leaf, worked out once for those that are alike."""
        goals = [*map(self.goals.at, range(len(self.forms)))]
        return once(self._leg, self.forms, self.supply.given, self.wires, goals)

    def _leg(self, i: int) -> Leg:
        return self.leg_on(i, self.me)

    def ends(self, i: int) -> tuple[int, ...] | None:
        """Return the ranks of the target; see ``Deal``."""
        layout = self.layouts[i]
        return None if layout is None else layout.ranks

    def members(self, i: int) -> tuple[int, ...]:
        """Return the ranks that a leaf goes from or to; see ``Deal``."""
        layout, src, given = self.layouts[i], self.order.src, self.supply.given[i]
        layout = given.layout or layout if given is not None else layout
        if layout is None or src is None:
            return () if layout is None else layout.ranks
        return tuple(sorted({src, *layout.ranks}))

    def leg_on(self, i: int, me: int) -> Leg:
        """Return what is to become of a leaf as a rank sees it; see ``Deal``."""
        form, layout, given = self.forms[i], self.layouts[i], self.supply.given[i]
        if form.dtype is None or (given is None and self.order.src is None):
            return Leg()
        if self.order.src is not None:
            goal = self.goals.layouts.get(i, layout)
            group = self.goals.groups.get(i, self._group)
            how = self.order.verb, form, self.order.src, group, self.wires[i]
            leg = spread_leg(*how, layout, goal)
            if me not in leg.crew:
                return Leg()
            return leg._replace(is_blind=is_blind(layout, me))
        if given is not None and given.layout is not None:
            goal = self.goals.layouts.get(i)
            how = self.order.verb, form, given.layout, layout, goal, self.wires[i]
            return exchange_leg(*how, me)
        if layout is None:
            lanes = [Lane.here(t.shape, t.dtype, me) for t in form.tensors]
            return Leg(nbytes_of(form), lanes=tuple(lanes))
        lanes = [
            Lane(whole(shape, (me,)), only(part, me), dtype)
            for part, (shape, dtype) in zip(
                layouts_of(layout), wholes_of(form), strict=True
            )
        ]
        text = f"{self.order.verb} of {described(form)}"
        return Leg(
            nbytes_of(form),
            layout.ranks,
            text,
            lanes=tuple(lanes),
            is_blind=is_blind(layout, me),
        )

    # -- sets of ranks that do not see each other ----------------------------------

    def seeks(self, ids: Iterable[int], *, of_all: bool = False) -> bool:
        """Return whether leaves go from or to ranks that see others; see ``Deal``."""
        found = ids if self.order.moves else ()
        alike = {(id(self.legs[i]), id(self.forms[i])): i for i in found}
        return any(self._is_open(i, of_all) for i in alike.values())

    def _is_open(self, i: int, of_all: bool) -> bool:
        claim = self._claim(i, of_all)
        if claim is None or claim.target is None:
            return False
        if claim.source is None:
            return self.order.src not in claim.ranks
        return claim.source.ranks != claim.target.ranks

    def _claim(self, i: int, of_all: bool) -> Claim | None:
        """Return what those that see a leaf as this rank does have to do with it."""
        given, target = self.supply.given[i], self.layouts[i]
        source = None if self.order.src is not None or given is None else given.layout
        if source is not None:
            target = target or whole(self.forms[i].shape, source.ranks)
        elif self.order.src is None:
            return None
        me, first = self.me, source or target
        if of_all and first is not None and me not in first.boxes:
            me = first.ranks[0]
        return claim_of(self.forms[i], source, target, self.wires[i], me)

    def claims(
        self, ids: Iterable[int], *, are_apart: bool = False, of_all: bool = False
    ) -> dict[int, Claim]:
        """Return the leaves that lie on some ranks alone; see ``Deal``."""
        group = {*self._group}
        found: dict[int, Claim] = {}
        for i in ids:
            claim = self._claim(i, of_all)
            if claim is not None and {*claim.ranks} != group:
                found[i] = claim
            elif are_apart and self.layouts[i] is None and self.here[i]:
                found[i] = Claim((self.me,), self.forms[i], wire=self.wires[i])
        return found

    @property
    def _group(self) -> tuple[int, ...]:
        return (0,) if self.team is None else self.team.ranks

    def met(self, sets: Sets) -> Delivery:
        """Return the deal with the sets of each leaf united; see ``Deal``."""
        for key, path in sets.paths():
            check_same_ranks(path, sets.claims[key])
        keys = [*map(canonical, self.spec.every_path)]
        if self.me == self.order.src:
            known = {*keys}
            more = {key: path for key, path in sets.paths() if key not in known}
            self._send_also([*more.values()], [sets.claims[key][0] for key in more])
            self.others = [*more]
        for i, key in enumerate([*keys, *self.others]):
            if key in sets:
                is_sharded = self.order.src is None or self.layouts[i] is not None
                here = self.forms[i], is_sharded, self.me
                self.goals.unite(i, self.supply.paths[i], sets, *here)
        self.legs = self._all_legs()
        return self

    def _send_also(self, paths: Sequence[Path], claims: Sequence[Claim]) -> None:
        """Take on leaves that other ranks are to have, and the source is not."""
        forms = [replace(x.form, layout=x.target) for x in claims]
        self.likes, self.forms = [*self.likes, *forms], [*self.forms, *forms]
        self.layouts = [*self.layouts, *(claim.target for claim in claims)]
        self.held = [*self.held, *([()] * len(forms))]
        self.here = [*self.here, *([False] * len(forms))]
        self.wires = [*self.wires, *(claim.wire for claim in claims)]
        self.supply.add(paths, forms)

    def bond(self, i: int, sets: Sets) -> Hashable:
        """Return the tie that all sets see a leaf in; see ``Deal``.

        A set that keeps the leaf to itself sees it alone.
        """
        key = canonical(self.supply.paths[i])
        claims, own = sets.claims[key], sets.at(key, self.me)
        if own is not None and own.source and own.target:
            claims = [own] if own.source.ranks == own.target.ranks else claims
        if not all(claim.tie for claim in claims):
            return i
        return str([(claim.ranks, claim.tie) for claim in claims])

    # -- after the agreement -------------------------------------------------------

    def open(
        self, ids: Sequence[int], ties: Sequence[Sequence[int]], asked: bool
    ) -> None:
        """Hear what the source has, if it is not here; see ``Deal``."""
        src, supply = self.order.src, self.supply
        if src is not None:
            if self.team is None or not self.team.others:
                supply.check_fit(supply.misfit())
            elif asked:
                supply.hear(self.team, src)
            else:
                supply.take_as_agreed()
            for i in ids:
                if supply.given[i] is None:
                    self.legs[i] = Leg()
        elif self.order.reports and self.team is not None and self.team.others:
            supply.report = supply.misfits(self.team)
        self.leaders = leaders_of(self._filled_as_one(ties))
        if self.targets is not None:
            self._check_shared(ids)

    def _check_shared(self, ids: Sequence[int]) -> None:
        """Note a fault if one buffer here is not one on all ranks.

        Its leaves come one after the other, and may differ.
        """
        for group in self.ties:
            found = [
                i
                for i in group
                if i in ids
                and self.supply.given[i] is not None
                and not is_blind(self.layouts[i], self.me)
            ]
            if len({self.leaders.get(i, i) for i in found}) > 1:
                names = " and ".join(where(self.spec.every_path[i]) for i in found)
                self.fault = SpecMismatch(
                    f"into= has one and the same buffer at {names}, and other ranks "
                    "have one for each; nothing was written to it, give each its own"
                )

    def check_data(self, ids: Sequence[int]) -> None:
        """Raise if sources have no data, or targets are no leaves; see ``Deal``."""
        origin, paths = self.supply.origin, self.supply.paths
        for i in ids:
            if i < len(self.spec):
                check_is_leaf(paths[i], self.likes[i], self.forms[i])
            place = self.supply.places[i]
            if origin is not None and not origin.is_acted_on and place >= 0:
                check_data(paths[i], origin.held[place] if self.legs[i].lanes else ())

    def openings(self) -> list[tuple[str, int]]:
        """Return how the ranks hear what the source has; see ``Deal``."""
        hears = self.order.src is not None or self.order.reports
        return self.supply.hearings() if hears else []

    def _filled_as_one(self, ties: Sequence[Sequence[int]]) -> Iterator[Sequence[int]]:
        """Yield the parts of ties of targets that are filled once.

        New ones are if their sources are tied; given ones are in any case one.
        """
        supply = self.supply
        asks = self.order.src is not None and not self.order.is_into
        for group in ties:
            found = [i for i in group if supply.given[i] is not None]
            yield from groups_of({i: supply.tie_of(i) if asks else 0 for i in found})

    # -- window by window ----------------------------------------------------------

    def pull(self, ids: Sequence[int]) -> Sequence[Leaf]:
        """Return the leaves of the source, None where it has none; see ``Deal``."""
        return self.supply.pull(ids)

    def reduce(self, i: int, leaf: Leaf | None) -> Leaf:
        """Return a leaf without terms to reduce; see ``Deal``."""
        found = self.supply.junk(i) if leaf is None else leaf
        return handler_of(found).reduced(found)

    def load(self, ids: Sequence[int], leaves: Sequence[Leaf]) -> Sequence[Cargo]:
        """Return what to read and where to write; see ``Deal``."""
        paths = self.supply.paths
        return cargo_of(ids, leaves, self.leaders, paths, self._cargo)

    def _cargo(self, i: int, leaf: Leaf, leader: Cargo | None) -> Cargo:
        lanes, like, given = self.legs[i].lanes, self.likes[i], self.supply.given[i]
        if given is not None and self.forms[i].dtype is None:
            return Cargo(self.supply.value(i, leaf))
        if given is None or not lanes:
            return Cargo(like)
        count, ts = len(lanes), self.supply.tensors(i, leaf)
        sources = per_lane(ts, count) if ts else [()] * count
        goes = self.order.src is not None or not is_blind(self.layouts[i], self.me)
        if self.targets is not None and leader is not None and ts and goes:
            every = (chain.from_iterable(x) for x in (leader.sources, sources))
            self._check_same(self.leaders[i], i, *map(list, every))
        if not self.here[i]:
            return Cargo(like, sources, [()] * count)
        if self.targets is not None:
            return Cargo(like, sources, per_lane(self.targets.tensors[i], count))
        old, aux = handler_of(like).flatten(like)
        if leader is None:
            new = [made_like(t, self._home(i, t, ts)) for t in old]
        else:
            new = [t for lane in leader.targets for t in lane]
        aux = self.supply.aux(i, leaf, aux)
        finish = partial(handler_of(like).unflatten, aux, new)
        return Cargo(like, sources, per_lane(new, count), finish)

    def _home(self, i: int, t: Tensor, sources: Sequence[Tensor]) -> torch.device:
        """Return where a new local tensor is made: where its target is, if not meta."""
        if self.order.device is None and not t.is_meta:
            return t.device
        found = self.home(i)
        if found is not None:
            return found
        if sources:
            return sources[0].device
        return torch.device("cpu") if self.team is None else self.team.device()

    def stays(self, i: int) -> Sequence[Tensor]:
        """Return the tensors of a target; see ``Deal``."""
        return self.held[i]

    def home(self, i: int) -> torch.device | None:
        """Return where a leaf is made anew, if the target tells; see ``Deal``."""
        if self.order.device is not None:
            return self.order.device
        found = next((t.device for t in self.held[i] if not t.is_meta), None)
        mesh = getattr(self.likes[i], "device_mesh", None)
        return torch.device(mesh.device_type) if found is None and mesh else found
