"""Delivery by columns, and once more: what is alike goes to its targets as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from sdtree.exchange.distribute import Delivery
from sdtree.exchange.leaf_plan import (
    LeafBuffers,
    StageInput,
    made_like,
    per_transfer,
)
from sdtree.exchange.transfer_plan import Make
from sdtree.kinds.handler import Handler, handler_of
from sdtree.layout.schedule import is_blind
from sdtree.transform.form import Look
from sdtree.typing import Leaf
from sdtree.wire.columns import (
    NOWHERE,
    Fresh,
    Join,
    LeafColumn,
    Part,
    column_of,
    columns_of,
    joined,
    remade,
)
from sdtree.wire.patches import Patchwork


@dataclass(slots=True, kw_only=True)
class ColumnDelivery(Delivery):
    """What is brought into the layouts of a tree, those alike together."""

    def again(
        self, source: StageInput | None, given: Look | None
    ) -> ColumnDelivery | None:
        """Return the plan for other leaves of the same forms; see ``TransferPlan``.

        What is tied, or is more than tensors, is looked at anew, and so is what the
        source told.
        """
        known = self.source
        is_told = self.has_heard or known.report or known.makeups
        if given is None or not given.held or is_told or self.twins or self.fault:
            return None
        targets = self.targets
        if targets is not None:
            targets = targets.again(source, given, self.spec, self.ties)
        return replace(
            self,
            source=replace(known, stage_input=source),
            likes=given.leaves,
            held=given.tensors(),
            targets=targets,
            stand_alone=False,
        )

    # -- columns -------------------------------------------------------------------

    def columns(self, ids: Sequence[int]) -> list[LeafColumn] | None:
        """Return the leaves of a window as columns; see ``TransferPlan``."""
        given, own = self.source.given, self.source.own
        if self.ties or self.leaders or any(i >= own or given[i] is None for i in ids):
            return None
        return columns_of(ids, self.paths, self.leaf_plans, self.rank_group.me)

    def part_of(self, column: LeafColumn, leaves: Sequence[Leaf]) -> Part | None:
        """Return what there is to do here with a column; see ``TransferPlan``."""
        sources, count = self.source.all_tensors(column.ids, leaves), len(leaves)
        likes, old = self._targets_of(column)
        if len(sources) not in (0, count) or len(old) not in (0, count):
            return None
        if not old:
            return Part(sources, NOWHERE, partial(list, likes))
        if self.targets is not None:
            return Part(sources, column_of(old), partial(list, likes))
        if self.order.device or not column.can_be_fresh(old):
            return None
        fresh = Fresh((), old[0].size(), count=count, dtype=old[0].dtype)
        return Part(sources, fresh, self._making(fresh, column, leaves, likes))

    def _targets_of(self, column: LeafColumn) -> tuple[list[Leaf], list[Tensor]]:
        """Return the targets of a column, and the local tensors that they have here."""
        likes = [self.likes[i] for i in column.ids]
        if not self.goals.here[column.ids[0]]:
            return likes, []
        return likes, [t for i in column.ids for t in self.held[i]]

    def _making(
        self,
        fresh: Fresh,
        column: LeafColumn,
        leaves: Sequence[Leaf],
        likes: Sequence[Leaf],
    ) -> Callable[[], Sequence[Leaf]]:
        """Return what makes leaves of tensors that are fresh: at once, if it can."""
        handler = handler_of(likes[0])
        if handler.over and (self.stand_alone or self._are_bare(handler, likes)):
            return partial(remade, fresh, handler.over, likes)
        return partial(joined, fresh, [*map(self._join, column.ids, leaves)])

    def _are_bare(self, handler: Handler, likes: Sequence[Leaf]) -> bool:
        """Return whether nothing but a tensor is to be known of each target."""
        return not self.source.makeups and handler.locals(likes) is not None

    def _join(self, i: int, leaf: Leaf) -> Join:
        """Return what makes a leaf anew of its local tensors, as its target is made."""
        handler = handler_of(self.likes[i])
        _, aux = handler.flatten(self.likes[i])
        return partial(handler.unflatten, self.source.aux(i, leaf, aux))

    # -- each for itself ----------------------------------------------------------

    def maker(self) -> Make:
        """Return what makes the buffers of a window; see ``TransferPlan``."""
        return self._buffers

    def _buffers(self, i: int, leaf: Leaf, leader: LeafBuffers | None) -> LeafBuffers:
        like, given = self.likes[i], self.source.given[i]
        transfers = self.leaf_plans[i].transfers
        if given is not None and self.forms[i].dtype is None:
            return LeafBuffers(self.source.value(i, leaf))
        if given is None or not transfers:
            return LeafBuffers(like)
        count, ts = len(transfers), self.source.tensors(i, leaf)
        sources = per_transfer(ts, count) if ts else [()] * count
        is_sent = self.order.src is not None or self.order.moves
        goes = is_sent or not is_blind(self.goals.at[i], self.rank_group.me)
        is_whole = not self.leaf_plans[i].is_partial
        if self.targets and leader is not None and ts and goes and is_whole:
            theirs, own = (
                [t for sent in x for t in sent if not isinstance(t, Patchwork)]
                for x in (leader.sources, sources)
            )
            self._check_same(self.leaders[i], i, theirs, own)
        if not self.goals.here[i]:
            return LeafBuffers(like, sources, [()] * count)
        if self.targets is not None:
            return LeafBuffers(
                like, sources, per_transfer(self.targets.tensors[i], count)
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
        handler = handler_of(like)
        old, aux = handler.flatten(like)
        if leader is None:
            new = [made_like(t, self._home(i, t, ts)) for t in old]
        else:
            new = [t for transfer in leader.targets for t in transfer]
        finish = partial(handler.unflatten, self.source.aux(i, leaf, aux), new)
        return LeafBuffers(like, sources, per_transfer(new, len(sources)), finish)

    def _home(self, i: int, t: Tensor, sources: Sequence[Tensor]) -> torch.device:
        """Return where a new local tensor is made: where its target is, if not meta."""
        if self.order.device is None and not t.is_meta:
            return t.device
        found = self.home(i)
        if found is not None:
            return found
        return sources[0].device if sources else self.rank_group.device()
