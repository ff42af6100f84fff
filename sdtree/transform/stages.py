"""Stages: the steps that transforms are made of, as data."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sdtree.kinds.calls import Call
from sdtree.naming.selectors import Selector
from sdtree.tensors.forms import Lay
from sdtree.transform.form import Looks
from sdtree.transform.window import WINDOW_BYTES, Window
from sdtree.tree.alike import Like
from sdtree.tree.pairing import Last, Move
from sdtree.tree.spec import TreeSpec, take
from sdtree.typing import Leaf, OnProgress, Path, Tree
from sdtree.wire.collectives import RankGroup

Action = Callable[[Window], list[Leaf]]
"""What a stage does to a window: as many leaves, ``ABSENT`` for a dropped one."""


Check = Callable[[Callable[[], Window]], None]
"""A check, given what returns the leaves that are dropped later by name: none of them
passes the stage, and they are as they would have come to it.
"""


def _take_on(self: Any, state: Sequence[object]) -> None:
    """Take on what was pickled; what stages have come to tell since is by default."""
    every = fields(self)
    later = [_default(x) for x in every[len(state) :]]
    for x, value in zip(every, [*state, *later], strict=True):
        object.__setattr__(self, x.name, value)


def _default(x: Field[Any]) -> Any:
    return x.default if x.default_factory is MISSING else x.default_factory()


class Passage(NamedTuple):
    """What comes to a stage: leaves, as positions of the source, and by which steps."""

    ids: Sequence[int]
    spec: TreeSpec
    steps: Sequence[Any]


@dataclass(slots=True)
class Reach:
    """What the stages of a run write into, and whether all leaves pass at once.

    ``is_foretold``: they come in turn, as other ranks send them.
    """

    written: list[Leaf] = field(default_factory=list[Leaf])
    is_whole: bool = False
    is_foretold: bool = False


@dataclass(frozen=True, slots=True)
class StageContext:
    """What a stage may know before the first window: the tree as it will be there.

    ``leaves`` are the leaves themselves where no stage has acted on them before;
    ``preview`` returns them as far as they can be foretold, without data, or None.
    ``at_end`` takes a check to make when the last window has passed. ``lay`` is
    where the tensors lie, if they were looked at for one form before. ``sources`` are
    the leaves that stages before act on, and ``reach`` is what all have in common.
    """

    spec: TreeSpec
    leaves: Sequence[Leaf] | None
    preview: Callable[[], Sequence[Leaf] | None]
    at_end: Callable[[Check], None]
    lay: Lay | None = None
    sources: Callable[[], Iterable[tuple[int, Leaf]]] = tuple
    reach: Reach = field(default_factory=Reach)


@dataclass(frozen=True, slots=True)
class PathStage:
    """A stage that moves leaves about without looking at them."""

    text: str
    move: Move

    @classmethod
    def by(cls, text: str, function: Callable[[Tree], Tree]) -> PathStage:
        """Return the stage that does what a function of trees does to their leaves."""
        return cls(text, Call(_moved_by, function))


def _moved_by(
    function: Callable[[Tree], Tree], spec: TreeSpec
) -> tuple[TreeSpec, Sequence[int]]:
    """Run a function on the tree of the leaves' positions: it tells where they go."""
    order, moved = take(function(spec.make(range(len(spec)))))
    return moved, order


Chosen = tuple[TreeSpec, Sequence[int]]
"""What is left of a structure, and the places there of the leaves that are."""


@dataclass(frozen=True, slots=True)
class SelectStage:
    """A stage that keeps the leaves that a selector matches, or those that it does not.

    By name it is a move, and ``last`` remembers it; by the leaf it runs in its place.
    """

    text: str
    selector: Selector
    keeps: bool
    missing_ok: bool
    last: Last[Chosen] = field(default_factory=Last[Chosen], compare=False, repr=False)

    def __getstate__(self) -> Sequence[object]:
        """Go to another process as what was asked for, without what was found."""
        return [self.text, self.selector, self.keeps, self.missing_ok]

    __setstate__ = _take_on


Pour = Callable[[Leaf, Tensor], bool]
"""What writes a leaf straight to a tensor, and tells whether it did."""


