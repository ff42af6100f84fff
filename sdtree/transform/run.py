"""The run of one tree through stages: what goes where, and then window by window."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Any

from sdtree.errors import SpecMismatch
from sdtree.kinds.abstract import look_at
from sdtree.kinds.calls import Call
from sdtree.tensors.forms import Lay
from sdtree.transform.form import Look
from sdtree.transform.overlap import IN_TURN
from sdtree.transform.selecting import chosen, dropping, left_by, pruned
from sdtree.transform.stages import (
    Action,
    Check,
    CollectiveStage,
    LeafStage,
    Passage,
    PathStage,
    Reach,
    SelectStage,
    Stage,
    StageContext,
    Start,
    TreeStage,
    always,
    communicating,
    failing_together,
    in_other_groups,
    is_left_to,
    next_to_communicate,
)
from sdtree.transform.window import SLICE_BYTES, WINDOW_BYTES, Window, cut
from sdtree.tree.containers import ABSENT
from sdtree.tree.spec import TreeSpec, take
from sdtree.typing import Leaf, Path, Tree

Passed = tuple[Sequence[int], list[Leaf]]
"""Leaves that have passed the steps, with their source positions."""


@dataclass(frozen=True, slots=True)
class Step:
    """An action, and at which position a leaf of the source stands when it acts.

    ``dropped`` are the source positions of the leaves that it has dropped so far.
    """

    action: Action
    spec: TreeSpec
    positions: dict[int, int] | None
    stage: LeafStage | SelectStage
    by_leaf: bool = True
    on_abstract: bool = False
    dropped: set[int] = field(default_factory=set[int], kw_only=True)

    def act(self, ids: Sequence[int], leaves: list[Leaf]) -> list[Leaf]:
        """Return what the action makes of the leaves with these source positions."""
        found = ids if (at := self.positions) is None else [at[i] for i in ids]
        return self.action(Window(self.spec, found, leaves))


@dataclass(slots=True)
class Run:
    """The leaves of a tree, the steps before them, and the structure that results.

    ``ids`` are the source positions of the leaves of ``spec``, in its order. A leaf
    that is not among them passes no step. Of a run that is foretold the leaves of the
    source are not there yet, and stand for themselves without data; ``read`` returns
    what is read for them, by source position, and by -1 what is read for others.
    """

    source: list[Leaf]
    source_spec: TreeSpec
    spec: TreeSpec
    ids: Sequence[int]
    steps: list[Step] = field(default_factory=list[Step])
    checks: list[tuple[Passage, Check]] = field(default_factory=list[Any])
    may_drop: bool = False
    read: Callable[[], Iterable[tuple[int, Leaf]]] = tuple
    lay: Lay | None = None
    reach: Reach = field(default_factory=Reach)

    @classmethod
    def of(cls, tree: Tree, stages: Sequence[Stage], look: Look | None = None) -> Run:
        """Return the run of a tree through a stretch of stages; no leaf is touched.

        It may have been looked at already.
        """
        source, spec, lay = (*take(tree), None) if look is None else look[:3]
        return cls(source, spec, spec, range(len(source)), lay=lay).through(stages)

    @classmethod
    def foretold(
        cls,
        forms: list[Leaf],
        spec: TreeSpec,
        stages: Sequence[Stage],
        beside: Sequence[Leaf] = (),
        read: Callable[[], Iterable[tuple[int, Leaf]]] = tuple,
    ) -> Run:
        """Return the run of leaves that are not there yet.

        With leaves ``beside`` them it is that of a tuple, of the tree and of these.
        They come in turn: what is written must not lie in what is yet to be read.
        """
        spec = spec.beside(len(beside)) if beside else spec
        source, reach = [*forms, *beside], Reach(is_foretold=True)
        run = cls(source, spec, spec, range(len(source)), read=read, reach=reach)
        if run.through(stages).reach.is_whole:
            raise SpecMismatch(IN_TURN)
        return run

    def through(self, stages: Sequence[Stage]) -> Run:
        """Return the run, led on through more stages."""
        for stage in stages:
            self._add(stage)
        return self

    # -- before the first window ---------------------------------------------------

    def _add(self, stage: Stage) -> None:
        if isinstance(stage, PathStage):
            self.spec, old = stage.move(self.spec)
            self.ids = [self.ids[i] for i in old]
        elif isinstance(stage, SelectStage):
            at_once = not self.steps and not self.reach.is_foretold
            if stage.selector.by_name or at_once:
                self.spec, self.ids = chosen(stage, self.spec, self.ids, self.source)
            else:
                self._add_step(dropping(stage, self.spec, self._at_end()), stage)
                self.may_drop = True
        elif isinstance(stage, LeafStage):
            action = self._action(stage)
            self._add_step(action, stage, stage.by_leaf, stage.on_abstract)

    def _action(self, stage: LeafStage) -> Action:
        """Return what a stage does; where it is one way, nothing else is asked."""
        bind: Any = stage.bind
        is_one_way = isinstance(bind, Call) and bind.func is always
        return bind.args[0] if is_one_way else bind(self._entry())

    def _add_step(
        self, action: Action, stage: LeafStage | SelectStage, *how: bool
    ) -> None:
        moved = not isinstance(self.ids, range)
        positions = {i: k for k, i in enumerate(self.ids)} if moved else None
        self.steps.append(Step(action, self.spec, positions, stage, *how))

    def _entry(self) -> StageContext:
        ids, reach = self.ids, self.reach
        leaves = None if self.steps or reach.is_foretold else self._at(ids)
        preview, sources = partial(self._preview, ids), partial(self._sources, ids)
        at_end, lay = self._at_end(), self.lay if isinstance(ids, range) else None
        return StageContext(self.spec, leaves, preview, at_end, lay, sources, reach)

    def _sources(self, ids: Sequence[int]) -> Iterable[tuple[int, Leaf]]:
        """Return what is read for leaves, by their places, and by -1 for others."""
        place = {-1: -1} | {i: k for k, i in enumerate(ids)}
        every = self.read() if self.reach.is_foretold else enumerate(self.source)
        return [(place[i], leaf) for i, leaf in every if i in place]

    def _at_end(self) -> Callable[[Check], None]:
        """Return what takes a check to make of what comes here.

        It does not hold the run, which holds it: a tree lives no longer than its run.
        """
        checks, here = self.checks, Passage(self.ids, self.spec, self.steps[:])
        return lambda check: checks.append((here, check))

    def _left_out(self, here: Passage) -> Window:
        """Return the leaves that are dropped later, as they come to a stage.

        They pass no step, so that one that looks for a leaf may have to look at them.
        """
        passed = {*self.ids}
        place = {i: k for k, i in enumerate(here.ids) if i not in passed}
        left, leaves = self.act([*place], self._at([*place]), here.steps)
        return Window(here.spec, [place[i] for i in left], leaves)

    def _at(self, ids: Sequence[int]) -> list[Leaf]:
        """Return the leaves of the source at these positions."""
        if isinstance(ids, range):
            return self.source
        return [self.source[i] for i in ids]

    def leaves(self) -> list[Leaf]:
        """Return the leaves that are to pass, as the source has them."""
        return self._at(self.ids)

    def foretell(self, forms: Sequence[Leaf]) -> list[Leaf] | None:
        """Return what comes out of leaves without data, if it can be told."""
        return self.act(self.ids, [*forms])[1] if self.is_foreseeable else None

    def pull(self, positions: Sequence[int]) -> list[Leaf]:
        """Return the leaves that come out at these positions."""
        if self.reach.is_whole:
            raise SpecMismatch(IN_TURN)
        return self._pass([self.ids[k] for k in positions])[1]

    def _preview(self, ids: Sequence[int]) -> list[Leaf] | None:
        """Return the leaves as the steps so far will leave them, without their data."""
        if not self.is_foreseeable:
            return None
        forms, _ = look_at(self._at(ids), lambda k: self._source_path(ids[k]))
        return self.act(ids, [*forms])[1]

    @property
    def is_foreseeable(self) -> bool:
        """Return whether the steps act on leaves without data as they will on all."""
        return not self.may_drop and all(step.on_abstract for step in self.steps)

    # -- window by window ----------------------------------------------------------

    def windows(
        self, limit: int | None = None, share: tuple[int, int] = (0, 1)
    ) -> Iterator[Passed]:
        """Yield the leaves that come out, with their source positions.

        A ``share`` is every n-th window, from the k-th on.
        """
        for ids in islice(self.windows_of_stream(limit), share[0], None, share[1]):
            yield self._pass(ids)
        self.check()

    def windows_of_stream(self, limit: int | None = None) -> Iterator[Sequence[int]]:
        """Return the source positions of each window that ``windows`` has."""
        if self.reach.is_whole:
            return iter([self.ids])
        if limit is None:
            by_leaf = all(step.by_leaf for step in self.steps)
            limit = SLICE_BYTES if by_leaf else WINDOW_BYTES
        return cut(self.ids, self.source, self._source_path, limit)

    def _source_path(self, i: int) -> Path:
        return self.source_spec.every_path[i]

    @property
    def is_one_window(self) -> bool:
        """Return whether a call takes all at once: nothing lies between steps."""
        return not self.steps or (len(self.steps) == 1 and not self.may_drop)

    def windows_of_call(self) -> Iterable[Sequence[int]]:
        """Return the source positions of each window that ``call`` has."""
        return [self.ids] if self.is_one_window else self.windows_of_stream()

    def act(
        self,
        ids: Sequence[int],
        leaves: list[Leaf],
        steps: Sequence[Step] | None = None,
    ) -> Passed:
        """Return what steps make of leaves that stand at these source positions."""
        for step in self.steps if steps is None else steps:
            leaves = step.act(ids, leaves)
            if self.may_drop and any(leaf is ABSENT for leaf in leaves):
                kept = left_by(step.dropped, ids, leaves)
                ids, leaves = [ids[k] for k in kept], [leaves[k] for k in kept]
        return ids, leaves

    def _pass(self, ids: Sequence[int]) -> Passed:
        """Return what the steps make of the leaves with these source positions."""
        return self.act(ids, self._at(ids))

    def call(self) -> Tree:
        """Return the tree that results."""
        if not self.is_one_window:
            return self.collect(self.windows())
        _, leaves = self._pass(self.ids)
        self.check()
        return self.spec.make(leaves)

    def collect(self, windows: Iterable[Passed]) -> Tree:
        """Return the tree of what comes out, window by window."""
        made: list[Leaf] = [ABSENT] * len(self.source)
        for ids, leaves in windows:
            for i, leaf in zip(ids, leaves, strict=True):
                made[i] = leaf
        leaves = [made[i] for i in self.ids]
        kept = [leaf for leaf in leaves if leaf is not ABSENT]
        return self.left(leaves).make(kept if self.may_drop else leaves)

    def check(self) -> None:
        """Make the checks that are due when all windows have passed.

        Of leaves that are dropped later and never were there, nobody can say that none
        is what a stage looks for.
        """
        for here, check in self.checks:
            if not self.reach.is_foretold or {*here.ids} <= {*self.ids}:
                check(partial(self._left_out, here))

    def left(self, leaves: Sequence[Leaf]) -> TreeSpec:
        """Return the structure that is left, of leaves of which some are ``ABSENT``."""
        if not self.may_drop:
            return self.spec
        drops = [(x.stage, x.dropped) for x in self.steps]
        gone = {i for i, x in zip(self.ids, leaves, strict=True) if x is ABSENT}
        return pruned(self.spec, self.ids, drops, gone)

    def paths(self) -> dict[int, Path]:
        """Return the path of each leaf that comes out, by its source position."""
        return dict(zip(self.ids, self.spec.paths(), strict=True))


# -- one stretch after the other ---------------------------------------------------


def stretches_of(stages: Sequence[Stage]) -> list[list[Stage]]:
    """Cut the stages where one needs the tree that the stages before it make.

    That is at a stage that takes it whole; where leaves were chosen by what they had
    become, at the next that must know which are left; at one that communicates if one
    before does, or changes leaves as cannot be foretold; and where some are left out
    after one that weighs all. One that makes what was left is skipped if not needed.
    """
    if len(stages) < 2:
        return [[*stages]]
    stretches: list[list[Stage]] = [[]]
    for k, stage in enumerate(stages):
        if isinstance(stage, LeafStage) and stage.makes and is_left_to(stages[k + 1 :]):
            continue
        whole = isinstance(stage, TreeStage)
        if whole or _needs_tree(stage, stretches[-1]):
            stretches.append([])
        stretches[-1].append(stage)
        if whole:
            stretches.append([])
    return [stretch for stretch in stretches if stretch] or [[]]


def _needs_tree(stage: Stage, before: Sequence[Stage]) -> bool:
    """Return whether a stage must know the tree that those before it make."""
    acting = [isinstance(other, (LeafStage, CollectiveStage)) for other in before]
    chosen = any(_by_look(other) and any(acting[:k]) for k, other in enumerate(before))
    joined = [other for other in before if isinstance(other, CollectiveStage)]
    if isinstance(stage, CollectiveStage):
        opaque = any(isinstance(s, LeafStage) and not s.on_abstract for s in before)
        return bool(joined) or chosen or (opaque and stage.needs_forms)
    if isinstance(stage, SelectStage) and stage.selector.by_name:
        return chosen or any(other.weighs for other in joined)
    flows = isinstance(stage, LeafStage) and not stage.is_paired
    return chosen and not flows and not _by_look(stage)


def _by_look(stage: Stage) -> bool:
    return isinstance(stage, SelectStage) and not stage.selector.by_name


def call(
    stretches: Sequence[Sequence[Stage]],
    tree: Tree,
    then: Sequence[Stage] = (),
    start: Start | None = None,
    look: Look | None = None,
) -> Tree:
    """Return what stretches of stages make of a tree, one after the other.

    Ranks that wait at the next stage that communicates, one of ``then`` perhaps, hear
    if one of these fails. Off its source the stages before it do not run. ``start``
    begins the first exchange, if it is prepared, and ``look`` is the tree looked at.
    """
    if len(stretches) == 1 and not then:
        return _begun(stretches[0], tree, start, look)[0]()
    for i, stretch in enumerate(stretches):
        later = [*communicating([*chain(*stretches[i + 1 :], then)])]
        stage = next_to_communicate(stretch)
        if stage is None and later and not later[0].has_tree():
            tree = None
            continue
        others = later if stage is None else in_other_groups(later, stage)
        with failing_together(others, tree):
            run, all_hear = _begun(stretch, tree, start, look)
        start = look = None
        with failing_together(others if all_hear else later, tree):
            tree = run()
    return tree


def _begun(
    stretch: Sequence[Stage], tree: Tree, start: Start | None, look: Look | None
) -> tuple[Callable[[], Tree], bool]:
    """Return what is left of a stretch, and whether all ranks hear if that fails."""
    stage = next((x for x in stretch if isinstance(x, CollectiveStage)), None)
    if stage is None:
        return partial(_stretched, stretch, tree, look), False
    exchange = (start or stage.meeting.start)(tree, stretch, stage)
    return exchange.call, exchange.all_settle


def _stretched(stretch: Sequence[Stage], tree: Tree, look: Look | None) -> Tree:
    """Return what stages make of a tree that do not communicate, or take it whole."""
    if stretch and isinstance(stretch[0], TreeStage):
        return stretch[0].run(tree)
    return Run.of(tree, stretch, look).call()
