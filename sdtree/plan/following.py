"""What a run of a transform will do on every rank, found out without data or messages.

It follows the run: the same courses, deals and windows, on leaves without their data.
Where the run sends this counts, and where it makes tensors this adds up their bytes,
for all ranks at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sdtree.exchange.exchange_plan import Proposal
from sdtree.exchange.joint import layouts_of, nbytes_of, wholes_of
from sdtree.exchange.leaf_plan import Leg
from sdtree.exchange.windows import Batch, cut
from sdtree.kinds.abstract import Abstract
from sdtree.path import where
from sdtree.plan.cost import (
    agreement,
    bytes_moved,
    bytes_on,
    legs_of,
    mask_of,
    planned_team,
    shipment,
)
from sdtree.plan.traffic import Ranks, Tally
from sdtree.tensors.storage import bytes_of, covered_bytes, tie_groups
from sdtree.transform.run import Course, Step, runs_of
from sdtree.transform.stages import (
    Choosing,
    Communicating,
    Stage,
    Whole,
    next_to_communicate,
)
from sdtree.transform.window import apart_in
from sdtree.tree.spec import take
from sdtree.typing import Leaf, Path, Tree

Memory = dict[str, Tensor]
"""Bytes on each rank, by the kind of device on which they lie."""


class Moved(NamedTuple):
    """The bytes of a leaf that each rank has sent, and received."""

    sent: Tensor
    received: Tensor

    def and_also(self, other: Moved) -> Moved:
        """Return both together."""
        return Moved(self.sent + other.sent, self.received + other.received)


class Held(NamedTuple):
    """A leaf on its way: what it is, and its bytes on each rank, on a kind of device.

    ``is_new``: the run has made them. ``source`` is where it came from, and what it was
    there; None for a leaf of ``like=``. ``ranks`` are those that have it, None if all.
    """

    form: Abstract
    nbytes: Tensor
    home: str
    is_new: bool = False
    source: tuple[Path, Abstract] | None = None
    ranks: Ranks | None = None
    moved: Moved | None = None


Known = dict[Path, Held]


@dataclass(slots=True)
class Planning:
    """What is known so far of a run, for all ranks of a group.

    ``alive`` is what the run has made and still holds, ``peaks`` the most of it at a
    time; ``streamed`` the most where nothing is held that has passed.
    """

    ranks: Ranks
    me: int
    tally: Tally
    alive: Memory = field(default_factory=dict[str, Tensor])
    peaks: Memory = field(default_factory=dict[str, Tensor])
    streamed: Memory = field(default_factory=dict[str, Tensor])
    windows: int = 0
    notes: list[str] = field(default_factory=list[str])

    def first(self, tree: Tree) -> Known:
        """Return what is known of the leaves of a tree before the run."""
        leaves, spec = take(tree)
        parts = apart_in(spec, leaves)
        own, owners = [0] * len(leaves), parts.owners()
        for i, t in zip(owners, parts.tensors, strict=True):
            own[i] += bytes_of(t)
        followers: set[int] = set()
        for group in tie_groups(parts.tensors):
            leader, *others = dict.fromkeys(owners[k] for k in group)
            own[leader] = covered_bytes([parts.tensors[k] for k in group])
            followers.update(others)
        return {
            path: self._found(path, leaf, 0 if i in followers else own[i])
            for i, (path, leaf) in enumerate(zip(spec.paths(), leaves, strict=True))
        }

    def _found(self, path: Path, leaf: Leaf, own: int) -> Held:
        form = Abstract.of(leaf)
        nbytes = self.tally.nothing() + own
        if own and form.layout is not None:
            nbytes = self._on_ranks(form)
        ranks = None if form.layout is None else form.layout.ranks
        return Held(form, nbytes, home_of(leaf), False, (path, form), ranks)

    def _on_ranks(self, form: Abstract) -> Tensor:
        """Return the bytes that each rank has of a leaf of a form."""
        if form.layout is None or form.dtype is None:
            return self.tally.nothing() + nbytes_of(form)
        parts = zip(layouts_of(form.layout), wholes_of(form), strict=True)
        held = [bytes_on(part, dtype, self.ranks) for part, (_, dtype) in parts]
        return torch.stack(held).sum(0)

    # -- runs ----------------------------------------------------------------------

    def follow(
        self, tree: Tree, stages: Sequence[Stage], held: Known
    ) -> tuple[Tree, Known]:
        """Return what stages make of a tree, without data, and what is known of it."""
        for run in runs_of(stages):
            if run and isinstance(run[0], Whole):
                tree, held = self._inside(tree, run[0], held)
                continue
            stage = next_to_communicate(run)
            if stage is None:
                course, made = self._local(tree, run, held)
            else:
                course, made = self._across(tree, run, stage, held)
            leaves = [made[i] for i in course.ids]
            tree = course.spec.make([x.form for x in leaves])
            held = dict(zip(course.spec.paths(), leaves, strict=True))
        return tree, held

    def _inside(self, tree: Tree, stage: Whole, held: Known) -> tuple[Tree, Known]:
        forms = {id(x.form) for x in held.values()}
        if stage.by_name or forms.isdisjoint(map(id, take(tree)[0])):
            matched, rest = stage.split(tree)
        else:  # there is no data to look at
            self._note(f"{stage.text}: counted as if it matched all that come to it")
            matched, rest = tree, None
        made, found = self.follow(matched, stage.inside, held)
        if not stage.inside:
            return self._called(made, stage, found)
        whole = made if rest is None else stage.join(made, rest)
        paths = take(whole)[1].paths()
        return whole, {path: found.get(path) or held[path] for path in paths}

    def _called(self, tree: Tree, stage: Whole, held: Known) -> tuple[Tree, Known]:
        """Call a function of the tree on leaves without data."""
        self._note(f"{stage.text}: called on leaves without data")
        given = [x._replace(form=replace(x.form)) for x in held.values()]
        known = {id(x.form): x for x in given}
        made, spec = take(stage.join(take(tree)[1].make(x.form for x in given), None))
        found = {
            path: known.get(id(leaf)) or self._new(path, leaf)
            for path, leaf in zip(spec.paths(), made, strict=True)
        }
        fresh = (x for x in found.values() if id(x.form) not in known)
        self.alive = _sum(self.alive, _new_in(fresh))
        return spec.make(x.form for x in found.values()), found

    def _new(self, path: Path, leaf: Leaf) -> Held:
        """Return a leaf that a function has made; where it is first is its source."""
        form = Abstract.of(leaf)
        return Held(form, self._on_ranks(form), home_of(leaf), True, (path, form))

    def _local(
        self, tree: Tree, run: Sequence[Stage], held: Known
    ) -> tuple[Course, dict[int, Held]]:
        """Follow a run in which nothing communicates."""
        course = Course.of(tree, run)
        paths = course.source_spec.paths()
        made: dict[int, Held] = {}
        for ids in course.windows_of_call():
            passed = self._pass(course.steps, ids, [held[paths[i]] for i in ids])
            self.alive = _sum(self.alive, _new_in(passed))
            self.windows += bool(course.steps)
            made.update(zip(ids, passed, strict=True))
        return course, made

    # -- steps ---------------------------------------------------------------------

    def _pass(
        self, steps: Sequence[Step], ids: Sequence[int], leaves: list[Held]
    ) -> list[Held]:
        """Return what steps make of a window, and note what it takes."""
        self._peak(_new_in(leaves))
        for step in steps:
            before, leaves = leaves, self._act(step, ids, leaves)
            kept = {*map(id, before)}
            more = [x for x in leaves if id(x) not in kept]
            self._peak(_sum(_new_in(before), _new_in(more)))
        return leaves

    def _act(self, step: Step, ids: Sequence[int], leaves: list[Held]) -> list[Held]:
        stage = step.stage
        if isinstance(stage, Choosing):
            self._note(f"{stage.text}: counted as if it kept all that come to it")
            return leaves
        forms: list[Leaf] = [held.form for held in leaves]
        if step.on_abstract:
            forms = step.act(ids, forms)
        elif stage.copies:
            self._note(f"{stage.text}: counted as if it made leaves of the same sizes")
        home = None if stage.device is None else stage.device.type
        copied = [
            stage.copies and not (step.on_abstract and x.form is form)
            for x, form in zip(leaves, forms, strict=True)
        ]
        return [*map(_after, leaves, forms, copied, [home] * len(leaves))]

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _peak(self, held: Memory) -> None:
        self.streamed = _greatest(self.streamed, held)
        self.peaks = _greatest(self.peaks, _sum(self.alive, held))

    # -- where ranks exchange leaves -----------------------------------------------

    def _across(
        self, tree: Tree, run: Sequence[Stage], stage: Communicating, held: Known
    ) -> tuple[Course, dict[int, Held]]:
        """Follow a run with a stage that communicates."""
        team = planned_team(stage, self.ranks, self.me)
        if stage.src is not None and team.me != stage.src:
            raise ValueError(
                f"{stage.text}: it takes the tree of rank {stage.src}, and this is "
                f"rank {team.me}; explain it there"
            )
        offered = Proposal.of(tree, run, stage, team)
        proposal, ties, told = offered.foreseen()
        if told:
            self._note(
                f"{stage.text}: counted as if no other ranks held leaves at the paths "
                "that only some ranks hold"
            )
        legs = legs_of(offered.deal, team.me)
        agreement(self.tally, offered, legs, self.ranks, told)
        if team.ranks[1:]:
            self._note_ties(offered)
        deal = proposal.deal
        deal.open([*proposal.keys], ties, proposal.asks(team.me))
        if deal.plan.fault is not None:
            raise deal.plan.fault
        before = Course.of(tree, run[: run.index(stage)])
        begins = self._begins(before, stage, held)
        legs, made = legs_of(deal, team.me), dict[int, Held]()
        for batch in cut(proposal.order, deal, legs, stage.bucket_bytes):
            self.windows += 1
            come = self._pulled(before, proposal, batch, begins)
            scratch = shipment(self.tally, proposal, batch, legs, self.ranks)
            taken = [self._taken(proposal, i, legs[i], come.get(i)) for i in batch.ids]
            kept = {*map(id, come.values())}
            more = [x for x in taken if id(x) not in kept]
            home = batch.channel.device if batch.channel else "cpu"
            self._peak(_sum(_new_in(come.values()), _new_in(more), {home: scratch}))
            passed = self._pass(proposal.after.steps, batch.ids, taken)
            self.alive = _sum(self.alive, _new_in(passed))
            made.update(zip(batch.ids, passed, strict=True))
        report = Held(Abstract.of(deal.report), self.tally.nothing(), "cpu")
        passed = self._pass(
            proposal.after.steps, proposal.beside, [report] * len(proposal.beside)
        )
        made.update(zip(proposal.beside, passed, strict=True))
        return proposal.after, made

    def _note_ties(self, proposal: Proposal) -> None:
        """Note which ties cannot be seen here, and which do not come to be."""
        text, deal = proposal.stage.text, proposal.deal
        for groups, told in (
            (deal.unseen_ties(), "may be tied, which is not seen on this rank"),
            (deal.untied(), "share memory here, and their wholes have each its own"),
        ):
            for group in groups:
                names = [where(proposal.paths[i]) for i in group if i in proposal.keys]
                more = f" and {len(names) - 3} more" if names[3:] else ""
                if names[1:]:
                    self._note(f"{text}: {', '.join(names[:3])}{more} {told}")

    def _begins(
        self, before: Course, stage: Communicating, held: Known
    ) -> dict[Path, tuple[int, Held]]:
        """Return what comes to a stage, by its path there, and its place before."""
        paths = before.source_spec.paths()
        places = zip(before.spec.paths(), before.ids, strict=True)
        found = {path: (i, held[paths[i]]) for path, i in places}
        if stage.src is None:
            return found
        mask = self._mask((stage.src,))
        return {
            path: (i, x._replace(nbytes=x.nbytes * mask))
            for path, (i, x) in found.items()
        }

    def _pulled(
        self,
        before: Course,
        proposal: Proposal,
        batch: Batch,
        begins: Mapping[Path, tuple[int, Held]],
    ) -> dict[int, Held]:
        """Return the leaves of a window as they come to the stage, by position."""
        ids = [i for i in batch.ids if proposal.paths[i] in begins]
        found = [begins[proposal.paths[i]] for i in ids]
        leaves = self._pass(before.steps, [k for k, _ in found], [x for _, x in found])
        return dict(zip(ids, leaves, strict=True))

    def _taken(self, proposal: Proposal, i: int, leg: Leg, come: Held | None) -> Held:
        """Return a leaf as it comes out of the stage."""
        deal = proposal.deal
        form, ends, home = Abstract.of(deal.plan.forms[i]), deal.ends(i), deal.home(i)
        if come is None:
            there = "cpu" if home is None else home.type
            come = Held(form, self._on_ranks(form), there)
        is_tied = i in deal.plan.leaders
        if not leg.lanes and not is_tied:
            if ends is None and form is come.form:
                return come
            nbytes = come.nbytes if ends is None else come.nbytes * self._mask(ends)
            return come._replace(form=form, nbytes=nbytes, ranks=ends)
        nbytes, moved = self.tally.nothing(), come.moved
        for lane in () if is_tied else leg.lanes:
            if leg.moves:
                nbytes = nbytes + bytes_on(lane.target, lane.dtype, self.ranks)
                went = Moved(*bytes_moved(lane, self.ranks))
                moved = went if moved is None else moved.and_also(went)
        if not leg.moves and not is_tied:
            nbytes = self._on_ranks(form)
        return come._replace(
            form=form,
            nbytes=nbytes if ends is None else nbytes * self._mask(ends),
            home=come.home if home is None else home.type,
            is_new=deal.plan.targets is None,
            ranks=ends,
            moved=moved,
        )

    def _mask(self, ranks: Ranks) -> Tensor:
        return mask_of(ranks, self.ranks)


def home_of(leaf: Leaf) -> str:
    """Return the kind of device that a leaf lies on, or that it stands for."""
    mesh = getattr(leaf, "device_mesh", None)
    if mesh is not None:
        return mesh.device_type
    found = getattr(getattr(leaf, "device", None), "type", "cpu")
    return "cpu" if found == "meta" else found


def _after(held: Held, form: Abstract, copied: bool, home: str | None) -> Held:
    """Return what a step makes of a leaf: the same object if it lets it be."""
    before, there = held.form, held.home if home is None else home
    changed = form.dtype != before.dtype or there != held.home
    if form.dtype is None or not (copied or changed):
        return held
    old = nbytes_of(before)
    nbytes = held.nbytes * nbytes_of(form) // old if old else held.nbytes
    return held._replace(form=form, nbytes=nbytes, home=there, is_new=True)


def _new_in(leaves: Iterable[Held]) -> Memory:
    """Return what the run has made of some leaves."""
    found: Memory = {}
    for held in leaves:
        if held.is_new:
            at = found.get(held.home)
            found[held.home] = held.nbytes if at is None else at + held.nbytes
    return found


def _sum(*memories: Memory) -> Memory:
    return _merged(torch.add, memories)


def _greatest(*memories: Memory) -> Memory:
    return _merged(torch.maximum, memories)


def _merged(
    act: Callable[[Tensor, Tensor], Tensor], memories: Sequence[Memory]
) -> Memory:
    found: Memory = {}
    for memory in memories:
        for home, nbytes in memory.items():
            at = found.get(home)
            found[home] = nbytes if at is None else act(at, nbytes)
    return found
