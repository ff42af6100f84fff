"""Operations in which ranks exchange leaves: gather, distribute, broadcast and kin.

Each has its own way to plan what goes where; how that is carried out, window by window,
is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec

import torch

from sdtree.errors import Mismatch
from sdtree.exchange.distribute import Delivery
from sdtree.exchange.gather import Gathering
from sdtree.exchange.preparing import MEETING
from sdtree.exchange.receivers import Ranks, ranks_in
from sdtree.exchange.source import DistributeOptions
from sdtree.kinds.calls import Call
from sdtree.tensors.counting import checked
from sdtree.tensors.devices import device_named
from sdtree.transform.stages import CollectiveStage
from sdtree.transform.transform import Transform, Verb, verb
from sdtree.transform.window import WINDOW_BYTES
from sdtree.tree.alike import Into, Like
from sdtree.typing import OnProgress, Tree
from sdtree.wire.collectives import check_bucket

P = ParamSpec("P")


def meeting_verb(make: Callable[P, Transform]) -> Verb[P]:
    """Return what ``verb`` does, of an operation in which ranks meet: they all hear."""
    return verb(make, lambda options, tree: MEETING.guard(options.get("group"), tree))


@meeting_verb
def gather(
    *,
    ranks: Ranks = None,
    into: Tree | None = None,
    group: Any = None,
    bucket_bytes: int = WINDOW_BYTES,
    verify: bool = True,
    on_progress: OnProgress | None = None,
) -> Transform:
    """Return the tree with sharded leaves whole, on the chosen ranks. Collective.

    ``ranks`` are global ranks: one, several, a function of the path that returns them,
    ``"balanced"`` for each leaf on one of its own ranks, or None for all of its own.
    On other ranks each tensor leaf is an ``Abstract``. What need not move stays what it
    is, so a leaf that was whole already is not copied; ``into=`` writes into buffers,
    and balanced it takes one for each leaf, on all of the ranks that may be given it.

    One path may lie on several sets of ranks, which do not see each other. A rank takes
    the leaf from its own set, else from one that sends it there, as the stages of a
    pipeline do: then it joins the tree at its path. Balanced, it is given once; what a
    later stage leaves out counts, and travels: leave it out before.
    Leaves that are one on every rank, or one the transposed of the other, are so again;
    other views of one buffer become wholes that have each its own memory.

    ``on_progress(done, total)`` is called with bytes of what the stage brings to this
    rank, some two hundred times at most, and at last with both the same. What it raises
    all ranks raise, as any error of one of them.

    Law: ``gather(distribute(full, like=l)) = full``.

    >>> sd.gather({"w": torch.ones(2), "step": 3})
    {'w': tensor([1., 1.]), 'step': 3}
    """
    choice = ranks
    if not (callable(ranks) or ranks == "balanced"):
        choice = ranks_in(ranks)
    check_bucket(bucket_bytes)
    given = None if into is None else Into(into)
    shown = [f"ranks={_shown(ranks)}"] if ranks is not None else []
    shown += ["into=..."] if into is not None else []
    stage = CollectiveStage(
        f"gather({', '.join(shown)})",
        Call(Gathering.of, choice, given),
        MEETING,
        group,
        verify,
        bucket_bytes,
        on_progress=None if on_progress is None else checked(on_progress),
        like=given,
        weighs=choice == "balanced",
    )
    return Transform((stage,))


@meeting_verb
def distribute(
    *,
    like: Tree | None = None,
    into: Tree | None = None,
    strict: bool = True,
    on_mismatch: OnMismatch | None = None,
    report: bool = False,
    device: str | torch.device | None = None,
    group: Any = None,
    bucket_bytes: int = WINDOW_BYTES,
    verify: bool = True,
    on_progress: OnProgress | None = None,
) -> Transform:
    """Return the tree in the layouts of another; every rank has it whole. Collective.

    ``like`` is a tree of the same paths, shapes and dtypes; each rank takes its part of
    each leaf into new tensors of the kind that stands there, or into those of ``into``.
    Nothing need travel, but the ranks agree first. Plain values are the source's.

    Names, shapes and dtypes that do not fit raise ``SpecMismatch``, which lists them
    all. Ranks may have targets for other leaves, as the stages of a pipeline have: a
    name is unexpected if none has it. ``strict=False`` keeps the leaves that the source
    lacks and ignores those that only it has; ``on_mismatch`` is called with the
    difference first, a ``Mismatch``. A meta target is made on its mesh's device, or on
    ``device``.

    With ``report`` the result is a tuple of the tree and a ``Mismatch`` that tells what
    was left out, the same on every rank. Steps after it take that tuple as their tree.
    ``on_progress`` is as in ``gather``.

    >>> sd.distribute({"w": torch.ones(2)}, like={"w": torch.zeros(2)})
    {'w': tensor([1., 1.])}
    >>> sd.distribute({"n": 1, "m": 2}, like={"n": 0}, strict=False, report=True)
    ({'n': 1}, 1 unexpected: m)
    """
    order = _order(
        "distribute", like, into, False, None, strict, on_mismatch, report, device
    )
    return _delivered(order, group, bucket_bytes, verify, on_progress)


@meeting_verb
def broadcast(
    *,
    like: Tree | None = None,
    into: Tree | None = None,
    src: int = 0,
    strict: bool = True,
    on_mismatch: OnMismatch | None = None,
    report: bool = False,
    device: str | torch.device | None = None,
    group: Any = None,
    bucket_bytes: int = WINDOW_BYTES,
    verify: bool = True,
    on_progress: OnProgress | None = None,
) -> Transform:
    """Return the tree that one rank has, in the layouts of another. Collective.

    As ``distribute``, but only rank ``src`` has the tree; what the others pass, None
    say, is ignored, and so are stages before in a chain. Each rank receives its own
    parts; what several hold leaves the source once. Plain values come in one message,
    and so does the report: all ranks hear what does not fit on any of them.
    ``on_progress`` is as in ``gather``.

    >>> sd.broadcast({"w": torch.ones(2), "n": 3}, like={"w": torch.zeros(2), "n": 0})
    {'w': tensor([1., 1.]), 'n': 3}
    """
    if type(src) is not int:
        raise TypeError(f"broadcast: src={src!r} is no rank, a whole number")
    order = _order(
        "broadcast", like, into, True, src, strict, on_mismatch, report, device
    )
    return _delivered(order, group, bucket_bytes, verify, on_progress)


@meeting_verb
def redistribute(
    *,
    like: Tree | None = None,
    into: Tree | None = None,
    group: Any = None,
    bucket_bytes: int = WINDOW_BYTES,
    verify: bool = True,
    on_progress: OnProgress | None = None,
) -> Transform:
    """Return the tree in the layouts of another over the same ranks. Collective.

    Each pair of ranks exchanges only what overlaps. Law: it equals gather, then
    distribute. Of a leaf whose layout is the same already nothing is sent, and the new
    one has its data. Where it lies on several sets of ranks, here or there, these are
    to be the same ranks together.
    ``into=`` writes into the leaves given, which may be views: several of one storage
    are filled where they lie, and what arrives is not held twice. ``on_progress`` is as
    in ``gather``.

    >>> sd.redistribute({"w": torch.ones(2)}, like={"w": torch.zeros(2)})
    {'w': tensor([1., 1.])}
    """
    order = _order("redistribute", like, into, True, None, True, None, False, None)
    return _delivered(order, group, bucket_bytes, verify, on_progress)


OnMismatch = Callable[[Mismatch], object]


def _order(
    verb: str,
    like: Tree | None,
    into: Tree | None,
    moves: bool,
    src: int | None,
    strict: bool,
    on_mismatch: OnMismatch | None,
    report: bool,
    device: str | torch.device | None,
) -> DistributeOptions:
    """Return what is asked for, checked as far as it can be without a tree."""
    if (like is None) == (into is None):
        raise TypeError(
            f"{verb} takes like= or into=, one of the two: a tree that tells what each "
            f"rank is to hold, such as sd.{verb}(tree, like=model.state_dict())"
        )
    if into is not None and device is not None:
        raise TypeError(f"{verb}: into= has its device; device= goes with like=")
    if on_mismatch is not None and not callable(on_mismatch):
        raise TypeError(f"{verb}: on_mismatch={on_mismatch!r} cannot be called")
    if type(report) is not bool:
        raise TypeError(
            f"{verb}: report={report!r}; report=True returns a tuple of tree and report"
        )
    place = None if device is None else device_named(device, f"{verb}: device=")
    if place is not None and place.type == "meta":
        raise ValueError(
            f"{verb}: device='meta' holds no data to receive; give one that does, or "
            "call sd.spec(like) for what there would be"
        )
    given = Like(like) if into is None else Into(into)
    return DistributeOptions(
        verb, given, moves, src, strict, on_mismatch, place, report
    )


def _delivered(
    order: DistributeOptions,
    group: Any,
    bucket_bytes: int,
    verify: bool,
    on_progress: OnProgress | None,
) -> Transform:
    check_bucket(bucket_bytes)
    shown = ["into=..." if order.given.is_written else "like=..."]
    shown += [f"src={order.src}"] if order.src is not None else []
    shown += ["strict=False"] if not order.strict else []
    shown += ["report=True"] if order.reports else []
    stage = CollectiveStage(
        f"{order.verb}({', '.join(shown)})",
        Call(Delivery.of, order),
        MEETING,
        group,
        verify,
        bucket_bytes,
        order.src,
        needs_forms=order.verb == "redistribute",
        like=order.given,
        reports=order.reports,
        on_progress=None if on_progress is None else checked(on_progress),
    )
    return Transform((stage,))


def _shown(ranks: Any) -> str:
    return getattr(ranks, "__name__", repr(ranks))
