"""Delivery: the plan by which leaves take the layouts of another tree."""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from sdtree.errors import LayoutError, Mismatch, SpecMismatch, listed
from sdtree.exchange.beside import makeups_in
from sdtree.exchange.checks import (
    check_data,
    check_is_leaf,
    check_open,
    fault_in,
    fault_in_target,
)
from sdtree.exchange.goals import Goals, check_same_ranks
from sdtree.exchange.hearing import (
    check_fit,
    hear,
    hearings,
    settle_misfits,
    take_values,
    telling,
)
from sdtree.exchange.leaf_plan import LeafPlan, StageInput
from sdtree.exchange.sets import Claim, Sets
from sdtree.exchange.source import DistributeOptions, Source
from sdtree.exchange.targets import Targets
from sdtree.exchange.transfer_plan import TransferPlan
from sdtree.exchange.twins import groups_of, ties_of, unseen
from sdtree.kinds.abstract import by_form, check_layouts, nbytes_of, sight_of
from sdtree.layout.schedule import is_blind
from sdtree.path import where
from sdtree.tensors.bits import same_bits
from sdtree.tree.spec import take
from sdtree.typing import Leaf, Path
from sdtree.wire.agreement import canonical
from sdtree.wire.collectives import RankGroup


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
    twins: dict[int, tuple[int, Hashable]] = field(
        default_factory=dict[int, tuple[int, Hashable]]
    )
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
        goals = Goals.of(order, source, rank_group, likes, forms, layouts, far)
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
            plan._check_sources(stage_input)
        plan._check_fit()
        plan.leaf_plans = goals.leaf_plans()
        plan.twins = plan._twins()
        plan.ties = plan.ties_on(me)
        if order.given.is_written:
            plan.consequence = "the leaves of into= are partly written"
            plan._check_into()
        return plan

    # -- does it fit ---------------------------------------------------------------

    def _check_sources(self, stage_input: StageInput) -> None:
        if self.order.moves and self.order.src is None:
            fault = partial(fault_in, me=self.rank_group.me)
            check_layouts(stage_input.known(), fault, stage_input.paths)
            return
        for path, given in self.source.metadata.given.items():
            if given.layout is not None:
                raise LayoutError(
                    f"{where(path)}: {self.order.verb} takes a whole leaf and this one "
                    "is sharded; use sd.redistribute, or sd.gather first"
                )

    def _check_fit(self) -> None:
        """See that the source fits, or find out what others are to be told of it."""
        order, source = self.order, self.source
        if order.src is None:
            self._check_here()
            if order.reports:
                self.common = f"{order.verb}, with a report"
            return
        strictness = "strict" if order.strict else "not strict"
        told = ", with a report" if order.reports else ""
        self.common = f"{order.verb} from rank {order.src}, {strictness}{told}"
        if self.rank_group.others and self.asks(self.rank_group.me):
            take_values(source)
            telling(source)

    def _check_here(self) -> None:
        """See that the source fits the targets here, if others have none for it."""
        misfit = self.source.misfit()
        if self._is_for_all(misfit):
            self.source.report = misfit
        else:
            check_fit(self.source, misfit)

    def _is_for_all(self, misfit: Mismatch) -> bool:
        """Return whether a misfit is none if other ranks have targets for the rest.

        So have the stages of a pipeline, each for its own part of a source.
        """
        order, found = self.order, bool(misfit.unexpected)
        fits_here = found and not (misfit.missing or misfit.mismatched)
        is_of_one = order.src is not None or not order.moves
        return fits_here and order.strict and is_of_one and not self.rank_group.is_alone

    def supposed(self) -> str:
        """Return what is taken of other ranks; see ``TransferPlan``."""
        report = self.source.report
        if self._is_for_all(report):
            names = listed([*map(where, report.unexpected)])
            return f"other ranks had targets for what has none here: {names}"
        return self.goals.supposed()

    def _check_into(self) -> None:
        held = [
            ts if is_in else ()
            for ts, is_in in zip(self.held, self.goals.here, strict=True)
        ]
        source, ties, me = self.source, self.ties, self.rank_group.me
        self.targets = Targets(self.paths, self.likes, self.goals.here, held)
        if not self.stand_alone:
            self.targets.check_each()
        stage_input = source.stage_input
        self.targets.check_apart(stage_input, ties)
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
            names = " and ".join(where(self.paths[k]) for k in (i, j))
            raise SpecMismatch(
                f"into= has one and the same buffer at {names}, and the leaves of the "
                "source differ; nothing was moved to it, give each its own"
            )

    def _twins(self) -> dict[int, tuple[int, Hashable]]:
        """Return, of leaves that are tied here or there, with which they are.

        That is the first such target, and the tie in the source, None if it is free.
        """
        source = self.source
        is_free = self.order.given.is_written or self.order.src is not None
        tied = {} if is_free else source.metadata.tied
        if self.stand_alone and not tied:
            return {}
        sizes = by_form(nbytes_of, self.forms)
        held = {i: ts for i, ts in enumerate(self.held) if ts and sizes[i]}
        ties = ties_of(held, lambda _: None)
        first = {i: group[0] for group in ties for i in group}
        others = (i for i in held if tied and self.paths[i] in tied)
        return {
            i: (first.get(i, i), None if is_free else source.tie_of(i))
            for i in sorted({*first, *others})
        }

    def asks(self, me: int) -> bool:
        """Return whether a rank must hear what the source has; see ``TransferPlan``."""
        if self.order.src is None:
            return self.order.reports or self._is_for_all(self.source.report)
        if me not in self.asking:
            self.asking[me] = not self.source.is_agreed_on(me)
        return self.asking[me]

    def ties_on(self, me: int) -> list[list[int]]:
        """Return the targets that a rank would fill as one; see ``TransferPlan``.

        It knows of no ties but those of which it has a part.
        """
        found: dict[int, Hashable] = {}
        for i, (target, source) in self.twins.items():
            layout, given = self.goals.at[i], self.source.given[i]
            if not self.goals.leaf_plan(i, me).is_blind:
                is_far = given is None or is_blind(given.layout, me)
                seen = None if is_blind(layout, me) else target
                found[i] = seen, None if is_far else source, layout
        return groups_of(found) if found else []

    def unseen_ties(self) -> list[list[int]]:
        """Return the leaves that may be tied; see ``TransferPlan``."""
        given = (x and x.layout for x in self.source.given)
        return unseen(
            self.rank_group.me, self.goals.forms, zip(self.goals.at, given, strict=True)
        )

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
        src, source, group = self.order.src, self.source, self.rank_group
        tells = src is not None or not self.order.moves
        self.has_heard = asked and tells and group.others > 0
        if src is not None:
            if not group.others:
                self._check_here()
            elif asked:
                hear(source, group, src)
            else:
                source.take_as_agreed()
            for i in ids:
                if source.given[i] is None:
                    self.leaf_plans[i] = LeafPlan()
        elif asked and group.others and not self.order.moves:
            settle_misfits(source, group)
        self.report = source.report
        shared = self._shared_by({*ids}) if self.targets is not None else ()
        if ties or self.targets is not None:
            led = self._filled_as_one(ties)
            self.lead(led, shared, "other ranks have one for each")

    def _shared_by(self, ids: Container[int]) -> Iterator[Sequence[int]]:
        """Yield of some leaves those that go into one buffer here.

        They come one after the other, and may differ.
        """
        given, me = self.source.given, self.rank_group.me
        for group in self.ties:
            found = [i for i in group if i in ids and given[i] is not None]
            yield [i for i in found if not is_blind(self.goals.at[i], me)]

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
            self._check_same(ids[0], i, held[0], ts)

    def openings(self) -> list[tuple[str, int]]:
        """Return how the ranks hear what the source has; see ``TransferPlan``."""
        hears = self.order.src is not None or not self.order.moves
        return hearings(self.source) if hears else []

    def _filled_as_one(self, ties: Sequence[Sequence[int]]) -> Iterator[Sequence[int]]:
        """Yield the parts of ties of targets that are filled once.

        New ones are if their sources are tied; given ones are in any case one.
        """
        source = self.source
        asks = self.order.src is not None and not self.order.given.is_written
        for group in ties:
            found = [i for i in group if source.given[i] is not None]
            yield from groups_of({i: source.tie_of(i) if asks else 0 for i in found})

    def is_here(self, i: int) -> bool:
        """Return whether this rank has a part of a target; see ``TransferPlan``."""
        return self.goals.here[i]

    def stays(self, i: int) -> Sequence[Tensor]:
        """Return the tensors of a target; see ``TransferPlan``."""
        return self.held[i]

    def home(self, i: int) -> torch.device | None:
        """Return where a leaf is made anew, if that is told; see ``TransferPlan``."""
        if self.order.device is not None:
            return self.order.device
        found = next((t.device for t in self.held[i] if not t.is_meta), None)
        mesh = getattr(self.likes[i], "device_mesh", None)
        return torch.device(mesh.device_type) if found is None and mesh else found
