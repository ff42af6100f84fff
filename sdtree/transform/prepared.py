"""A transform that is ready: planned and agreed on once, and then run many times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import dropwhile, takewhile
from typing import Any, Final, NamedTuple, NoReturn, final

from sdtree.errors import SpecMismatch
from sdtree.kinds.calls import Call
from sdtree.kinds.strangers import reject_file_names
from sdtree.path import where
from sdtree.tensors.modes import uncompiled
from sdtree.text.showing import html_of
from sdtree.text.table import readable_bytes
from sdtree.transform.form import Fitting, Look, Looks
from sdtree.transform.results import Results
from sdtree.transform.run import Run, call, stretches_of
from sdtree.transform.stages import (
    CollectiveStage,
    LeafStage,
    PathStage,
    Preparation,
    SelectStage,
    Stage,
    TreeStage,
    communicating,
    failing_together,
    in_other_groups,
    next_to_communicate,
)
from sdtree.transform.window import handled
from sdtree.tree.alike import Like
from sdtree.tree.pairing import is_data
from sdtree.tree.spec import TreeSpec, take
from sdtree.typing import Tree

PLANNED_IN: Final = "sdtree.plan.explaining"
"""The module that tells what a run will do, which stands above."""


class Expected(NamedTuple):
    """The form that a tree is to have, or what was given beside it, and which this is.

    What was given is looked at again: it may have been changed.
    """

    fitting: Fitting
    given: Like | None
    what: str

    def look(self, tree: Tree) -> Look:
        """Return the tree looked at; raise ``SpecMismatch`` unless it has the form."""
        given = tree if self.given is None else self.given.tree
        found = handled(lambda: self.fitting.look(given), given)
        if isinstance(found, Look):
            return found
        path, text = self.fitting.form.difference(found)
        raise SpecMismatch(
            f"{where(path)}: {text}; {self.what}; prepare it again: "
            "transform.prepare(tree)"
        )


@final
class Prepared:
    """A transform that is ready for many trees of one form: call it on them.

    Law: it returns what the transform does, for every tree of the form of that which it
    was prepared with. What no plan tells ahead runs anew at each call, and stands in
    its text. It is a context manager, and holds that tree until it is closed.

    >>> run = sd.cast(dtype=torch.float16).prepare({"w": torch.ones(2)})
    >>> run
    Prepared(cast(dtype=torch.float16), for 1 leaf of 8 B)
    >>> run({"w": torch.zeros(2)}), run.plan.rows[0].to, run.close()
    ({'w': tensor([0., 0.], dtype=torch.float16)}, ('w',), None)
    """

    __slots__ = (
        "_begun",
        "_expected",
        "_heard",
        "_plan",
        "_results",
        "_stretches",
        "stages",
    )

    def __init__(
        self,
        stages: Sequence[Stage],
        tree: Tree,
        plan: Callable[[Tree], Any],
        reuse: bool,
    ) -> None:
        self.stages, self._stretches = stages, _foreseen(stretches_of(stages))
        self._heard, first = next_to_communicate(stages), self._stretches[0]
        is_whole = bool(first) and isinstance(first[0], TreeStage)
        meets = None if is_whole else next_to_communicate(first)
        own: list[Tree] = []
        if meets is None and self._heard is not None:
            check = partial(self._settle, tree, own)
            self._heard.meeting.check(self._heard, tree, check)
        else:
            with failing_together([] if meets is None else [meets], tree):
                self._settle(tree, own)
        [tree], first = own, self._stretches[0]
        self._results = Results() if reuse else None
        self._begun: Preparation | None = None
        if meets is not None:
            lasting = None
            if self._results is not None and hands_on(stages, meets):
                lasting = self._results.lasting
            self._begun = meets.meeting.prepare(tree, first, meets, lasting)
        self._plan: Callable[[], Any] | None = partial(plan, tree)

    def _settle(self, tree: Tree, own: list[Tree]) -> None:
        """Find out what there is to know of a tree, and keep one of one's own."""
        leaves, spec = handled(lambda: take(tree), tree)
        tree = spec.make(leaves)  # which nobody else writes into
        own.append(tree)
        self._expected = expected(self.stages, tree)
        first, *others = self._stretches
        if not has_tree(self._expected):
            return
        if first and isinstance(first[0], TreeStage):
            self._stretches = remembering(self._stretches, tree)
        else:
            self._stretches = [settled(first, tree), *others]

    @uncompiled
    def __call__(self, tree: Tree, /) -> Tree:
        """Return what the transform makes of a tree. Collective where that is.

        A tree of another form raises ``SpecMismatch`` before data moves, with the first
        path that differs; on all ranks, if they meet.
        """
        made = self._made(tree)
        return made if self._results is None else self._results.filled(made)

    def _made(self, tree: Tree) -> Tree:
        begun, looks = self._begun, list[Looks]()

        def check() -> None:
            looks.append(self._look(tree))

        if begun is not None:
            start = partial(begun.start, check=partial(self._look, tree))
            return call(
                self._stretches, tree, start=lambda tree, _stages, _stage: start(tree)
            )
        stage = self._heard
        if stage is None:
            check()
        else:
            others = in_other_groups([*communicating(self.stages)], stage)
            with failing_together(others, tree):
                stage.meeting.check(stage, tree, check)
        return call(self._stretches, tree, look=looks[0].tree)

    def _look(self, tree: Tree) -> Looks:
        """Return the tree looked at, and what was given beside it; all is to fit."""
        self._check_open()
        reject_file_names(tree)
        looks = [(wanted.given, wanted.look(tree)) for wanted in self._expected]
        beside = [(given, look) for given, look in looks if given is not None]
        return Looks(looks[0][1] if has_tree(self._expected) else None, beside)

    @property
    def plan(self) -> Any:
        """Return the ``Plan`` that ``sd.explain`` has of a run."""
        self._check_open()
        assert self._plan is not None
        return self._plan()

    def _check_open(self) -> None:
        if self._plan is None:
            raise RuntimeError(
                f"{self!r} is not to be used; make another by transform.prepare(tree)"
            )

    @uncompiled
    def close(self) -> None:
        """End it: let go of all that it holds. It is not to be called after.

        Of one rank that has closed it alone the others hear, unless the operation is
        not to ``verify``: then they would wait.
        """
        if self._begun is not None and self._heard and not self._heard.verify:
            self._heard = None  # they move data at once, and would take words for it
        self._plan = self._begun = self._results = None
        self._expected = []

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} is neither pickled nor copied, for it holds what this process "
            "has agreed on; pickle the transform, and prepare that anew"
        )

    def __enter__(self) -> Prepared:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def anew(self) -> list[str]:
        """Return the stages that run anew at each call, as they are written.

        >>> (sd.copy() | sd.map(abs)).prepare({"n": -1}).anew
        ['map(abs)']
        """
        left = [*dropwhile(remembers, self._stretches)]
        first = left.pop(0) if len(left) == len(self._stretches) else ()
        found = [stage for stage in first if not is_foreseen(stage)]
        found += [stage for stretch in left for stage in stretch]
        return [stage.text for stage in found if stage.text]

    @property
    def size(self) -> tuple[int, int]:
        """Return how many leaves a tree has here, and how many bytes."""
        forms = [x.fitting.form for x in self._expected if x.given is None]
        return sum(len(form.types) for form in forms), sum(x.nbytes for x in forms)

    def __repr__(self) -> str:
        text = " | ".join(stage.text for stage in self.stages if stage.text)
        count, nbytes = self.size
        held = f"{count} {'leaf' if count == 1 else 'leaves'}"
        anew = f"; anew at each call: {', '.join(self.anew)}" if self.anew else ""
        told = f", for {held} of {readable_bytes(nbytes)}" if self._expected else ""
        told = ", closed" if self._plan is None else told
        return f"Prepared({text or 'identity'}{told}{anew})"

    def _repr_html_(self) -> str:  # pyright: ignore[reportUnusedFunction]
        return html_of(self)


