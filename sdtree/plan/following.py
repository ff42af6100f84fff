"""What a run of a transform will do on every rank, found out without data or messages.

It goes as the run does: the same plans and windows, on leaves without their data.
Where the run sends this counts, and where it makes tensors this adds up their bytes,
for all ranks at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from sdtree.errors import LayoutError, NameCollision, NoMatch, SpecMismatch, UnknownLeaf
from sdtree.exchange.exchange_plan import ExchangePlan
from sdtree.exchange.sets import NO_OTHERS
from sdtree.exchange.windows import ExchangeWindow, cut
from sdtree.kinds.abstract import Abstract
from sdtree.ops.choosing import mask_of
from sdtree.plan.cost import agreement, bytes_of_form, planned_rank_group, shipment
from sdtree.plan.exchanged import begins_of, leaf_plans_of, taken_of, ties_noted
from sdtree.plan.held import (
    Come,
    Known,
    LeafCost,
    Memory,
    after,
    beside,
    greatest,
    home_of,
    made_in,
    new_in,
    tied_anew,
    total,
)
from sdtree.plan.inside import inside_of
from sdtree.plan.traffic import Ranks, RankTraffic
from sdtree.tensors.outcome import bytes_taken
from sdtree.transform.run import Run, Step, stretches_of
from sdtree.transform.selecting import left_by
from sdtree.transform.stages import (
    CollectiveStage,
    LeafStage,
    SelectStage,
    Stage,
    TreeStage,
    next_to_communicate,
)
from sdtree.transform.window import apart_in
from sdtree.tree.containers import ABSENT
from sdtree.tree.spec import take
from sdtree.typing import Leaf, Path, Tree

REFUSALS = (LayoutError, NameCollision, NoMatch, SpecMismatch, UnknownLeaf)
"""The errors that say that a tree does not fit a stage."""


@dataclass(slots=True)
class Following:
    """What is known so far of a run, for all ranks of a group.

    ``alive`` is what the run has made and still holds, ``peaks`` the most of it at a
    time; ``streamed`` the most where only what a stretch has ``begun`` with is held.
    ``is_supposed``: other leaves may come to a stage than are counted. ``given``: the
    leaves, as identities, with which the run begins; ``around``: those of the trees of
    which a part is followed.
    """

    ranks: Ranks
    me: int
    traffic: RankTraffic
    alive: Memory = field(default_factory=dict[str, Tensor])
    begun: Memory = field(default_factory=dict[str, Tensor])
    peaks: Memory = field(default_factory=dict[str, Tensor])
    streamed: Memory = field(default_factory=dict[str, Tensor])
    windows: int = 0
    notes: list[str] = field(default_factory=list[str])
    is_supposed: bool = False
    given: frozenset[int] = frozenset()
    around: list[LeafCost] = field(default_factory=list[LeafCost])

    def first(self, tree: Tree) -> Known:
        """Return what is known of the leaves of a tree before they run."""
        leaves, spec = take(tree)
        self.given = frozenset(map(id, leaves))
        parts = apart_in(spec, leaves)
        own: list[list[Tensor]] = [[] for _ in leaves]
        for i, t in zip(parts.owners(), parts.tensors, strict=True):
            own[i].append(t)
        return {
            path: self._found(path, leaf, tuple(ts))
            for path, leaf, ts in zip(spec.paths(), leaves, own, strict=True)
        }

    def _found(self, path: Path, leaf: Leaf, ts: tuple[Tensor, ...]) -> LeafCost:
        form = Abstract.of(leaf)
        nbytes = self.traffic.nothing() + sum(map(bytes_taken, ts))
        if form.layout is not None:
            nbytes = bytes_of_form(form, self.ranks)
        ranks = None if form.layout is None else form.layout.ranks
        source = path, form
        return LeafCost(form, nbytes, home_of(leaf), False, source, ranks, ts=ts)

    def follow(
        self, tree: Tree, stages: Sequence[Stage], held: Known
    ) -> tuple[Tree, Known]:
        """Return what stages make of a tree, without data, and what is known of it."""
        for stretch in stretches_of(stages):
            try:
                tree, held = self._through(tree, stretch, held)
            except REFUSALS as error:
                if not self.is_supposed:
                    raise
                texts = " | ".join(stage.text for stage in stretch)
                self._note(
                    f"{texts}: not counted, nor what follows, for that depends on "
                    f"what was only supposed ({error})"
                )
                break
        return tree, held

    def _through(
        self, tree: Tree, stretch: Sequence[Stage], held: Known
    ) -> tuple[Tree, Known]:
        """Follow stages between which the tree need not be known.

        What comes before them is called, in a stream as well.
        """
        self.alive = made_in([*self.around, *held.values()])
        self.begun, self.streamed = self.alive, self.peaks
        if stretch and isinstance(stretch[0], TreeStage):
            made = self._inside(tree, stretch[0], held)
            self.streamed = self.peaks  # what is inside is called as well
            return made
        if self._is_without_data(tree, held):
            stretch = [stage for stage in stretch if not self._keeps_all(stage)]
        stage = next_to_communicate(stretch)
        if stage is None:
            run, made = self._local(tree, stretch, held)
        else:
            run, made = self._across(tree, stretch, stage, held)
        spec = run.left([made.get(i, ABSENT) for i in run.ids])
        leaves = [made[i].counted() for i in run.ids if i in made]
        tree = spec.make([x.form for x in leaves])
        return tree, dict(zip(spec.paths(), leaves, strict=True))

    def _is_without_data(self, tree: Tree, held: Known) -> bool:
        """Return whether leaves of a tree stand for those that a run would have."""
        forms = {id(x.form) for x in held.values()} - self.given
        return not forms.isdisjoint(map(id, take(tree)[0]))

    def _keeps_all(self, stage: Stage) -> bool:
        """Return whether a stage would look at data that is not there, and note so."""
        looks = isinstance(stage, SelectStage) and not stage.selector.by_form
        if looks:
            self._suppose(stage, "it kept all that come to it")
        return looks

    def _inside(self, tree: Tree, stage: TreeStage, held: Known) -> tuple[Tree, Known]:
        if stage.by_form or not self._is_without_data(tree, held):
            matched, rest = stage.split(tree)
        else:  # there is no data to look at
            self._suppose(stage, "it matched all that come to it")
            matched, rest = tree, None
        if not stage.inside:
            own = {path: held[path] for path in take(matched)[1].paths()}
            return self._called(matched, stage, own)
        around, self.around = self.around, [*self.around, *held.values()]
        made, found = self.follow(matched, stage.inside, held)
        self.around = around
        whole = made if rest is None else stage.join(made, rest)
        paths = take(whole)[1].paths()
        return whole, {path: found.get(path) or held[path] for path in paths}

    def _called(self, tree: Tree, stage: TreeStage, held: Known) -> tuple[Tree, Known]:
        """Call a function of the tree on leaves without data."""
        self._note(f"{stage.text}: called on leaves without data")
        given = [x._replace(form=replace(x.form)) for x in held.values()]
        known = {id(x.form): x for x in given}
        made, spec = take(stage.join(take(tree)[1].make(x.form for x in given), None))
        origins = {} if stage.origins is None else stage.origins(tree)
        parts = {path: [held[p] for p in own] for path, own in origins.items()}
        found = {
            path: known.get(id(leaf))
            or self._new(path, leaf, stage.is_lazy).made_of(parts.get(path, ()))
            for path, leaf in zip(spec.paths(), made, strict=True)
        }
        self.alive = total(self.alive, new_in(found.values()))
        leaves = [x.counted() for x in found.values()]
        return spec.make(x.form for x in leaves), dict(zip(found, leaves, strict=True))

    def _new(self, path: Path, leaf: Leaf, is_unmade: bool) -> LeafCost:
        """Return a leaf that a stage has made; where it is first is its source."""
        form = Abstract.of(leaf)
        found = LeafCost(
            form, bytes_of_form(form, self.ranks), home_of(leaf), source=(path, form)
        )
        return found._replace(is_new=not is_unmade, is_unmade=is_unmade)

    def _local(
        self, tree: Tree, stretch: Sequence[Stage], held: Known
    ) -> tuple[Run, dict[int, LeafCost]]:
        """Follow stages of which none communicates."""
        run = Run.of(tree, stretch)
        paths = run.source_spec.paths()
        made: dict[int, LeafCost] = {}
        streamed = self.streamed
        for ids in run.windows_of_call():
            passed = self._pass(run.steps, ids, [held[paths[i]] for i in ids])
            self.alive = total(self.alive, new_in(passed.values()))
            self.windows += bool(run.steps)
            made |= passed
        cuts = [*run.windows_of_stream()] if run.is_one_window else []
        if cuts[1:]:  # a call takes at once what comes window by window in a stream
            peaks, self.streamed = self.peaks, streamed
            for ids in cuts:
                self._pass(run.steps, ids, [held[paths[i]] for i in ids])
            self.peaks = peaks
        return run, made

    # -- steps ---------------------------------------------------------------------

    def _pass(
        self, steps: Sequence[Step], ids: Sequence[int], leaves: list[LeafCost]
    ) -> dict[int, LeafCost]:
        """Return what steps make of a window, by position, and note what it takes."""
        self._peak(new_in(leaves))
        for step in steps:
            if isinstance(step.stage, SelectStage):
                ids, leaves = self._chosen(step, step.stage, ids, leaves)
                continue
            leaves = self._acted(step, step.stage, ids, leaves, [])
        return dict(zip(ids, leaves, strict=True))

    def _acted(
        self,
        step: Step,
        stage: LeafStage,
        ids: Sequence[int],
        leaves: list[LeafCost],
        around: list[LeafCost],
    ) -> list[LeafCost]:
        """Follow a step, and note what is there meanwhile beside what is ``around``.

        Of one that acts on some leaves those pass what it has inside, one by one.
        """
        around = [*around, *beside(around, leaves)]
        found = inside_of(step, stage, ids, leaves)
        if found is None:
            made = self._act(step, stage, ids, leaves)
            self._peak(new_in([*around, *beside(around, made)]))
            return made
        hits, steps = found
        own, inside = [ids[k] for k in hits], [leaves[k] for k in hits]
        for inner, each in steps:
            inside = self._acted(inner, each, own, inside, around)
        made = dict(zip(hits, inside, strict=True))
        return [made.get(k, held) for k, held in enumerate(leaves)]

    def _chosen(
        self,
        step: Step,
        stage: SelectStage,
        ids: Sequence[int],
        leaves: list[LeafCost],
    ) -> tuple[Sequence[int], list[LeafCost]]:
        """Return the leaves that are kept, all where that depends on their data."""
        if self._keeps_all(stage):
            return ids, leaves
        forms = step.act(ids, [held.form for held in leaves])
        kept = left_by(step.dropped, ids, forms)
        return [ids[k] for k in kept], [leaves[k] for k in kept]

    def _act(
        self,
        step: Step,
        stage: LeafStage,
        ids: Sequence[int],
        leaves: list[LeafCost],
    ) -> list[LeafCost]:
        forms: list[Leaf] = [held.form for held in leaves]
        if step.on_abstract:
            forms = step.act(ids, forms)
        elif stage.copies or not stage.is_paired:
            self._suppose(stage, "it made leaves of the same kinds and sizes")
        copied = [
            stage.copies and not (step.on_abstract and x.form is form)
            for x, form in zip(leaves, forms, strict=True)
        ]
        leaves = [x.come_to_be() for x in leaves] if stage.makes else leaves
        homes = [None if stage.device is None else stage.device.type] * len(ids)
        made = [*map(after, leaves, forms, copied, homes)]
        by_function = not (step.on_abstract or stage.is_paired or mask_of(stage))
        return [x.untied() for x in made] if by_function else tied_anew(leaves, made)

    def _suppose(self, stage: Stage, what: str) -> None:
        self.is_supposed = True
        self._note(f"{stage.text}: counted as if {what}")

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _peak(self, held: Memory) -> None:
        self.streamed = greatest(self.streamed, total(self.begun, held))
        self.peaks = greatest(self.peaks, total(self.alive, held))

    # -- where ranks exchange leaves -----------------------------------------------

    def _across(
        self, tree: Tree, stretch: Sequence[Stage], stage: CollectiveStage, held: Known
    ) -> tuple[Run, dict[int, LeafCost]]:
        """Follow stages of which one communicates."""
        rank_group = planned_rank_group(stage, self.ranks, self.me)
        if stage.src is not None and rank_group.me != stage.src:
            raise ValueError(
                f"{stage.text}: it takes the tree of rank {stage.src}, and this is "
                f"rank {rank_group.me}; explain it there"
            )
        offered = ExchangePlan.of(tree, stretch, stage, rank_group)
        plan, ties, told = offered.foreseen()
        if told:
            self._suppose(stage, NO_OTHERS)
        leaf_plans = leaf_plans_of(offered.transfers, rank_group.me)
        agreement(self.traffic, offered, leaf_plans, self.ranks, told)
        if rank_group.ranks[1:]:
            for note in ties_noted(offered, leaf_plans):
                self._note(note)
        transfers = plan.transfers
        transfers.open([*plan.keys], ties, plan.asks(rank_group.me))
        if transfers.fault is not None:
            raise transfers.fault
        if supposed := transfers.supposed():
            self._suppose(stage, supposed)
        before = Run.of(tree, stretch[: stretch.index(stage)])
        begins = begins_of(before, stage, held, self.ranks)
        return plan.after, self._exchanged(plan, rank_group.me, before, begins)

    def _exchanged(
        self, plan: ExchangePlan, me: int, before: Run, begins: Mapping[Path, Come]
    ) -> dict[int, LeafCost]:
        """Follow the windows of an exchange, and the report if one is asked for."""
        transfers, limit = plan.transfers, plan.stage.bucket_bytes
        leaf_plans, made = leaf_plans_of(transfers, me), dict[int, LeafCost]()
        for window in cut(plan.order, transfers, limit, leaf_plans):
            self.windows += 1
            come = self._pulled(before, plan, window, begins)
            scratch = shipment(self.traffic, plan, window, leaf_plans, self.ranks)
            taken = [
                taken_of(plan, i, leaf_plans[i], come.get(i), self.ranks)
                for i in window.ids
            ]
            more = beside(come.values(), taken)
            there = {window.comm.device if window.comm else "cpu": scratch}
            self._peak(total(new_in([*come.values(), *more]), there))
            passed = self._pass(plan.after.steps, window.ids, taken)
            self.alive = total(self.alive, new_in(passed.values()))
            made |= passed
        report = LeafCost(Abstract.of(transfers.report), self.traffic.nothing(), "cpu")
        reports = [report] * len(plan.beside)
        return made | self._pass(plan.after.steps, plan.beside, reports)

    def _pulled(
        self,
        before: Run,
        plan: ExchangePlan,
        window: ExchangeWindow,
        begins: Mapping[Path, Come],
    ) -> dict[int, LeafCost]:
        """Return the leaves of a window as they come to the stage, by position."""
        parts = {i: plan.transfers.origins(i) for i in window.ids}
        found = {i: [begins[p] for p in parts[i] if p in begins] for i in parts}
        every = {k: x for come in found.values() for k, x in come}
        passed = self._pass(before.steps, [*every], [*every.values()])
        return {
            i: passed[come[0][0]].made_of([passed[k] for k, _ in come])
            for i, come in found.items()
            if come
        }