@dataclass(frozen=True, slots=True)
class LeafStage:
    """A stage that acts on leaves, window by window.

    ``bind`` is called once a run, before the first window. ``by_leaf``: it goes leaf by
    leaf, however the windows are cut. ``on_abstract``: it acts on ``Abstract`` leaves
    as on others, and so tells what it will do. ``is_paired``: it must know the
    structure first. ``copies``: also what it leaves alike lies in new memory then;
    ``device``: where what it makes lies, None for where it was. ``again`` returns, for
    trees of one form, what binds it and remembers what it has found. ``pour`` writes
    what it would make of a leaf straight to a tensor, and tells whether it did.
    ``makes``: it makes the leaves that a lazy stage before it leaves to it.
    """

    text: str
    bind: Callable[[StageContext], Action]
    by_leaf: bool = False
    on_abstract: bool = False
    is_paired: bool = False
    copies: bool = False
    device: torch.device | None = None
    again: Callable[[], Callable[[StageContext], Action]] | None = None
    pour: Pour | None = None
    makes: bool = False

    __setstate__ = _take_on

    @classmethod
    def by(
        cls,
        text: str,
        action: Action,
        *,
        by_leaf: bool = False,
        on_abstract: bool = False,
        copies: bool = False,
        device: torch.device | None = None,
    ) -> LeafStage:
        """Return the stage that acts in one way, whatever the tree."""
        bind = Call(always, action)
        return cls(text, bind, by_leaf, on_abstract, False, copies, device)


def always(action: Action, _: StageContext) -> Action:
    """Return an action that needs to know nothing first."""
    return action


@dataclass(frozen=True, slots=True)
class TreeStage:
    """A stage that takes the tree whole.

    ``inside`` are the stages that it runs, on the first part of what ``split`` makes of
    the tree; ``join`` puts the rest to it again. ``by_form``: it looks at no data
    to split the tree. ``is_lazy``: it makes no data either, but leaves that the next
    stage makes. ``origins`` tells of which leaves those are made that it makes anew.
    ``takes_unmade``: it can do without a stage before it that ``makes`` leaves.
    ``again`` returns, for trees of one form, what runs it and remembers what it has
    found, of ``like`` too, a tree that was given beside.
    """

    text: str
    run: Callable[[Tree], Tree]
    inside: Sequence[Stage]
    split: Callable[[Tree], tuple[Tree, Tree]]
    join: Callable[[Tree, Tree], Tree]
    by_form: bool = True
    is_lazy: bool = False
    origins: Callable[[Tree], Mapping[Path, Sequence[Path]]] | None = None
    takes_unmade: bool = False
    again: Callable[[], Callable[[Tree], Tree]] | None = None
    like: Like | None = None

    __setstate__ = _take_on

    @classmethod
    def by(cls, text: str, function: Callable[[Tree], Tree]) -> TreeStage:
        """Return the stage that does what a function of trees does."""
        return cls(text, function, (), _undivided, Call(_joined, function))


def _undivided(tree: Tree) -> tuple[Tree, Tree]:
    return tree, None


def _joined(run: Callable[[Tree], Tree], tree: Tree, rest: Tree) -> Tree:
    return run(tree)


class Communication(Protocol):
    """What ranks exchange for a stage, agreed on and under way.

    ``all_settle`` tells whether all ranks of the group meet again at the end.
    """

    all_settle: bool

    def call(self) -> Tree:
        """Return the tree that results. Collective."""
        ...

    def stream(self) -> Generator[tuple[Path, Leaf]]:
        """Yield each (path, leaf) that results."""
        ...

    def hold_open(self) -> None:
        """Let no other exchange begin before this one has ended."""
        ...

    def drain(self) -> None:
        """Do what is left of this rank's part, if anything is."""
        ...


class Preparation(Protocol):
    """What ranks have agreed on once, to be exchanged again and again."""

    def start(self, tree: Tree, check: Callable[[], Looks]) -> Communication:
        """Return what a tree comes to, if the check of each rank passes. Collective."""
        ...