def _foreseen(stretches: Sequence[list[Stage]]) -> list[list[Stage]]:
    """Return stretches of which the first ends before a choice that data tells."""
    first, *others = stretches
    for k, stage in enumerate(first):
        if not isinstance(stage, (PathStage, SelectStage)):
            break  # a choice that follows is a step, in its place
        if isinstance(stage, SelectStage) and not stage.selector.by_form:
            return [first[:k], first[k:], *others]
    return [*stretches]


def settled(stages: Sequence[Stage], tree: Tree) -> list[Stage]:
    """Return stages that do the same to trees of this form, and find out less anew.

    Which leaves are left, and where, is known; what is written into is remembered.
    What would fail at each call fails now.
    """
    run = Run.of(tree, ())
    is_known = is_data(run.spec)
    found: list[Stage] = []
    for k, stage in enumerate(stages):
        if isinstance(stage, CollectiveStage):
            return [*found, *stages[k:]]
        before, was = run.ids, len(run.steps)
        run.through([stage])
        if isinstance(stage, LeafStage):
            again = stage.bind if stage.again is None else stage.again()
            found.append(replace(stage, bind=again))
        elif is_known and len(run.steps) == was:
            place = {i: k for k, i in enumerate(before)}
            moved = run.spec, [place[i] for i in run.ids]
            found.append(PathStage(stage.text, Call(_known, moved)))
        else:
            found.append(stage)
    return found


