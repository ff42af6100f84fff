"""Aims: what the leaves of a conversion are made of, and how that lies on ranks.

Source and target of a piece meet in the space of its axes: there both have a layout
over views of local tensors, and go one to the other as any leaf does.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import Final

import torch

from sdtree.conversion.blocks import Blocks, blocks_of
from sdtree.conversion.joining import Target
from sdtree.conversion.making import used_by
from sdtree.conversion.pieces import Cut, Made, all_of
from sdtree.conversion.shares import Sizes, layout_of_part
from sdtree.exchange.leaf_plan import LeafPlan, described
from sdtree.exchange.sets import Claim, Ranks, Sets
from sdtree.kinds.abstract import Abstract, nbytes_of
from sdtree.layout.layout import Layout
from sdtree.layout.schedule import Transfer, summary
from sdtree.typing import Leaf
from sdtree.wire.collectives import RankGroup

MOST_TOLD: Final = 4
"""Of how many layouts ranks tell each other in words."""

Known = dict[Hashable, tuple[LeafPlan, Blocks | None, object]]
"""The plans of leaves that were looked at, and what keeps their keys alive.

Beside each are the blocks in which it goes, None if each of its parts goes alone.
"""


@dataclass(slots=True)
class Aims:
    """What each leaf is to be made of, by position, and where it goes.

    ``given`` are the forms of the leaves of the source, ``forms`` those of the targets.
    Leaves that are ``kept`` are handed on as they are.
    """

    rank_group: RankGroup
    targets: Sequence[Target]
    given: Sequence[Abstract]
    forms: Sequence[Abstract]
    kept: Sequence[bool]
    wires: Sequence[str]
    known: Known = field(default_factory=Known)

    @classmethod
    def of(
        cls,
        rank_group: RankGroup,
        targets: Sequence[Target],
        given: Sequence[Abstract],
        forms: Sequence[Abstract],
        likes: Sequence[Leaf],
        kept: Sequence[bool],
    ) -> Aims:
        """Return where leaves go whose targets are like some."""
        wires = rank_group.wires(likes)
        return cls(rank_group, targets, given, forms, kept, wires)

    def leaf_plans(self) -> list[LeafPlan]:
        """Return the plan of each leaf, worked out once for those that are alike."""
        me = self.rank_group.me
        return [self.leaf_plan(i, me) for i in range(len(self.targets))]

    def leaf_plan(self, i: int, me: int) -> LeafPlan:
        """Return what is to become of a leaf as a rank sees it."""
        return LeafPlan() if self.kept[i] else self._seen(i, me)[0]

    def blocks(self, i: int) -> Blocks | None:
        """Return the blocks in which a leaf goes, None if each part goes alone."""
        return self._seen(i, self.rank_group.me)[1]

    def _seen(self, i: int, me: int) -> tuple[LeafPlan, Blocks | None, object]:
        target, form, wire = self.targets[i], self.forms[i], self.wires[i]
        layouts = self.layouts(i)
        key = id(target.made), *map(id, layouts), id(target.rule), id(form), wire, me
        if key not in self.known:
            found = self._leaf_plan(i, layouts, me)
            self.known[key] = *found, (target, layouts)
        return self.known[key]

    def layouts(self, i: int) -> Sequence[Layout | None]:
        """Return the layouts of the parts of a leaf, None for what is whole."""
        target = self.targets[i]
        places = (target.places[piece.place] for piece in target.made.pieces)
        return [self.given[k].layout for k in places]

    def _leaf_plan(
        self, i: int, layouts: Sequence[Layout | None], me: int
    ) -> tuple[LeafPlan, Blocks | None]:
        target, form, wire = self.targets[i], self.forms[i], self.wires[i]
        ranks, nbytes = self.members(i), nbytes_of(form)
        if ranks and me not in ranks:
            return LeafPlan(), None
        if not ranks:
            here = self._transfers(i, layouts, (me,), None)
            return LeafPlan(nbytes, transfers=tuple(here)), None
        pairs = zip(target.made.pieces, layouts, strict=True)
        known = {piece.place: layout for piece, layout in pairs}
        blocks = blocks_of(target.made, tuple(known.items()), ranks)
        transfers = [*self._transfers(i, layouts, ranks, blocks)]
        rule = "as it is" if target.rule is None else f"by {target.rule.text}"
        told = _told(target.made, tuple(layouts))
        plan = LeafPlan(
            nbytes,
            ranks,
            f"convert of {told} {rule} to {described(form)} by {wire}",
            len(ranks) > 1 and any(x.source != x.target for x in transfers),
            device=wire,
            transfers=tuple(transfers),
        )
        return plan, blocks

    def _transfers(
        self,
        i: int,
        layouts: Sequence[Layout | None],
        ranks: Ranks,
        blocks: Blocks | None,
    ) -> Iterable[Transfer]:
        """Yield the way of the blocks or each piece, and of what is one value."""
        made, form = self.targets[i].made, self.forms[i]
        assert isinstance(form.dtype, torch.dtype), "what has none is kept"
        if blocks is not None:
            goal = layout_of_part(made.shape, all_of(made.shape), form.layout, ranks)
            yield Transfer(blocks.layout, goal, form.dtype)
        pieces = made.pieces if blocks is None else ()
        pairs = zip(pieces, layouts if pieces else (), strict=True)
        every: list[tuple[Sizes, Cut, Cut | None, Layout | None]] = [
            (piece.sizes, piece.target, piece.source, layout) for piece, layout in pairs
        ]
        every += [(fill.sizes, fill.target, None, None) for fill in made.fills]
        for sizes, there, here, layout in every:
            source = layout_of_part(sizes, here or there, layout, ranks)
            goal = layout_of_part(sizes, there, form.layout, ranks)
            yield Transfer(source, goal, form.dtype)

    def members(self, i: int) -> Ranks:
        """Return the ranks that have a leaf, or what it is made of; none if all do."""
        layout = self.forms[i].layout
        every = [x for x in (*self.layouts(i), layout) if x is not None]
        return () if self.kept[i] else _together(tuple(every))

    def ends(self, i: int) -> Ranks | None:
        """Return the ranks of the target."""
        layout = self.forms[i].layout
        return self.members(i) or None if layout is None else layout.ranks

    def are_apart(self) -> bool:
        """Return whether a leaf lies on a part of the ranks, and may on others, too."""
        every = {x.layout for x in (*self.given, *self.forms) if x.layout is not None}
        return any(layout.ranks != self.rank_group.ranks for layout in every)

    # -- each leaf lies in one set of ranks ----------------------------------------

    def is_open(self, i: int, *, of_all: bool) -> bool:
        """Return whether other sets of ranks have a part: that is none of theirs."""
        return False

    def claims(
        self, ids: Iterable[int], *, are_apart: bool, of_all: bool
    ) -> dict[int, Claim]:
        """Return what there is to tell other sets: nothing."""
        return {}

    def supposed(self) -> str:
        """Return what is taken of ranks that have no part: nothing."""
        return ""

    def bond(self, i: int, sets: Sets) -> Hashable:
        """Return what a leaf has in common with those that travel with it."""
        return i

    def used(self, i: int) -> Sequence[int]:
        """Return the positions of the leaves that one is made of."""
        return used_by(self.targets[i])


@lru_cache(maxsize=4096)
def _together(layouts: tuple[Layout, ...]) -> Ranks:
    return tuple(sorted({rank for layout in layouts for rank in layout.ranks}))


@lru_cache(maxsize=4096)
def _told(made: Made, layouts: tuple[Layout | None, ...]) -> str:
    """Return in few words of what a leaf is made, so that another differs."""
    each = [f"{x.shape} {summary(x)}" if x else "a whole leaf" for x in layouts]
    found = [*dict.fromkeys(each)]
    digest = blake2b(repr((made, each)).encode(), digest_size=4).hexdigest()
    return f"{', '.join(found[:MOST_TOLD])} [{digest}]"