Start = Callable[[Tree, Sequence["Stage"], "CollectiveStage"], Communication]
"""What begins an exchange of a tree that passes a stretch of stages."""

Lasting = dict[int, Sequence[Leaf]]
"""Leaves that call after call fills where they are, by the position of a first."""

Prepare = Callable[
    [Tree, Sequence["Stage"], "CollectiveStage", "Lasting | None"], Preparation
]
"""What has ranks agree for many trees; what comes may last, and is told then."""


class Meeting(NamedTuple):
    """How ranks meet for a stage; stages do not know what they exchange.

    ``start`` begins what a tree and a run of stages come to, the stage being the one
    of them in which ranks meet, ``guard`` has the
    others of a group hear of an error while they wait for this rank. ``prepare`` has
    the ranks agree now for many trees of one form, and ``check`` has them hear, before
    anything moves, whether that of each passes.
    """

    start: Start
    guard: Callable[[Any, Tree], AbstractContextManager[None]]
    prepare: Prepare
    check: Callable[[CollectiveStage, Tree, Callable[[], None]], None]


@dataclass(frozen=True, slots=True)
class CollectiveStage:
    """A stage in which ranks exchange leaves, window by window.

    ``bind`` is called once a run and returns what is to be exchanged. With a ``src``
    the stages before run on that rank alone. ``needs_forms``: it must know the leaves,
    all but their data, before the first window. ``like`` is a tree of the layouts that
    leaves are to take. ``weighs``: where a leaf goes depends on all that come.
    ``reports``: a pair comes of it, the tree and the report.
    ``on_progress`` is told how many bytes have come.
    """

    text: str
    bind: Callable[[Any, RankGroup], Any]
    meeting: Meeting
    group: Any = None
    verify: bool = True
    bucket_bytes: int = WINDOW_BYTES
    src: int | None = None
    needs_forms: bool = True
    like: Like | None = None
    weighs: bool = False
    reports: bool = False
    on_progress: OnProgress | None = None

    __setstate__ = _take_on

    def has_tree(self) -> bool:
        """Return whether this rank has the tree that comes to the stage."""
        return self.src is None or RankGroup.of(self.group).me == self.src


Stage = PathStage | SelectStage | LeafStage | CollectiveStage | TreeStage


def touches_no_data(stage: Stage) -> bool:
    """Return whether a stage only tells which leaves are to be, and where."""
    if isinstance(stage, TreeStage):
        return stage.is_lazy
    by_name = isinstance(stage, SelectStage) and stage.selector.by_name
    return by_name or isinstance(stage, PathStage)


def is_left_to(later: Sequence[Stage]) -> bool:
    """Return whether the next stage that looks at leaves takes them as they are."""
    for stage in later:
        if isinstance(stage, TreeStage) or not touches_no_data(stage):
            return isinstance(stage, TreeStage) and stage.takes_unmade
    return False


# -- where ranks wait for each other -------------------------------------------------


def communicating(stages: Sequence[Stage]) -> Iterator[CollectiveStage]:
    """Yield the stages that communicate, first to last."""
    for stage in stages:
        if isinstance(stage, TreeStage):
            yield from communicating(stage.inside)
        elif isinstance(stage, CollectiveStage):
            yield stage


def next_to_communicate(stages: Sequence[Stage]) -> CollectiveStage | None:
    """Return the first stage that communicates."""
    return next(communicating(stages), None)


def in_other_groups(
    stages: Sequence[CollectiveStage], stage: CollectiveStage
) -> Sequence[CollectiveStage]:
    """Return those in which others may meet than in a stage."""
    return [other for other in stages if other.group is not stage.group]


def failing_together(stages: Sequence[CollectiveStage], tree: Tree) -> ExitStack:
    """Have ranks that wait at stages hear of an error in here, one group by another.

    Those of a group wait at the first of its stages; who has heard tells the next.
    """
    firsts: dict[Any, CollectiveStage] = {}
    for stage in stages:
        firsts.setdefault(id(stage.group), stage)
    around = ExitStack()
    for stage in reversed(firsts.values()):
        around.enter_context(stage.meeting.guard(stage.group, tree))
    return around