def remembering(stretches: Sequence[list[Stage]], tree: Tree) -> list[list[Stage]]:
    """Return stretches of which the first remember what they find of this form.

    What would fail at each call fails now.
    """
    found: list[list[Stage]] = []
    for stretch in takewhile(remembers, stretches):
        [stage] = stretch
        assert isinstance(stage, TreeStage)
        assert stage.again is not None
        stage = replace(stage, run=stage.again())
        tree = stage.run(tree)
        found.append([stage])
    return [*found, *stretches[len(found) :]]


def remembers(stretch: Sequence[Stage]) -> bool:
    """Return whether a stretch finds out once what becomes of trees of one form."""
    first = stretch[0] if stretch else None
    return isinstance(first, TreeStage) and first.again is not None


def hands_on(stages: Sequence[Stage], meets: CollectiveStage) -> bool:
    """Return whether the leaves that come of a stage are results, as they come."""
    after = stages[stages.index(meets) + 1 :]
    return all(isinstance(stage, (PathStage, SelectStage)) for stage in after)


def _known(moved: tuple[TreeSpec, Sequence[int]], _: TreeSpec) -> Any:
    return moved


def expected(stages: Sequence[Stage], tree: Tree) -> list[Expected]:
    """Return the forms that a tree must have, and what ranks were given beside it."""
    first = next_to_communicate(stages)
    is_heard = first is None or first.verify  # else other ranks go on with junk
    so_far = ", nothing was moved" if is_heard else ""
    found: list[Expected] = []
    if first is None or first.has_tree():
        what = f"the tree has not the form that was prepared{so_far}"
        fitting = handled(lambda: Fitting(tree), tree)
        found.append(Expected(fitting, None, what))
    for stage in stages:
        takes_tree = isinstance(stage, (CollectiveStage, TreeStage))
        if takes_tree and stage.like is not None:
            given = stage.like.tree
            fitting = handled(partial(Fitting, given), given)
            what = f"what was given to {stage.text} has changed{so_far}"
            found.append(Expected(fitting, stage.like, what))
    return found


def has_tree(found: Sequence[Expected]) -> bool:
    """Return whether a tree is looked at here: then it is the first that is."""
    return bool(found) and found[0].given is None


def plan_of(transform: Any, tree: Tree) -> Any:
    """Return what a transform will do with a tree, asked of what stands above."""
    return import_module(PLANNED_IN).explain(transform, tree)


def is_foreseen(stage: Stage) -> bool:
    """Return whether a stage does to all trees of one form what can be told ahead."""
    if isinstance(stage, SelectStage):
        return stage.selector.by_name
    if isinstance(stage, LeafStage):
        return stage.on_abstract or stage.again is not None
    return not isinstance(stage, TreeStage)
