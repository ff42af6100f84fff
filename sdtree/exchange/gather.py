"""Gathering: the plan by which sharded leaves become whole on the ranks chosen."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod

import torch
from torch import Tensor

from sdtree.errors import SpecMismatch
from sdtree.exchange.checks import check_data
from sdtree.exchange.leaf_plan import (
    LeafBuffers,
    StageInput,
    blank,
    blank_parts,
    filled,
    made_whole,
    marked,
    own_part,
    per_transfer,
)
from sdtree.exchange.persistent import OVERWRITTEN
from sdtree.exchange.receivers import Ranks, Receivers
from sdtree.exchange.sets import Sets, stage_input_with
from sdtree.exchange.targets import Targets
from sdtree.exchange.tied import (
    shared_unseen,
    sharing_memory,
    turn_to,
    twins_here,
    twins_to,
)
from sdtree.exchange.transfer_plan import Make, TransferPlan
from sdtree.exchange.twins import groups_of, unseen
from sdtree.kinds.abstract import has_no_makeup
from sdtree.kinds.handler import arrived
from sdtree.layout.schedule import is_whole
from sdtree.transform.form import Look
from sdtree.tree.alike import Into
from sdtree.typing import Leaf, Tree
from sdtree.wire.collectives import RankGroup
from sdtree.wire.columns import (
    NOWHERE,
    Fresh,
    LeafColumn,
    Part,
    column_of,
    columns_of,
    grads_of,
    is_on_host,
    made_of,
)


@dataclass(slots=True, kw_only=True)
class Gathering(TransferPlan[Receivers, StageInput]):
    """What is gathered, and who gets it.

    ``twins`` are leaves whose data is one and the same, wherever it is to go;
    ``shared`` those that go into one buffer here, and of which nothing is here.
    """

    into: Into | None
    twins: list[list[int]] = field(default_factory=list[list[int]])
    shared: list[list[int]] = field(default_factory=list[list[int]])

    @classmethod
    def of(
        cls,
        ranks: Ranks,
        into: Into | None,
        stage_input: StageInput | None,
        rank_group: RankGroup,
        sets: Sets | None = None,
    ) -> Gathering:
        """Return the plan for the leaves that come to the stage."""
        assert stage_input is not None, "every rank is a source"
        goals = Receivers.of(stage_input, ranks, rank_group)
        plan = cls(
            rank_group=rank_group,
            spec=stage_input.spec,
            paths=stage_input.paths,
            forms=goals.wholes,
            goals=goals,
            source=stage_input,
            into=into,
        )
        if sets is not None:
            goals.follow(sets)
        if into is not None:
            plan._take_buffers(into.tree, is_last=sets is not None)
        plan.leaf_plans = goals.leaf_plans()
        if plan.targets is not None:
            plan.shared = shared_unseen(goals, plan.targets, plan.leaf_plans)
        if not stage_input.stand_alone:
            plan.twins = twins_here(goals, plan.leaf_plans, plan.shared)
        plan.ties = [*plan.ties_on(rank_group.me), *plan.shared]
        if sets is not None:
            plan.ties += groups_of({i: goals.bond(i, sets) for i in goals.strange})
        if plan.targets is not None:
            plan.targets.check(plan.forms, stage_input, plan.ties)
        return plan

    def _take_buffers(self, into: Tree, *, is_last: bool) -> None:
        """Have the leaves written into buffers, for which others may yet come."""
        mine = [self.rank_group.me in chosen for chosen in self.goals.at]
        try:
            self.targets = Targets.of(into, self.spec, mine)
            self.goals.writes = True
        except SpecMismatch:
            self.lacks = self.rank_group.others > 0 and not is_last
            if not self.lacks:
                raise
        self.consequence = "the buffers of into= are partly written"

    def ties_on(self, me: int) -> list[list[int]]:
        """Return the twins that a rank would gather as one; see ``TransferPlan``.

        Where it is given buffers these must be one, or each has its own to fill.
        """
        targets = self.targets
        if targets is None:
            return self.twins
        return twins_to(self.goals, self.twins, targets, me)

    def unseen_ties(self) -> list[list[int]]:
        """Return the leaves that may be tied; see ``TransferPlan``.

        The buffers of other ranks are not seen.
        """
        me = self.rank_group.me
        found = unseen(
            me, self.goals.given, ((form.layout,) for form in self.goals.given)
        )
        if self.targets is None:
            return found
        receives = [me in chosen for chosen in self.goals.at]
        return found + [
            group for group in self.twins if not all(receives[i] for i in group)
        ]

    def supposed(self) -> str:
        """Return what is taken of other ranks; see ``TransferPlan``."""
        return self.goals.supposed()

    def untied(self) -> list[list[int]]:
        """Return leaves that share memory, and wholes do not; see ``TransferPlan``."""
        return sharing_memory(self.goals, self.leaf_plans, self.twins)

    def is_here(self, i: int) -> bool:
        """Return whether this rank is to have a leaf; see ``TransferPlan``."""
        return self.rank_group.me in self.goals.at[i]

    def stays(self, i: int) -> Sequence[Tensor]:
        """Return the tensors of a leaf and of its buffer; see ``TransferPlan``."""
        targets = self.targets
        into = () if targets is None else targets.tensors[i]
        return [*self.source.held[i], *into]

    # -- sets of ranks that do not see each other ----------------------------------

    def met(self, sets: Sets) -> Gathering:
        """Return the plan with the leaves of other sets; see ``TransferPlan``."""
        stage_input = stage_input_with(self.source, sets, self.rank_group.me)
        return Gathering.of(
            self.goals.ranks, self.into, stage_input, self.rank_group, sets
        )

    def asks(self, me: int) -> bool:
        """Return whether a rank must hear more; see ``TransferPlan``."""
        return False

    # -- after the agreement -------------------------------------------------------

    def open(
        self, ids: Sequence[int], ties: Sequence[Sequence[int]], asked: bool
    ) -> None:
        """Choose the ranks that are to be balanced; see ``TransferPlan``."""
        shared = () if self.targets is None else self._shared_by({*ids}, self.targets)
        if ties or shared:
            why = "the leaves there are not tied on all ranks, or go to other ranks"
            self.lead(ties, shared, f"{why} each")
        goals, changed = self.goals, list[int]()
        if goals.ranks == "balanced":
            changed = goals.balance(ids, self.leaders)
        changed += [first for first, *others in ties if goals.carry(first, others)]
        for i in changed:
            self.leaf_plans[i] = goals.leaf_plan(i, self.rank_group.me)

    def _shared_by(self, ids: Container[int], to: Targets) -> Iterator[Sequence[int]]:
        """Yield of some leaves those that go into one buffer here."""
        for group in (*self.shared, *self.ties):
            found = [i for i in group if i in ids and to.wanted[i]]
            yield [i for i in found if not self._has_all(i)]

    def _has_all(self, i: int) -> bool:
        """Return whether this rank holds all of a leaf: nothing else is written."""
        layout, me = self.goals.given[i].layout, self.rank_group.me
        return layout is not None and not layout.is_partial and is_whole(layout, (me,))

    def check_data(self, ids: Sequence[int]) -> None:
        """Raise if leaves that are wanted have no data; see ``TransferPlan``."""
        if not (self.source.is_acted_on or self.source.stand_alone):
            for i in ids:
                if self.leaf_plans[i].transfers:
                    check_data(self.paths[i], self.source.held[i])

    def again(self, source: StageInput | None, given: Look | None) -> Gathering | None:
        """Return the plan for other leaves of the same forms; see ``TransferPlan``."""
        if source is None:
            return None
        targets = None
        if self.targets is not None:
            targets = self.targets.again(source, given, self.spec, self.ties)
            if targets is None:
                return None
        goals = replace(self.goals, stage_input=source)
        return replace(self, source=source, goals=goals, targets=targets)

    def columns(self, ids: Sequence[int]) -> list[LeafColumn] | None:
        """Return the leaves of a window as columns; see ``TransferPlan``.

        They are to be dense tensors, none of them tied or of a set of other ranks.
        """
        given, me = self.goals.given, self.rank_group.me
        tied = self.leaders.keys() | {*self.leaders.values()}
        if self.goals.strange or not tied.isdisjoint(ids):
            return None
        found = columns_of(ids, self.paths, self.leaf_plans, me)
        for column in found or ():
            layout, is_new = given[column.ids[0]].layout, self.targets is None
            is_dense = layout is not None and layout.parts is None
            if not is_dense or (is_new and not column.comes_together):
                return None
        return found

    def part_of(self, column: LeafColumn, leaves: Sequence[Leaf]) -> Part | None:
        """Return what there is to do here with a column; see ``TransferPlan``."""
        ts = self._tensors_of(column, leaves)
        if ts is None or not all(map(is_on_host, ts)):
            return None
        if self.rank_group.me not in self.goals.at[column.ids[0]]:
            forms = [self.forms[i] for i in column.ids]
            return Part(ts, NOWHERE, partial(list, forms))
        transfer, targets = column.transfer, self.targets
        if targets is not None:
            buffers = [t for i in column.ids for t in targets.tensors[i]]
            made = partial(list, [targets.leaves[i] for i in column.ids])
            is_each = len(buffers) == len(ts)
            return Part(ts, column_of(buffers), made) if is_each else None
        size, dtype = transfer.target.shape, transfer.dtype
        fresh = Fresh((), size, count=len(ts), dtype=dtype)
        grads = grads_of(leaves)
        if self.persistent is not None and prod(size):
            self.consequence = OVERWRITTEN
            return self.persistent.part(column.ids[0], ts, fresh, grads)
        return Part(ts, fresh, partial(made_of, fresh, grads))

    def _tensors_of(
        self, column: LeafColumn, leaves: Sequence[Leaf]
    ) -> Sequence[Tensor] | None:
        """Return the local tensor of each leaf, None if one has not just one."""
        source, held = self.source, self.source.held
        if source.is_acted_on:
            pairs = zip(column.ids, leaves, strict=True)
            held = {i: source.tensors(i, x) for i, x in pairs}
            for i, path in zip(column.ids, column.paths, strict=True):
                check_data(path, held[i])
        ts = [t for i in column.ids for t in held[i]]  # of one form, as many of each
        return ts if len(ts) == len(leaves) else None

    def maker(self) -> Make:
        """Return what makes the buffers of a window; see ``TransferPlan``."""
        return partial(self._buffers, {})

    def _buffers(
        self, blanks: dict[int, Tensor], i: int, leaf: Leaf, leader: LeafBuffers | None
    ) -> LeafBuffers:
        me, to = self.rank_group.me, self.goals
        form, transfers, chosen = to.given[i], self.leaf_plans[i].transfers, to.at[i]
        if form.dtype is None:
            return LeafBuffers(leaf)
        if not transfers and me not in chosen:
            return LeafBuffers(self.forms[i])
        ts = () if i in to.strange else self.source.tensors(i, leaf)
        if transfers and self.source.is_acted_on:
            check_data(self.paths[i], ts)
        sources = per_transfer(ts, len(transfers)) if transfers else []
        if me not in to.carried.get(i, chosen):
            return LeafBuffers(self.forms[i], sources, [()] * len(transfers))
        if self.targets is not None:
            if self.source.is_acted_on and not has_no_makeup(form):
                self.targets.check_beside(i, leaf)
            return self._into(self.targets, i, ts, leader)
        if form.layout is None:
            return LeafBuffers(arrived(leaf))
        if form.layout.parts is not None:
            return self._buffers_inside(i, leaf, sources, leader)
        marks = self._requires_grad(i, leaf)
        if leader is not None and leader.targets:
            [[out]] = leader.targets
            out = out.permute(turn_to(self.goals, self.leaders[i], i))
            return LeafBuffers(marked(out, marks), [ts], [[out]])
        if ts and not transfers:
            return LeafBuffers(marked(own_part(form.layout, ts, me), marks))
        device = ts[0].device if ts else self._device(i)
        lasting = self.persistent
        if lasting is not None and i not in lasting.tied and me in chosen:
            self.consequence = OVERWRITTEN
            out = lasting.leaf(i, marks, lambda: blank(form, device, None))
            return LeafBuffers(out, [ts], [[out]])
        out = blanks[id(form)] = blank(form, device, blanks.get(id(form)))
        if me not in chosen:
            return LeafBuffers(self.forms[i], [ts], [[out]])
        return LeafBuffers(marked(out, marks) if marks else out, [ts], [[out]])

    def _into(
        self, targets: Targets, i: int, ts: Sequence[Tensor], leader: LeafBuffers | None
    ) -> LeafBuffers:
        """Return what is written of a leaf; of a strange tie each buffer by itself."""
        buffers = targets.buffers(i, ts, len(self.leaf_plans[i].transfers))
        if leader is None or i not in self.goals.strange:
            return buffers
        turn = turn_to(self.goals, self.leaders[i], i)
        return buffers._replace(finish=partial(filled, buffers.leaf, leader.leaf, turn))

    def _requires_grad(self, i: int, leaf: Leaf) -> bool:
        claim = self.goals.strange.get(i)
        own = getattr(leaf, "requires_grad", False)
        return own if claim is None else claim.requires_grad

    def _device(self, i: int) -> torch.device:
        """Return where a leaf is made that comes from a set of other ranks."""
        kind, own = self.goals.strange[i].home, torch.accelerator.current_accelerator()
        if own is None or kind != own.type or not torch.accelerator.is_available():
            return torch.device("cpu")  # there is no such device here, or it is meta
        return torch.device(kind, torch.accelerator.current_device_index())

    def _buffers_inside(
        self,
        i: int,
        leaf: Leaf,
        sources: Sequence[Sequence[Tensor]],
        leader: LeafBuffers | None,
    ) -> LeafBuffers:
        """Return what to read and where to write of a leaf over several tensors."""
        new = ts = self.source.tensors(i, leaf)
        if leader is not None and leader.targets:
            new = [t for transfer in leader.targets for t in transfer]
        elif sources:
            new = blank_parts(self.goals.given[i], ts)
        targets = per_transfer(new, len(sources)) if sources else []
        if self.rank_group.me not in self.goals.at[i]:
            return LeafBuffers(self.forms[i], sources, targets)
        return LeafBuffers(leaf, sources, targets, partial(made_whole, leaf, new))
