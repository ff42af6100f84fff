"""Gathering: the deal by which sharded leaves become whole on the ranks chosen."""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from sdtree.errors import Mismatch, SpecMismatch
from sdtree.exchange.checks import check_data
from sdtree.exchange.filling import Targets
from sdtree.exchange.leaf_plan import (
    LeafBuffers,
    LeafPlan,
    StageInput,
    blank,
    blank_parts,
    filled,
    junk_like,
    made_whole,
    marked,
    own_part,
    per_transfer,
)
from sdtree.exchange.metadata import has_no_makeup
from sdtree.exchange.receivers import Ranks, Receivers
from sdtree.exchange.sets import Claim, Sets, stage_input_with
from sdtree.exchange.transfer_plan import TransferPlan
from sdtree.exchange.twins import Turn, Twins, groups_of, turn_between, twins_of, unseen
from sdtree.kinds.abstract import Abstract, Local, by_form, once, wholes_of
from sdtree.kinds.handler import arrived, handler_of
from sdtree.tensors.storage import dense_strides, identity_of
from sdtree.typing import Leaf, Tree
from sdtree.wire.collectives import RankGroup


@dataclass(slots=True)
class Gathering:
    """What is gathered, and who gets it; see ``Deal``.

    ``twins`` are leaves whose data is one and the same, wherever it is to go;
    ``shared`` those that go into one buffer here, and of which nothing is here. It
    ``lacks`` leaves if there are buffers for more.
    """

    plan: TransferPlan
    stage_input: StageInput
    into: Tree | None
    receivers: Receivers
    lacks: bool = False
    twins: Twins = field(default_factory=lambda: Twins([], []))
    shared: list[list[int]] = field(default_factory=list[list[int]])

    @classmethod
    def of(
        cls,
        stage_input: StageInput | None,
        rank_group: RankGroup,
        ranks: Ranks,
        into: Tree | None,
        sets: Sets | None = None,
    ) -> Gathering:
        """Return the deal for the leaves that come to the stage."""
        assert stage_input is not None, "every rank is a source"
        receivers = Receivers.of(stage_input, ranks, rank_group)
        results = by_form(_result, stage_input.known())
        plan = TransferPlan(rank_group, rank_group.me, stage_input.spec, results)
        deal = cls(plan, stage_input, into, receivers)
        if sets is not None:
            receivers.follow(sets)
        if into is not None:
            deal._take_buffers(into, is_last=sets is not None)
        plan.leaf_plans = deal._all_leaf_plans()
        if plan.targets is not None:
            deal.shared = deal._shared_buffers(plan.targets)
        deal.twins = deal._twins()
        plan.ties = [*deal._ties_seen_by(plan.me), *deal.shared]
        if sets is not None:
            plan.ties += groups_of({i: deal.bond(i, sets) for i in receivers.strange})
        if plan.targets is not None:
            plan.targets.check(results, stage_input, plan.ties)
        return deal

    @property
    def given(self) -> Sequence[Abstract]:
        """Return what the leaves are before they are gathered."""
        return self.receivers.given

    def _take_buffers(self, into: Tree, *, is_last: bool) -> None:
        """Have the leaves written into buffers, for which others may yet come."""
        plan = self.plan
        mine = [plan.me in chosen for chosen in self.receivers.at]
        try:
            plan.targets = Targets.of(into, plan.spec, mine)
        except SpecMismatch:
            self.lacks = plan.has_others and not is_last
            if not self.lacks:
                raise
        plan.consequence = "the buffers of into= are partly written"

    def _twins(self) -> Twins:
        """Return the twins among the leaves that travel, of what is here."""
        leaf_plans = self.plan.leaf_plans
        apart = {i for group in self.shared for i in group}
        apart |= self.receivers.strange.keys()
        travel = (
            i
            for i, leaf_plan in enumerate(leaf_plans)
            if leaf_plan.text and leaf_plan.nbytes
        )
        held = {i: self.stage_input.held[i] for i in travel if i not in apart}
        return twins_of(held, self.given)

    def asks(self, me: int) -> bool:
        """Return False: all is known; see ``Deal``."""
        return False

    def ties_on(self, me: int) -> list[list[int]]:
        """Return the ties that a rank sees, for all that is known; see ``Deal``."""
        return self.plan.ties if me == self.plan.me else self._ties_seen_by(me)

    def _ties_seen_by(self, me: int) -> list[list[int]]:
        """Return the twins that are gathered once for all of them.

        Where a rank is given buffers these must be one, or each has its own to fill.
        """
        targets = self.plan.targets
        if targets is None:
            return self.twins.tied

        def goal(i: int, first: int) -> Hashable:
            chosen = self.receivers.at[i]
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
        me = self.plan.me
        found = unseen(me, self.given, ((form.layout,) for form in self.given))
        if self.plan.targets is None:
            return found
        receives = [me in chosen for chosen in self.receivers.at]
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
                for i, leaf_plan in enumerate(self.plan.leaf_plans)
                if leaf_plan.is_blind and leaf_plan.nbytes and targets.wanted[i]
            }
        )

    def untied(self) -> list[list[int]]:
        """Return the leaves whose wholes could not share memory; see ``Deal``."""
        leaf_plans = self.plan.leaf_plans
        moved = ([i for i in g if leaf_plans[i].transfers] for g in self.twins.apart)
        return [group for group in moved if group[1:]]

    def _all_leaf_plans(self) -> list[LeafPlan]:
        """Return the plan of each leaf, worked out once for those that are alike."""
        to = self.receivers
        return once(self._leaf_plan, to.given, to.chosen, to.at, to.wires)

    def _leaf_plan(self, i: int) -> LeafPlan:
        return self.leaf_plan_on(i, self.plan.me)

    def leaf_plan_on(self, i: int, me: int) -> LeafPlan:
        """Return what is to become of a leaf as a rank sees it; see ``Deal``."""
        return self.receivers.leaf_plan(i, me, writes=self.plan.targets is not None)

    def ends(self, i: int) -> tuple[int, ...] | None:
        """Return the ranks on which a leaf is to be; see ``Deal``."""
        return self.receivers.ends(i)

    def members(self, i: int) -> tuple[int, ...]:
        """Return the ranks that a leaf lies on; see ``Deal``."""
        return self.receivers.members(i)

    def home(self, i: int) -> torch.device | None:
        """Return None: what is gathered stays on its device; see ``Deal``."""
        return None

    @property
    def report(self) -> Mismatch:
        """Return that nothing is left out; see ``Deal``."""
        return Mismatch()

    def stays(self, i: int) -> Sequence[Tensor]:
        """Return the tensors of a leaf, and those of its buffer; see ``Deal``."""
        targets = self.plan.targets
        into = () if targets is None else targets.tensors[i]
        return [*self.stage_input.held[i], *into]

    # -- sets of ranks that do not see each other ----------------------------------

    def seeks(self, ids: Iterable[int], *, of_all: bool = False) -> bool:
        """Return whether leaves go to ranks that are not their own; see ``Deal``."""
        alike = self.plan.one_of_each(ids, self.given)
        return self.lacks or any(
            self.receivers.is_open(i, of_all=of_all) for i in alike
        )

    def claims(
        self, ids: Iterable[int], *, are_apart: bool = False, of_all: bool = False
    ) -> dict[int, Claim]:
        """Return the leaves that lie on some ranks alone; see ``Deal``."""
        return self.receivers.claims(ids, self.stage_input.leaves, of_all=of_all)

    def met(self, sets: Sets) -> Gathering:
        """Return the deal with the leaves that come from other sets; see ``Deal``."""
        plan = self.plan
        stage_input = stage_input_with(self.stage_input, sets, plan.me)
        return Gathering.of(
            stage_input, plan.rank_group, self.receivers.ranks, self.into, sets
        )

    def bond(self, i: int, sets: Sets) -> Hashable:
        """Return the tie of a leaf in the set that it comes from; see ``Deal``."""
        return self.receivers.bond(i, sets)

    # -- after the agreement -------------------------------------------------------

    def open(
        self, ids: Sequence[int], ties: Sequence[Sequence[int]], asked: bool
    ) -> None:
        """Choose the ranks that are to be balanced; see ``Deal``."""
        plan = self.plan
        shared = () if plan.targets is None else self._shared_by({*ids}, plan.targets)
        plan.lead(
            ties,
            shared,
            "the leaves there are not tied on all ranks, or go to other ranks each",
        )
        if self.receivers.ranks == "balanced":
            for i in self.receivers.balance(ids, plan.leaders):
                plan.leaf_plans[i] = self._leaf_plan(i)
        for leader, *others in ties:
            if self.receivers.carry(leader, others):
                plan.leaf_plans[leader] = self._leaf_plan(leader)

    def _shared_by(
        self, ids: Container[int], targets: Targets
    ) -> Iterator[Sequence[int]]:
        """Yield of some leaves those that go into one buffer here."""
        for group in (*self.shared, *self.plan.ties):
            yield [i for i in group if i in ids and targets.wanted[i]]

    def check_data(self, ids: Sequence[int]) -> None:
        """Raise if leaves that are wanted have no data; see ``Deal``."""
        if not self.stage_input.is_acted_on:
            for i in ids:
                if self.plan.leaf_plans[i].transfers:
                    check_data(self.plan.spec.every_path[i], self.stage_input.held[i])

    def openings(self) -> list[tuple[str, int]]:
        """Return no collectives: all is known; see ``Deal``."""
        return []

    def pull(self, ids: Sequence[int]) -> Sequence[Leaf]:
        """Return the leaves as the stages before leave them; see ``Deal``."""
        return self.stage_input.pull(ids)

    def reduce(self, i: int, leaf: Leaf | None) -> Leaf:
        """Return a leaf without terms to reduce; see ``Deal``."""
        if leaf is None:
            leaf = junk_like(self.stage_input.leaves[i], self.given[i])
        return handler_of(leaf).reduced(leaf)

    def load(self, ids: Sequence[int], leaves: Sequence[Leaf]) -> Sequence[LeafBuffers]:
        """Return what to read and where to write; see ``Deal``."""
        make = partial(self._buffers, {})
        return self.plan.load(ids, leaves, self.plan.spec.every_path, make)

    def _buffers(
        self, blanks: dict[int, Tensor], i: int, leaf: Leaf, leader: LeafBuffers | None
    ) -> LeafBuffers:
        plan, to = self.plan, self.receivers
        form, transfers, chosen = to.given[i], plan.leaf_plans[i].transfers, to.at[i]
        if form.dtype is None:
            return LeafBuffers(leaf)
        if not transfers and plan.me not in chosen:
            return LeafBuffers(plan.forms[i])
        ts = () if i in to.strange else self.stage_input.tensors(i, leaf)
        if transfers and self.stage_input.is_acted_on:
            check_data(plan.spec.every_path[i], ts)
        sources = per_transfer(ts, len(transfers)) if transfers else []
        if plan.me not in to.carried.get(i, chosen):
            return LeafBuffers(plan.forms[i], sources, [()] * len(transfers))
        if plan.targets is not None:
            if self.stage_input.is_acted_on and not has_no_makeup(form):
                plan.targets.check_beside(i, leaf)
            return self._into(plan.targets, i, ts, leader)
        if form.layout is None:
            return LeafBuffers(arrived(leaf))
        if form.layout.parts is not None:
            return self._buffers_inside(i, leaf, sources, leader)
        marks = self._requires_grad(i, leaf)
        if leader is not None and leader.targets:
            [[out]] = leader.targets
            out = out.permute(self._turn(plan.leaders[i], i))
            return LeafBuffers(marked(out, marks), [ts], [[out]])
        if ts and not transfers:
            return LeafBuffers(marked(own_part(form.layout, ts, plan.me), marks))
        device = ts[0].device if ts else self._device(i)
        out = blanks[id(form)] = blank(form, device, blanks.get(id(form)))
        if plan.me not in chosen:
            return LeafBuffers(plan.forms[i], [ts], [[out]])
        return LeafBuffers(marked(out, marks) if marks else out, [ts], [[out]])

    def _into(
        self, targets: Targets, i: int, ts: Sequence[Tensor], leader: LeafBuffers | None
    ) -> LeafBuffers:
        """Return what is written of a leaf; of a strange tie each buffer by itself."""
        buffers = targets.buffers(i, ts, len(self.plan.leaf_plans[i].transfers))
        if leader is None or i not in self.receivers.strange:
            return buffers
        turn = self._turn(self.plan.leaders[i], i)
        return buffers._replace(finish=partial(filled, buffers.leaf, leader.leaf, turn))

    def _requires_grad(self, i: int, leaf: Leaf) -> bool:
        claim = self.receivers.strange.get(i)
        own = getattr(leaf, "requires_grad", False)
        return own if claim is None else claim.requires_grad

    def _device(self, i: int) -> torch.device:
        """Return where a leaf is made that comes from a set of other ranks."""
        kind = self.receivers.strange[i].home
        if kind == "cpu":
            return torch.device(kind)
        return torch.device(kind, torch.accelerator.current_device_index())

    def _buffers_inside(
        self,
        i: int,
        leaf: Leaf,
        sources: Sequence[Sequence[Tensor]],
        leader: LeafBuffers | None,
    ) -> LeafBuffers:
        """Return what to read and where to write of a leaf over several tensors."""
        new = ts = self.stage_input.tensors(i, leaf)
        if leader is not None and leader.targets:
            new = [t for transfer in leader.targets for t in transfer]
        elif sources:
            new = blank_parts(self.given[i], ts)
        targets = per_transfer(new, len(sources)) if sources else []
        if self.plan.me not in self.receivers.at[i]:
            return LeafBuffers(self.plan.forms[i], sources, targets)
        return LeafBuffers(leaf, sources, targets, partial(made_whole, leaf, new))


def _result(form: Abstract) -> Leaf:
    """Return what becomes of a leaf, without its data."""
    if form.layout is None or form.dtype is None:
        return form
    parts = form.layout.parts
    if parts is None:
        return Abstract.dense(form.shape, form.dtype)
    held = [Local(shape, dense_strides(shape), t) for shape, t in wholes_of(form)]
    return Abstract(parts.kind, form.shape, form.dtype, tuple(held))
