"""Conversion: the plan by which leaves become those of another tree, by rules."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, NamedTuple

import torch
from torch import Tensor

from sdtree.conversion.blocks import Block
from sdtree.conversion.converting import Rules, check_form, matched, ordered
from sdtree.conversion.joining import Target, unchanged
from sdtree.conversion.pieces import Cut, all_of
from sdtree.conversion.shares import Sizes, cut_of, held_of, resolved
from sdtree.conversion.source import Fitting, Source
from sdtree.errors import ConvertError
from sdtree.exchange.aims import Aims
from sdtree.exchange.checks import (
    check_data,
    check_is_leaf,
    fault_in,
    fault_in_target,
)
from sdtree.exchange.leaf_plan import LeafBuffers, StageInput, made_like
from sdtree.exchange.sets import Sets
from sdtree.exchange.targets import Targets
from sdtree.exchange.transfer_plan import Make, TransferPlan
from sdtree.exchange.twins import groups_of
from sdtree.kinds.abstract import Abstract, check_layouts, look_at
from sdtree.kinds.handler import handler_of
from sdtree.tensors.storage import identity_of
from sdtree.transform.form import Look
from sdtree.tree.alike import Like
from sdtree.tree.spec import take
from sdtree.typing import Leaf, Path
from sdtree.wire.agreement import ALIKE
from sdtree.wire.collectives import RankGroup
from sdtree.wire.patches import Patchwork, Sent

APART: Final = (
    f"{ALIKE}; or, where sets of ranks each have a leaf for themselves, "
    "sd.convert(rules) | sd.redistribute(like=...), which brings it to all of them"
)
"""What helps where ranks see a leaf in other layouts."""


class ConvertOptions(NamedTuple):
    """What is asked for: rules, what they are to come to, and what of the rest."""

    rules: Rules
    given: Like
    rest: str


Parts = Mapping[int, Leaf]
"""The leaves that another is made of, by position."""


class Supplies(NamedTuple):
    """What comes to the stage, for leaves that are each made of several."""

    stage_input: StageInput
    aims: Aims

    def pull(self, ids: Sequence[int], /) -> Sequence[Leaf]:
        """Return for each leaf what it is made of, by position."""
        used = [self.aims.used(i) for i in ids]
        every = sorted({k for own in used for k in own})
        found = dict(zip(every, self.stage_input.pull(every), strict=True))
        return [{k: found[k] for k in own} for own in used]

    def junk(self, i: int, device: str) -> Leaf:
        """Return what takes the place of leaves that could not be pulled."""
        return {k: self.stage_input.junk(k, device) for k in self.aims.used(i)}


@dataclass(slots=True, kw_only=True)
class Conversion(TransferPlan[Aims, Supplies]):
    """What is made by rules, and brought into the layouts of a tree.

    ``held`` are the local tensors of the targets.
    """

    order: ConvertOptions
    likes: Sequence[Leaf]
    held: Sequence[Sequence[Tensor]]
    keys: list[Hashable] = field(default_factory=list[Hashable])

    @classmethod
    def of(
        cls,
        order: ConvertOptions,
        stage_input: StageInput | None,
        rank_group: RankGroup,
    ) -> Conversion:
        """Return the plan for the leaves that come to the stage."""
        assert stage_input is not None, "every rank is a source"
        likes, spec = take(order.given.tree)
        paths, me = spec.paths(), rank_group.me
        forms, held = look_at(likes, paths.__getitem__)
        check_layouts(forms, partial(fault_in_target, me=me), paths)
        given = stage_input.known()
        check_layouts(given, partial(fault_in, me=me), stage_input.paths)
        pull = stage_input.pull if stage_input.is_acted_on else None
        leaves, tensors = stage_input.leaves, stage_input.held
        source = Source.by(stage_input.spec, leaves, given, tensors, pull)
        found = matched(order.rules, source, order.given.tree, order.rest)
        every = [*(unchanged(source, k) for k in found.kept), *found.targets]
        targets = [every[i] for i in ordered(source, found, spec)]
        kept = [*map(partial(_is_kept, order, source), targets, forms)]
        aims = Aims.of(rank_group, targets, given, forms, likes, kept)
        plan = cls(
            rank_group=rank_group,
            spec=spec,
            paths=paths,
            forms=_results(forms, kept, order.given.is_written),
            goals=aims,
            source=Supplies(stage_input, aims),
            order=order,
            likes=likes,
            held=held,
        )
        for i, target in enumerate(targets):
            plan._check(i, source, target)
        plan.leaf_plans = aims.leaf_plans()
        if aims.are_apart():
            plan.advice = APART
        plan.keys = [plan._key(i, source) for i in range(len(targets))]
        plan.ties = plan.ties_on(me)
        if order.given.is_written:
            plan._check_into(stage_input)
        return plan

    # -- does it fit ---------------------------------------------------------------

    def _check(self, i: int, source: Source, target: Target) -> None:
        """Raise ``ConvertError`` unless a leaf can be made, and goes to its target."""
        wanted, parts = self.goals.forms[i], self.goals.used(i)
        dtype = self.goals.given[parts[0]].dtype
        if not self.goals.kept[i]:
            fitting = Fitting(source, target.rule)
            dtype = fitting.check(target.made, parts)
            if wanted.layout is not None:
                check_is_leaf(self.paths[i], self.likes[i], wanted)
                self._check_plain(target, wanted)
            ranks, me = self.goals.members(i), self.rank_group.me
            if wanted.layout is None and ranks and me not in ranks:
                raise ConvertError(
                    f"{target.name}: its target is whole on rank {me}, and it is made "
                    f"of leaves on the ranks {ranks} alone; leave that target out here"
                )
        form = Abstract(wanted.kind, target.made.shape, dtype)
        check_form(target.name, form, wanted)

    def _check_plain(self, target: Target, wanted: Abstract) -> None:
        if wanted.layout is not None and wanted.layout.parts is not None:
            kind = wanted.layout.parts.kind.__name__
            raise ConvertError(
                f"{target.name}: its target is over {kind}, and what rules make is "
                "dense; give a dense leaf there"
            )

    def _check_into(self, stage_input: StageInput) -> None:
        self.consequence = "the leaves of into= are partly written"
        wanted = [bool(x.transfers) for x in self.leaf_plans]
        pairs = zip(self.held, wanted, strict=True)
        tensors = [ts if is_wanted else () for ts, is_wanted in pairs]
        self.targets = Targets(self.paths, self.likes, wanted, tensors)
        self.targets.check_each()
        made_of = [*map(self.goals.used, range(len(self.paths)))]
        self.targets.check_apart(stage_input, self.ties, made_of=made_of)

    # -- ties ----------------------------------------------------------------------

    def _key(self, i: int, source: Source) -> Hashable:
        """Return what leaves have in common that are to be one, in memory too."""
        target, passed = self.goals.targets[i], self.goals.targets[i].made.passed
        data: Hashable = target.key
        if passed is not None:
            data = "as it is", identity_of(source.tensors[target.places[passed]])
        if self.order.given.is_written:
            return data, identity_of(self.held[i])
        return data, self.goals.forms[i]

    def ties_on(self, me: int) -> list[list[int]]:
        """Return the leaves that a rank would make as one; see ``TransferPlan``."""
        plans = self.leaf_plans
        return groups_of({i: x for i, x in enumerate(self.keys) if plans[i].transfers})

    def unseen_ties(self) -> list[list[int]]:
        """Return the leaves that may be tied; see ``TransferPlan``."""
        return []

    # -- after the agreement -------------------------------------------------------

    def asks(self, me: int) -> bool:
        """Return whether a rank must hear more; see ``TransferPlan``."""
        return False

    def met(self, sets: Sets) -> Conversion:
        """Return the plan as it is; see ``TransferPlan``."""
        return self

    def open(
        self, ids: Sequence[int], ties: Sequence[Sequence[int]], asked: bool
    ) -> None:
        """Settle which leaves lead; see ``TransferPlan``."""
        found = {*ids}
        given = self.ties if self.targets is not None else ()
        filled = [[i for i in group if i in found] for group in given]
        self.lead(ties, filled, "other ranks have one for each")

    def again(self, source: StageInput | None, given: Look | None) -> Conversion | None:
        """Return the plan for other leaves of the same forms; see ``TransferPlan``.

        Where data is compared, by agree= or alias=, it is to be compared anew.
        """
        compares = any(x.rule is not None and x.rule.alike for x in self.goals.targets)
        if source is None or given is None or not given.held or compares:
            return None
        supplies, held, targets = Supplies(source, self.goals), given.tensors(), None
        if self.targets is not None:
            pairs = zip(held, self.targets.wanted, strict=True)
            tensors = [ts if is_wanted else () for ts, is_wanted in pairs]
            targets = replace(self.targets, leaves=given.leaves, tensors=tensors)
            targets.check_apart(source, self.ties)
        return replace(
            self, source=supplies, likes=given.leaves, held=held, targets=targets
        )

    def check_data(self, ids: Sequence[int]) -> None:
        """Raise if what leaves are made of has no data; see ``TransferPlan``."""
        stage_input = self.source.stage_input
        for i in ids:
            if self.leaf_plans[i].transfers and not stage_input.is_acted_on:
                for k in self._read(i):
                    check_data(stage_input.paths[k], stage_input.held[k])

    def _read(self, i: int) -> Sequence[int]:
        """Return the positions of the leaves that are read, not of those filled for."""
        return self.goals.used(i) if self.goals.targets[i].made.pieces else ()

    def stays(self, i: int) -> Sequence[Tensor]:
        """Return the tensors of a leaf that is handed on; see ``TransferPlan``."""
        if self.targets is not None:
            return self.targets.tensors[i]
        held = self.source.stage_input.held
        return [t for k in self.goals.used(i) if self.goals.kept[i] for t in held[k]]

    def origins(self, i: int) -> Sequence[Path]:
        """Return the paths of the leaves of which one is made; see ``TransferPlan``."""
        paths = self.source.stage_input.paths
        return [paths[k] for k in self.goals.used(i)]

    def home(self, i: int) -> torch.device | None:
        """Return where a leaf is made anew; see ``TransferPlan``."""
        mesh = getattr(self.likes[i], "device_mesh", None)
        found = next((t.device for t in self.held[i] if not t.is_meta), None)
        return torch.device(mesh.device_type) if found is None and mesh else found

    # -- window by window ----------------------------------------------------------

    def maker(self) -> Make:
        """Return what makes the buffers of a window; see ``TransferPlan``."""
        return partial(self._buffers, {})

    def _buffers(
        self,
        fresh: dict[int, Sequence[Tensor]],
        i: int,
        leaf: Parts,
        leader: LeafBuffers | None,
    ) -> LeafBuffers:
        aims, like = self.goals, self.likes[i]
        if aims.kept[i]:
            return LeafBuffers(*leaf.values())
        if not self.leaf_plans[i].transfers:
            return LeafBuffers(like)
        found = {k: self.source.stage_input.tensors(k, x) for k, x in leaf.items()}
        if self.source.stage_input.is_acted_on:
            for k in self._read(i):
                check_data(self.source.stage_input.paths[k], found[k])
        if self.targets is not None:
            return LeafBuffers(like, *self._views(i, found, self.held[i]))
        if leader is None:
            fresh[i] = self._blank(i, next(iter(found.values())))
        new = fresh[self.leaders.get(i, i)]
        views = self._views(i, found, new)
        if aims.forms[i].layout is None:
            return LeafBuffers(new[0], *views)
        handler = handler_of(like)
        _, aux = handler.flatten(like)
        return LeafBuffers(like, *views, partial(handler.unflatten, aux, new))

    def _blank(self, i: int, sources: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the unfilled local tensors of a leaf."""
        form, home = self.goals.forms[i], self.home(i) or sources[0].device
        if form.layout is None:
            return [torch.empty(form.shape, dtype=form.dtype, device=home)]
        old = self.held[i]
        return [made_like(t, home if t.is_meta else t.device) for t in old]

    def _views(
        self, i: int, parts: Mapping[int, Sequence[Tensor]], new: Sequence[Tensor]
    ) -> tuple[list[Sequence[Sent]], list[Sequence[Tensor]]]:
        """Return what is read and written of a leaf, transfer by transfer."""
        target, form = self.goals.targets[i], self.goals.forms[i]
        shape, blocks = target.made.shape, self.goals.blocks(i)
        sources: list[Sequence[Sent]] = []
        targets: list[Sequence[Tensor]] = []
        if blocks is not None:
            held = blocks.held.get(self.rank_group.me, ())
            sources.append([self._patchwork(target, x, parts) for x in held])
            targets.append(self._held(shape, all_of(shape), form, new))
        for sizes, there, here, place in target.made.pieces if blocks is None else ():
            k = target.places[place]
            ts = [*map(resolved, parts[k])]
            sources.append(self._held(sizes, here, self.goals.given[k], ts))
            targets.append(self._held(sizes, there, form, new))
        for sizes, there, value, _ in target.made.fills:
            one = torch.full((), value, dtype=form.dtype, device=new[0].device)
            sources.append([one.expand(sizes)])
            targets.append(self._held(sizes, there, form, new))
        return sources, targets

    def _patchwork(
        self, target: Target, block: Block, parts: Mapping[int, Sequence[Tensor]]
    ) -> Patchwork:
        """Return views of what a block is put together of, each at its place in it."""
        found: list[tuple[Sizes, Tensor]] = []
        for x in block.boxes:
            assert x.place is not None, "it is no fill"
            t = resolved(parts[target.places[x.place]][x.tensor])
            found.append((x.offset, cut_of(t, x.size, x.cut)))
        return Patchwork(block.offset, found)

    def _held(
        self, sizes: Sizes, cut: Cut, form: Abstract, ts: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """Return views of what this rank has of a part of a leaf."""
        found = held_of(sizes, cut, form.layout, self.rank_group.me)
        return [cut_of(ts[x.tensor], x.sizes, x.cut) for x in found]


def _is_kept(
    order: ConvertOptions, source: Source, target: Target, form: Abstract
) -> bool:
    """Return whether a leaf is handed on: a plain value, or whole here and there."""
    if target.made.passed is None:
        return False
    given = source.forms[target.places[target.made.passed]]
    is_whole = given.layout is None and form.layout is None
    return given.dtype is None or (is_whole and not order.given.is_written)


def _results(
    forms: Sequence[Abstract], kept: Sequence[bool], is_into: bool
) -> list[Leaf]:
    """Return what the leaves are to be, without their data."""
    return [
        Abstract.dense(form.shape, form.dtype)
        if form.layout is None and not is_kept and not is_into and form.dtype
        else form
        for form, is_kept in zip(forms, kept, strict=True)
    ]
