"""Delivery: the plan by which leaves take the layouts of another tree."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from sdtree.errors import SpecMismatch
from sdtree.exchange.beside import makeups_in
from sdtree.exchange.checks import (
    check_data,
    check_is_leaf,
    check_open,
    fault_in_target,
)
from sdtree.exchange.goals import Goals, check_layouts_of, check_same_ranks
from sdtree.exchange.hearing import (
    check_here,
    get_ready,
    hear,
    hearings,
    is_for_all,
    supposed,
)
from sdtree.exchange.leaf_plan import (
    LeafBuffers,
    LeafPlan,
    StageInput,
    made_like,
    per_transfer,
)
from sdtree.exchange.sets import Claim, Sets
from sdtree.exchange.source import DistributeOptions, Source
from sdtree.exchange.targets import Targets
from sdtree.exchange.tied import (
    Twins,
    check_led,
    check_same,
    check_sources,
    check_targets,
    filled_as_one,
    in_one_buffer,
    ties_seen,
    twins_among,
)
from sdtree.exchange.transfer_plan import Make, TransferPlan
from sdtree.exchange.twins import unseen
from sdtree.kinds.abstract import check_layouts, sight_of
from sdtree.kinds.handler import handler_of
from sdtree.transform.form import Look
from sdtree.tree.spec import take
from sdtree.typing import Leaf, Path
from sdtree.wire.agreement import canonical
from sdtree.wire.collectives import RankGroup
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


@dataclass(slots=True, kw_only=True)
class Delivery(TransferPlan[Goals, Source]):
    """What is brought into the layouts of a tree.

    ``held`` are the local tensors of the targets, which ``stand_alone`` if no two are
    tied; ``twins`` tell of targets that are tied, here or in the source, with which
    they are; ``asking``, of the ranks that were looked at, which ask. It ``has_heard``
    if ranks told each other, after they had agreed, what there is.
    """

    order: DistributeOptions
    likes: list[Leaf]
    held: list[Sequence[Tensor]]
    stand_alone: bool
    twins: Twins = field(default_factory=dict[int, tuple[int, Hashable]])
    asking: dict[int, bool] = field(default_factory=dict[int, bool])
    has_heard: bool = False

    @classmethod
    def of(
        cls,
        order: DistributeOptions,
        stage_input: StageInput | None,
        rank_group: RankGroup,
    ) -> Delivery:
        """Return the plan for what comes to the stage, None off the source."""
        likes, spec = take(order.given.tree)
        me, paths = rank_group.me, spec.paths()
        forms, held, stand_alone = sight_of(likes, paths.__getitem__)
        if not stand_alone:
            check_open(paths, likes, forms)
        check_layouts(forms, partial(fault_in_target, me=me), paths)
        layouts = [form.layout for form in forms]
        far = [layout is not None and me not in layout.boxes for layout in layouts]
        makeups = {} if stand_alone else makeups_in(likes, forms)
        source = Source.of(order, stage_input, rank_group, paths, forms, makeups, far)
        goals = Goals.of(order, source, rank_group, likes, forms, layouts)
        plan = cls(
            rank_group=rank_group,
            spec=spec,
            paths=paths,
            forms=forms,
            goals=goals,
            source=source,
            order=order,
            likes=likes,
            held=held,
            stand_alone=stand_alone,
        )
        if stage_input is not None:
            check_layouts_of(source, stage_input, me)
        plan._check_fit()
        plan.leaf_plans = goals.leaf_plans()
        if not stand_alone or source.metadata.tied:
            plan.twins = twins_among(goals, held)
        plan.ties = plan.ties_on(me)
        if order.given.is_written:
            plan.consequence = "the leaves of into= are partly written"
            plan._check_into()
        return plan

    # -- does it fit ---------------------------------------------------------------

    def _check_fit(self) -> None:
        """See that the source fits, or find out what others are to be told of it."""
        order, source = self.order, self.source
        if order.src is None:
            check_here(source, self.rank_group)
            if order.reports:
                self.common = f"{order.verb}, with a report"
            return
        strictness = "strict" if order.strict else "not strict"
        told = ", with a report" if order.reports else ""
        self.common = f"{order.verb} from rank {order.src}, {strictness}{told}"
        if self.rank_group.others and self.asks(self.rank_group.me):
            get_ready(source)

    def supposed(self) -> str:
        """Return what is taken of other ranks; see ``TransferPlan``."""
        return supposed(self.source, self.rank_group) or self.goals.supposed()

    def _check_into(self) -> None:
        pairs = zip(self.held, self.goals.here, strict=True)
        held = [ts if is_in else () for ts, is_in in pairs]
        self.targets = Targets(self.paths, self.likes, self.goals.here, held)
        is_known = self.source.stage_input is not None
        try:
            self._check_targets(is_known)
        except SpecMismatch:
            if self.order.strict or is_known:
                raise
            self.asking[self.rank_group.me] = True  # which of them are to be written
        check_sources(self.goals, self.ties)

    def _check_targets(self, is_known: bool) -> None:
        goals, ties, alone = self.goals, self.ties, self.stand_alone
        if (targets := self.targets) is not None:
            check_targets(goals, targets, ties, is_known=is_known, stand_alone=alone)

    def asks(self, me: int) -> bool:
        """Return whether a rank must hear what the source has; see ``TransferPlan``."""
        source, order = self.source, self.order
        if order.src is None:
            return order.reports or is_for_all(source, self.rank_group, source.report)
        if me not in self.asking:
            self.asking[me] = not source.is_agreed_on(me)
        return self.asking[me]

    def ties_on(self, me: int) -> list[list[int]]:
        """Return the targets that a rank would fill as one; see ``TransferPlan``."""
        return ties_seen(self.goals, self.twins, me) if self.twins else []

    def unseen_ties(self) -> list[list[int]]:
        """Return the leaves that may be tied; see ``TransferPlan``."""
        ways = map(self.goals.layouts_of, range(len(self.paths)))
        return unseen(self.rank_group.me, self.goals.forms, ways)

    # -- sets of ranks that do not see each other ----------------------------------

    def met(self, sets: Sets) -> Delivery:
        """Return the plan with the sets of each leaf united; see ``TransferPlan``."""
        for key, path in sets.paths():
            check_same_ranks(path, sets.claims[key])
        if self.rank_group.me == self.order.src:
            known = {*map(canonical, self.paths)}
            more = {key: path for key, path in sets.paths() if key not in known}
            self._send_also([*more.values()], [sets.claims[key][0] for key in more])
        for i, path in enumerate(self.paths):
            if canonical(path) in sets:
                self.goals.unite(i, sets)
        self.source.forms = self.goals.forms
        self.leaf_plans = self.goals.leaf_plans()
        return self

    def _send_also(self, paths: Sequence[Path], claims: Sequence[Claim]) -> None:
        """Take on leaves that other ranks are to have, and the source is not."""
        forms = self.goals.add(claims)
        self.likes, self.forms = [*self.likes, *forms], self.goals.forms
        self.held = [*self.held, *([()] * len(forms))]
        self.source.add(paths, forms)
        self.paths = self.source.paths

    # -- after the agreement -------------------------------------------------------

    def open(
        self, ids: Sequence[int], ties: Sequence[Sequence[int]], asked: bool
    ) -> None:
        """Hear what the source has, if it is not here; see ``TransferPlan``."""
        source, group = self.source, self.rank_group
        self.has_heard = asked and self.order.is_of_one and group.others > 0
        if asked or not group.others:
            hear(source, group, self._check_heard)
        elif self.order.src is not None:
            source.take_as_agreed()
        for i in () if self.order.src is None else ids:
            if source.given[i] is None:
                self.leaf_plans[i] = LeafPlan()
        self.report = source.report
        writes = self.targets is not None
        if ties or writes:
            shared = in_one_buffer(self.goals, self.ties, {*ids}) if writes else ()
            led = filled_as_one(self.goals, ties)
            self.lead(led, shared, "other ranks have one for each")

    def _check_heard(self) -> None:
        """Raise if targets cannot be written that the source is heard to have."""
        if not self.order.strict:
            self._check_targets(is_known=True)

    def again(self, source: StageInput | None, given: Look | None) -> Delivery | None:
        """Return the plan for other leaves of the same forms; see ``TransferPlan``.

        What is tied, or is more than tensors, is looked at anew, and so is what the
        source told.
        """
        known = self.source
        is_told = self.has_heard or known.report or known.makeups
        if given is None or not given.held or is_told or self.twins or self.fault:
            return None
        into, ties = self.targets, self.ties
        targets = into and into.again(source, given, self.spec, ties)
        return replace(
            self,
            source=replace(known, stage_input=source),
            likes=given.leaves,
            held=given.tensors(),
            targets=targets,
            stand_alone=False,
        )

    def check_data(self, ids: Sequence[int]) -> None:
        """Raise if sources lack data or targets are no leaves; see ``TransferPlan``."""
        stage_input, paths = self.source.stage_input, self.paths
        for i in () if self.stand_alone else ids:
            if i < self.source.own:
                check_is_leaf(paths[i], self.likes[i], self.forms[i])
        if stage_input is None or stage_input.is_acted_on or stage_input.stand_alone:
            return
        for i in ids:
            place = self.source.places[i]
            if place >= 0 and self.leaf_plans[i].transfers:
                check_data(paths[i], stage_input.held[place])

    def check_terms(self, ids: Sequence[int], leaves: Sequence[Leaf]) -> None:
        """See ``TransferPlan``; one of several that go to one target is reduced."""
        held = [self.source.tensors(i, x) for i, x in zip(ids, leaves, strict=True)]
        for i, ts in zip(ids[1:], held[1:], strict=True):
            check_same(self.source, ids[0], i, held[0], ts)

    def openings(self) -> list[tuple[str, int]]:
        """Return how the ranks hear what the source has; see ``TransferPlan``."""
        return hearings(self.source) if self.order.is_of_one else []

    def is_here(self, i: int) -> bool:
        """Return whether this rank has a part of a target; see ``TransferPlan``."""
        return self.goals.here[i]

    def stays(self, i: int) -> Sequence[Tensor]:
        """Return the tensors of a target; see ``TransferPlan``."""
        return self.held[i]

    def place_of(self, i: int) -> Leaf:
        """Return a target that is written, or may stay; see ``TransferPlan``."""
        stays = self.targets is not None or self.source.given[i] is None
        return self.likes[i] if stays else None

    def home(self, i: int) -> torch.device | None:
        """Return where a leaf is made anew, if that is told; see ``TransferPlan``."""
        if self.order.device is not None:
            return self.order.device
        found = next((t.device for t in self.held[i] if not t.is_meta), None)
        mesh = getattr(self.likes[i], "device_mesh", None)
        return torch.device(mesh.device_type) if found is None and mesh else found

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
        likes = [self.likes[i] for i in column.ids]
        is_here = self.is_here(column.ids[0])
        old = [t for i in column.ids if is_here for t in self.held[i]]
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

    def _making(
        self,
        fresh: Fresh,
        column: LeafColumn,
        leaves: Sequence[Leaf],
        likes: Sequence[Leaf],
    ) -> Callable[[], Sequence[Leaf]]:
        """Return what makes leaves of tensors that are fresh: at once, if it can."""
        handler, is_more = handler_of(likes[0]), bool(self.source.makeups)
        is_bare = self.stand_alone or not (is_more or handler.locals(likes) is None)
        if handler.over and is_bare:
            return partial(remade, fresh, handler.over, likes)
        return partial(joined, fresh, [*map(self._join, column.ids, leaves)])

    def _join(self, i: int, leaf: Leaf) -> Join:
        """Return what makes a leaf anew of its local tensors, as its target is made."""
        handler = handler_of(self.likes[i])
        _, aux = handler.flatten(self.likes[i])
        return partial(handler.unflatten, self.source.aux(i, leaf, aux))

    # -- each for itself -----------------------------------------------------------

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
        is_whole = not self.leaf_plans[i].is_partial
        if self.targets and leader is not None and ts and is_whole:
            check_led(self.goals, self.leaders[i], i, leader.sources, ts)
        if not self.goals.here[i]:
            return LeafBuffers(like, sources, [()] * count)
        if self.targets is not None:
            into = per_transfer(self.targets.tensors[i], count)
            return LeafBuffers(like, sources, into)
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
        new, held = list[Tensor](), self.held[i]
        if leader is not None:
            new = [t for transfer in leader.targets for t in transfer]
        is_empty = not any(t.numel() for t in new)  # such a tie has several shapes
        if is_empty and [t.size() for t in new] != [t.size() for t in held]:
            new = [made_like(t, self._home(i, t, ts)) for t in held]
        finish, count = partial(self._join(i, leaf), new), len(sources)
        return LeafBuffers(self.likes[i], sources, per_transfer(new, count), finish)

    def _home(self, i: int, t: Tensor, sources: Sequence[Tensor]) -> torch.device:
        """Return where a new local tensor is made: where its target is, if not meta."""
        if self.order.device is None and not t.is_meta:
            return t.device
        found = self.home(i) or (sources[0].device if sources else None)
        return found or self.rank_group.device()
