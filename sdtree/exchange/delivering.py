"""Delivery by columns, and once more: what is alike goes to its targets as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from sdtree.exchange.distribute import Delivery
from sdtree.exchange.leaf_plan import StageInput
from sdtree.kinds.handler import handler_of
from sdtree.transform.form import Look
from sdtree.typing import Leaf
from sdtree.wire.columns import (
    NOWHERE,
    Fresh,
    Join,
    LeafColumn,
    Part,
    columns_of,
    joined,
)
from sdtree.wire.messages import Column


@dataclass(slots=True, kw_only=True)
class ColumnDelivery(Delivery):
    """What is brought into the layouts of a tree, those alike together.

    It ``has_heard`` if ranks told each other, after they had agreed, what there is.
    """

    has_heard: bool = False

    def open(
        self, ids: Sequence[int], ties: Sequence[Sequence[int]], asked: bool
    ) -> None:
        """Hear what the source has, if it is not here; see ``TransferPlan``."""
        tells = self.order.src is not None or not self.order.moves
        self.has_heard = asked and tells and self.rank_group.others > 0
        Delivery.open(self, ids, ties, asked)

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
        )

    def columns(self, ids: Sequence[int]) -> list[LeafColumn] | None:
        """Return the leaves of a window as columns; see ``TransferPlan``."""
        given, own = self.source.given, len(self.spec)
        if self.ties or self.leaders or any(i >= own or given[i] is None for i in ids):
            return None
        return columns_of(ids, self.paths, self.leaf_plans, self.rank_group.me)

    def part_of(self, column: LeafColumn, leaves: Sequence[Leaf]) -> Part | None:
        """Return what there is to do here with a column; see ``TransferPlan``."""
        pairs, count = zip(column.ids, leaves, strict=True), len(leaves)
        sources = [t for i, x in pairs for t in self.source.tensors(i, x)]
        likes, old = self._targets_of(column)
        if len(sources) not in (0, count) or len(old) not in (0, count):
            return None
        if not old:
            return Part(sources, NOWHERE, partial(list, likes))
        if self.targets is not None:
            return Part(sources, Column(old), partial(list, likes))
        if self.order.device or not column.can_be_fresh(old):
            return None
        fresh = Fresh(count, old[0].size(), old[0].dtype)
        joins = [*map(self._join, column.ids, leaves)]
        return Part(sources, fresh, partial(joined, fresh, joins))

    def _targets_of(self, column: LeafColumn) -> tuple[list[Leaf], list[Tensor]]:
        """Return the targets of a column, and the local tensors that they have here."""
        likes = [self.likes[i] for i in column.ids]
        if not self.goals.here[column.ids[0]]:
            return likes, []
        return likes, [t for i in column.ids for t in self.held[i]]

    def _join(self, i: int, leaf: Leaf) -> Join:
        """Return what makes a leaf anew of its local tensors, as its target is made."""
        handler = handler_of(self.likes[i])
        _, aux = handler.flatten(self.likes[i])
        return partial(handler.unflatten, self.source.aux(i, leaf, aux))
