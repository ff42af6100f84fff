"""Delivery: the deal by which leaves take the layouts of another tree."""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from sdtree.errors import LayoutError, Mismatch, SpecMismatch
from sdtree.exchange.checks import (
    check_data,
    check_is_leaf,
    checked_layouts,
    refuse_partial,
)
from sdtree.exchange.filling import Targets
from sdtree.exchange.goals import Goals, check_same_ranks
from sdtree.exchange.leaf_plan import (
    LeafBuffers,
    LeafPlan,
    StageInput,
    made_like,
    per_transfer,
)
from sdtree.exchange.sets import Claim, Sets, bond_of
from sdtree.exchange.source import DistributeOptions, Source
from sdtree.exchange.transfer_plan import TransferPlan
from sdtree.exchange.twins import groups_of, ties_of, unseen
from sdtree.kinds.abstract import by_form, look_at, nbytes_of, once
from sdtree.kinds.handler import handler_of
from sdtree.layout.schedule import is_blind
from sdtree.path import where
from sdtree.tensors.bits import same_bits
from sdtree.tree.spec import take
from sdtree.typing import Leaf, Path
from sdtree.wire.agreement import canonical
from sdtree.wire.collectives import RankGroup


@dataclass(slots=True)
class Delivery:
    """What is brought into the layouts of a tree; see ``Deal``.

    ``held`` are the local tensors of the targets; ``twins`` tell of targets that are
    tied, here or in the source, with which they are.
    """

    plan: TransferPlan
    order: DistributeOptions
    source: Source
    goals: Goals
    likes: list[Leaf]
    held: list[Sequence[Tensor]]
    twins: dict[int, tuple[int, Hashable]] = field(
        default_factory=dict[int, tuple[int, Hashable]]
    )

    @classmethod
    def of(
        cls,
        order: DistributeOptions,
        stage_input: StageInput | None,
        rank_group: RankGroup,
    ) -> Delivery:
        """Return the deal for what comes to the stage, None off the source."""
        order.check(rank_group)
        likes, spec = take(order.tree)
        me, paths = rank_group.me, spec.paths()
        forms, held = look_at(likes, paths.__getitem__)
        layouts = checked_layouts(paths, forms, me)
        source = Source.of(order, stage_input, paths, likes, forms)
        goals = Goals.of(order, source, rank_group, likes, forms, layouts)
        plan = TransferPlan(rank_group, me, spec, forms)
        deal = cls(plan, order, source, goals, likes, held)
        if stage_input is not None:
            deal._check_sources(stage_input)
        refuse_partial(paths, layouts)
        deal._check_fit()
        plan.leaf_plans = deal._all_leaf_plans()
        deal.twins = deal._twins()
        plan.ties = deal.ties_on(me)
        if order.is_into:
            plan.consequence = "the leaves of into= are partly written"
            deal._check_into()
        return deal

    # -- does it fit ---------------------------------------------------------------

    def _check_sources(self, stage_input: StageInput) -> None:
        if self.order.moves and self.order.src is None:
            checked_layouts(stage_input.spec.paths(), stage_input.known(), self.plan.me)
            return
        for path, given in self.source.metadata.given.items():
            if given.layout is not None:
                raise LayoutError(
                    f"{where(path)}: {self.order.verb} takes a whole leaf and this one "
                    "is sharded; use sd.redistribute, or sd.gather first"
                )

    def _check_fit(self) -> None:
        """See that the source fits, or find out what others are to be told of it."""
        order, plan, source = self.order, self.plan, self.source
        if order.src is None:
            source.check_fit(source.misfit())
            if order.reports:
                plan.common = f"{order.verb}, with a report"
            return
        strictness = "strict" if order.strict else "not strict"
        told = ", with a report" if order.reports else ""
        plan.common = f"{order.verb} from rank {order.src}, {strictness}{told}"
        if plan.has_others and self.asks(plan.me):
            source.take_values()
            source.telling()

    @property
    def report(self) -> Mismatch:
        """Return what does not fit, and is allowed; see ``Deal``."""
        return self.source.report

    def _check_into(self) -> None:
        held = [
            ts if is_in else ()
            for ts, is_in in zip(self.held, self.goals.here, strict=True)
        ]
        source, ties, me = self.source, self.plan.ties, self.plan.me
        self.plan.targets = Targets(source.paths, self.likes, self.goals.here, held)
        self.plan.targets.check_each()
        stage_input = source.stage_input
        self.plan.targets.check_apart(stage_input, ties)
        if stage_input is None or stage_input.is_acted_on:
            return
        for group in ties:
            seen = [i for i in group if not is_blind(self.goals.at[i], me)]
            found = [i for i in seen if source.places[i] >= 0]
            for i in found[1:]:
                a, b = (stage_input.held[source.places[k]] for k in (found[0], i))
                self._check_same(found[0], i, a, b)

    def _check_same(
        self, i: int, j: int, a: Sequence[Tensor], b: Sequence[Tensor]
    ) -> None:
        """Raise unless what is to go into one and the same target is equal.

        Parts that are equal on each rank are of one whole if they lie in it alike.
        """
        one, other = (self.source.given[k] for k in (i, j))
        lie_alike = (one and one.layout) == (other and other.layout)
        if not (lie_alike and all(map(same_bits, a, b))):
            names = " and ".join(where(self.source.paths[k]) for k in (i, j))
            raise SpecMismatch(
                f"into= has one and the same buffer at {names}, and the leaves of the "
                "source differ; nothing was moved to it, give each its own"
            )

    def _twins(self) -> dict[int, tuple[int, Hashable]]:
        """Return, of leaves that are tied here or there, with which they are.

        That is the first such target, and the tie in the source, None if it is free.
        """
        sizes, source = by_form(nbytes_of, self.plan.forms), self.source
        held = {i: ts for i, ts in enumerate(self.held) if ts and sizes[i]}
        ties = ties_of(held, lambda _: None)
        first = {i: group[0] for group in ties for i in group}
        is_free = self.order.is_into or self.order.src is not None
        tied = {} if is_free else source.metadata.tied
        others = (i for i in held if tied and source.paths[i] in tied)
        return {
            i: (first.get(i, i), None if is_free else source.tie_of(i))
            for i in sorted({*first, *others})
        }

    def asks(self, me: int) -> bool:
        """Return whether a rank must hear what the source has; see ``Deal``."""
        if self.order.src is None:
            return self.order.reports
        return not self.source.is_agreed_on(me)

    def ties_on(self, me: int) -> list[list[int]]:
        """Return the targets that a rank would fill as one; see ``Deal``.

        It knows of no ties but those of which it has a part.
        """
        found: dict[int, Hashable] = {}
        for i, (target, source) in self.twins.items():
            layout, given = self.goals.at[i], self.source.given[i]
            if not self.leaf_plan_on(i, me).is_blind:
                is_far = given is None or is_blind(given.layout, me)
                seen = None if is_blind(layout, me) else target
                found[i] = seen, None if is_far else source, layout
        return groups_of(found)

    def unseen_ties(self) -> list[list[int]]:
        """Return the leaves that may be tied, for all that is known; see ``Deal``."""
        given = (x and x.layout for x in self.source.given)
        return unseen(
            self.plan.me, self.goals.forms, zip(self.goals.at, given, strict=True)
        )

    def untied(self) -> list[list[int]]:
        """Return no leaves: they are tied as targets are; see ``Deal``."""
        return []

    # -- the plans of leaves -----------------------------------------------------------

    def _all_leaf_plans(self) -> list[LeafPlan]:
        """Return the plan of each leaf, worked out once for those that are alike."""
        goals = self.goals
        known = [*map(goals.known_of, range(len(goals.forms)))]
        return once(self._leaf_plan, goals.forms, self.source.given, goals.wires, known)

    def _leaf_plan(self, i: int) -> LeafPlan:
        return self.goals.leaf_plan(i, self.plan.me)

    def leaf_plan_on(self, i: int, me: int) -> LeafPlan:
        """Return what is to become of a leaf as a rank sees it; see ``Deal``."""
        return self.goals.leaf_plan(i, me)

    def ends(self, i: int) -> tuple[int, ...] | None:
        """Return the ranks of the target; see ``Deal``."""
        layout = self.goals.at[i]
        return None if layout is None else layout.ranks

    def members(self, i: int) -> tuple[int, ...]:
        """Return the ranks that a leaf goes from or to; see ``Deal``."""
        return self.goals.members(i)

    # -- sets of ranks that do not see each other ----------------------------------

    def seeks(self, ids: Iterable[int], *, of_all: bool = False) -> bool:
        """Return whether leaves go from or to ranks that see others; see ``Deal``."""
        found = ids if self.order.moves else ()
        alike = self.plan.one_of_each(found, self.goals.forms)
        return any(self.goals.is_open(i, of_all=of_all) for i in alike)

    def claims(
        self, ids: Iterable[int], *, are_apart: bool = False, of_all: bool = False
    ) -> dict[int, Claim]:
        """Return the leaves that lie on some ranks alone; see ``Deal``."""
        return self.goals.claims(ids, are_apart=are_apart, of_all=of_all)

    def met(self, sets: Sets) -> Delivery:
        """Return the deal with the sets of each leaf united; see ``Deal``."""
        for key, path in sets.paths():
            check_same_ranks(path, sets.claims[key])
        plan = self.plan
        keys = [*map(canonical, plan.spec.every_path)]
        if plan.me == self.order.src:
            known = {*keys}
            more = {key: path for key, path in sets.paths() if key not in known}
            self._send_also([*more.values()], [sets.claims[key][0] for key in more])
            plan.others = [*more]
        for i, key in enumerate([*keys, *plan.others]):
            if key in sets:
                self.goals.unite(i, sets)
        plan.leaf_plans = self._all_leaf_plans()
        return self

    def _send_also(self, paths: Sequence[Path], claims: Sequence[Claim]) -> None:
        """Take on leaves that other ranks are to have, and the source is not."""
        forms = self.goals.add(claims)
        self.likes, self.plan.forms = [*self.likes, *forms], self.goals.forms
        self.held = [*self.held, *([()] * len(forms))]
        self.source.add(paths, forms)

    def bond(self, i: int, sets: Sets) -> Hashable:
        """Return the tie that all sets see a leaf in; see ``Deal``.

        A set that keeps the leaf to itself sees it alone.
        """
        key = canonical(self.source.paths[i])
        claims, own = sets.claims[key], sets.at(key, self.plan.me)
        if own is not None and own.source and own.target:
            claims = [own] if own.source.ranks == own.target.ranks else claims
        return bond_of(i, claims)

    # -- after the agreement -------------------------------------------------------

    def open(
        self, ids: Sequence[int], ties: Sequence[Sequence[int]], asked: bool
    ) -> None:
        """Hear what the source has, if it is not here; see ``Deal``."""
        plan, src, source = self.plan, self.order.src, self.source
        if src is not None:
            if not plan.has_others:
                source.check_fit(source.misfit())
            elif asked:
                source.hear(plan.rank_group, src)
            else:
                source.take_as_agreed()
            for i in ids:
                if source.given[i] is None:
                    plan.leaf_plans[i] = LeafPlan()
        elif self.order.reports and plan.has_others:
            source.report = source.misfits(plan.rank_group)
        shared = self._shared_by({*ids}) if plan.targets is not None else ()
        plan.lead(self._filled_as_one(ties), shared, "other ranks have one for each")

    def _shared_by(self, ids: Container[int]) -> Iterator[Sequence[int]]:
        """Yield of some leaves those that go into one buffer here.

        They come one after the other, and may differ.
        """
        given, me = self.source.given, self.plan.me
        for group in self.plan.ties:
            found = [i for i in group if i in ids and given[i] is not None]
            yield [i for i in found if not is_blind(self.goals.at[i], me)]

    def check_data(self, ids: Sequence[int]) -> None:
        """Raise if sources have no data, or targets are no leaves; see ``Deal``."""
        stage_input, paths = self.source.stage_input, self.source.paths
        leaf_plans = self.plan.leaf_plans
        for i in ids:
            if i < len(self.plan.spec):
                check_is_leaf(paths[i], self.likes[i], self.plan.forms[i])
            place = self.source.places[i]
            if stage_input is not None and not stage_input.is_acted_on and place >= 0:
                check_data(
                    paths[i], stage_input.held[place] if leaf_plans[i].transfers else ()
                )

    def openings(self) -> list[tuple[str, int]]:
        """Return how the ranks hear what the source has; see ``Deal``."""
        hears = self.order.src is not None or self.order.reports
        return self.source.hearings() if hears else []

    def _filled_as_one(self, ties: Sequence[Sequence[int]]) -> Iterator[Sequence[int]]:
        """Yield the parts of ties of targets that are filled once.

        New ones are if their sources are tied; given ones are in any case one.
        """
        source = self.source
        asks = self.order.src is not None and not self.order.is_into
        for group in ties:
            found = [i for i in group if source.given[i] is not None]
            yield from groups_of({i: source.tie_of(i) if asks else 0 for i in found})

    # -- window by window ----------------------------------------------------------

    def pull(self, ids: Sequence[int]) -> Sequence[Leaf]:
        """Return the leaves of the source, None where it has none; see ``Deal``."""
        return self.source.pull(ids)

    def reduce(self, i: int, leaf: Leaf | None) -> Leaf:
        """Return a leaf without terms to reduce; see ``Deal``."""
        found = self.source.junk(i) if leaf is None else leaf
        return handler_of(found).reduced(found)

    def load(self, ids: Sequence[int], leaves: Sequence[Leaf]) -> Sequence[LeafBuffers]:
        """Return what to read and where to write; see ``Deal``."""
        return self.plan.load(ids, leaves, self.source.paths, self._buffers)

    def _buffers(self, i: int, leaf: Leaf, leader: LeafBuffers | None) -> LeafBuffers:
        plan, like, given = self.plan, self.likes[i], self.source.given[i]
        transfers = plan.leaf_plans[i].transfers
        if given is not None and plan.forms[i].dtype is None:
            return LeafBuffers(self.source.value(i, leaf))
        if given is None or not transfers:
            return LeafBuffers(like)
        count, ts = len(transfers), self.source.tensors(i, leaf)
        sources = per_transfer(ts, count) if ts else [()] * count
        goes = self.order.src is not None or not is_blind(self.goals.at[i], plan.me)
        if plan.targets is not None and leader is not None and ts and goes:
            every = (chain.from_iterable(x) for x in (leader.sources, sources))
            self._check_same(plan.leaders[i], i, *map(list, every))
        if not self.goals.here[i]:
            return LeafBuffers(like, sources, [()] * count)
        if plan.targets is not None:
            return LeafBuffers(
                like, sources, per_transfer(plan.targets.tensors[i], count)
            )
        return self._made(i, leaf, ts, sources, leader)

    def _made(
        self,
        i: int,
        leaf: Leaf,
        ts: Sequence[Tensor],
        sources: Sequence[Sequence[Tensor]],
        leader: LeafBuffers | None,
    ) -> LeafBuffers:
        """Return what is made anew of a leaf that comes from these tensors."""
        like = self.likes[i]
        old, aux = handler_of(like).flatten(like)
        if leader is None:
            new = [made_like(t, self._home(i, t, ts)) for t in old]
        else:
            new = [t for transfer in leader.targets for t in transfer]
        finish = partial(handler_of(like).unflatten, self.source.aux(i, leaf, aux), new)
        return LeafBuffers(like, sources, per_transfer(new, len(sources)), finish)

    def _home(self, i: int, t: Tensor, sources: Sequence[Tensor]) -> torch.device:
        """Return where a new local tensor is made: where its target is, if not meta."""
        if self.order.device is None and not t.is_meta:
            return t.device
        found = self.home(i)
        if found is not None:
            return found
        if sources:
            return sources[0].device
        return self.plan.rank_group.device()

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
