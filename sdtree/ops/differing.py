"""Where two trees differ: ``diff``, and what it returns."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any, Final, NamedTuple

import torch

from sdtree.exchange.differences import CONTAINER, LEAF
from sdtree.exchange.differences import Diff as Diff
from sdtree.exchange.differences import Difference as Difference
from sdtree.exchange.findings import (
    RENAMED,
    UNSEEN,
    Finding,
    merged,
    told,
    told_by_some,
)
from sdtree.exchange.meeting import collect, looked, rank_group_for
from sdtree.kinds.abstract import Abstract, by_form
from sdtree.kinds.handler import handler_of
from sdtree.kinds.sides import FULL, SHORT, apart, sides
from sdtree.kinds.strangers import reject_file_names
from sdtree.kinds.values import same_leaf, same_value
from sdtree.tensors.bits import NO_NUMBERS, Gap, Tolerance, bits_of, gap_between
from sdtree.tensors.counting import Count, counting
from sdtree.tensors.modes import uncompiled
from sdtree.text.html import dtype_name
from sdtree.text.short import full_name
from sdtree.transform.window import handled
from sdtree.tree.alike import compared, same_form
from sdtree.tree.flattening import items
from sdtree.tree.pairing import differing_containers
from sdtree.tree.spec import take
from sdtree.typing import Leaf, OnProgress, Path, Tree
from sdtree.wire.collectives import RankGroup
from sdtree.wire.messages import region


@uncompiled
def diff(
    a: Tree,
    b: Tree,
    /,
    *,
    values: bool = True,
    rtol: float | None = None,
    atol: float | None = None,
    group: Any = None,
    on_progress: OnProgress | None = None,
) -> Diff:
    """Return where two trees differ, falsy if ``equal``.

    That is in leaves that only one has, containers, kinds, shapes, dtypes and values.
    A difference in values tells how many elements differ and by how much at most, of
    integers exactly, and has numbers: ``max_abs``, ``norm``, ``rel``, ``count``; text
    and records are no numbers, and only counted. Without ``values`` the data of tensors
    is not looked at, and what was left out is told; plain values are compared in any
    case.

    With ``rtol`` or ``atol``, floating-point numbers that are apart by no more than
    ``atol + rtol * abs(b)`` are close, as ``torch.isclose`` has it with nan equal to
    nan; leaves that are close all through do not differ, but are told of. Integers have
    no tolerance.

    Where a leaf is at another path in ``b``, with the same bits, it was renamed.
    ``on_progress(done, total)`` is called with bytes of ``a``.

    Collective if a tree has sharded leaves, as ``equal`` is: the parts are counted
    together, and what differs on another rank only is told with that rank.

    >>> print(sd.diff({"w": torch.ones(2), "n": 1}, {"w": torch.zeros(3)}))
    name  differs in  a      b
    w     shape       (2,)   (3,)
    n     leaf        int 1  nothing
    """
    reject_file_names(a, b)
    looking = _Looking(values, _tolerance_of(values, rtol, atol))
    rank_group = rank_group_for(looking.verb(), a, b, group)

    def find() -> list[Finding]:
        with counting(on_progress) as count:
            return handled(lambda: _find(a, b, looking, count), a, b)

    def same(paths: Collection[Path]) -> list[Finding]:
        return _same_parts(a, b, paths, looking)

    has_tolerance = looking.tolerance is not None
    if not rank_group.others:
        return told(
            find(), handled(lambda: _elements(a, b), a, b).items(), has_tolerance
        )
    look = looked(a, b)
    every = collect(rank_group, look, find)
    if paths := told_by_some(every):
        # The others have the same bits there, of which the numbers are to speak, too.
        more = collect(rank_group, (), lambda: handled(lambda: same(paths), a, b))
        every = {rank: [*found, *more[rank]] for rank, found in every.items()}
    place = {path: k for k, (path, _) in enumerate(look)}
    found = merged(every, rank_group.me)
    rows = sorted(found, key=lambda x: place.get(x.path, len(place)))
    return told(rows, handled(lambda: _elements(a, b), a, b).items(), has_tolerance)


class _Looking(NamedTuple):
    """How two trees are compared."""

    values: bool
    tolerance: Tolerance | None

    def verb(self) -> str:
        """Return what ranks are to agree on that they do."""
        if self.tolerance is None:
            return "diff"
        return "diff with rtol={}, atol={}".format(*self.tolerance)


def _tolerance_of(
    values: bool, rtol: float | None, atol: float | None
) -> Tolerance | None:
    """Return how far numbers may be apart; raise if that is no such thing."""
    if rtol is None and atol is None:
        return None
    if not values:
        raise ValueError("diff: rtol= and atol= compare data; leave out values=False")
    for name, x in (("rtol", rtol), ("atol", atol)):
        is_number = isinstance(x, Real) and not isinstance(x, bool)
        if x is not None and not (is_number and 0 <= x < math.inf):
            raise ValueError(f"diff: {name}={x!r} is no tolerance; give one from 0 on")
    return Tolerance(rtol or 0.0, atol or 0.0)


def _find(a: Tree, b: Tree, looking: _Looking, count: Count) -> list[Finding]:
    """Return where two trees differ on this rank."""
    (here, spec), (there, other) = take(a), take(b)
    theirs = dict(zip(other.paths(), there, strict=True))
    found: list[Finding] = []
    gone: list[tuple[Path, Leaf]] = []
    sizes = [*map(_nbytes, here)] if count.is_heard else [0] * len(here)
    count.expect(sum(sizes))
    for path, x, size in zip(spec.paths(), here, sizes, strict=True):
        if path in theirs:
            found.extend(_differences(path, x, theirs.pop(path), looking))
        else:
            gone.append((path, x))
            found.append(Finding(path, LEAF, _described(x), "nothing"))
        count.add(size)
    for path, y in theirs.items():
        found.append(Finding(path, LEAF, "nothing", _described(y)))
    if looking.values:
        found.extend(_renamed(gone, theirs))
    for path, ours, others in differing_containers(spec.shape, other.shape):
        found.append(Finding(path, CONTAINER, ours, others))
    return found


def _same_parts(
    a: Tree, b: Tree, paths: Collection[Path], looking: _Looking
) -> list[Finding]:
    """Return the parts of some leaves that are here, and are the same."""
    here, there = (
        {path: compared(x) for path, x in items(tree) if path in paths}
        for tree in (a, b)
    )
    pairs = {path: (x, there[path]) for path, x in here.items() if path in there}
    return [
        _values(path, x, y, looking.tolerance)
        for path, (x, y) in pairs.items()
        if Abstract.of(x).layout is not None and same_leaf(x, y)
    ]


def _nbytes(leaf: Leaf) -> int:
    return sum(t.nbytes for t in handler_of(leaf).flatten(leaf)[0])


def _elements(a: Tree, b: Tree) -> Mapping[Path, int]:
    """Return how many elements each leaf has, a plain value one."""
    (here, spec), (there, other) = take(a), take(b)
    every = dict(zip(other.paths(), there, strict=True))
    every |= dict(zip(spec.paths(), here, strict=True))
    forms = [*map(Abstract.of, every.values())]
    counts = by_form(lambda form: math.prod(form.shape), forms)
    return dict(zip(every, counts, strict=True))


def _renamed(
    gone: Sequence[tuple[Path, Leaf]], come: Mapping[Path, Leaf]
) -> Iterator[Finding]:
    """Yield the leaves that stand elsewhere in the other tree, to the bit."""
    waiting: defaultdict[object, list[tuple[Path, Leaf]]] = defaultdict(list)
    for to, y in come.items() if gone else ():
        if (mark := _mark(compared(y))) is not None:
            waiting[mark].append((to, compared(y)))
    for path, x in gone if waiting else ():
        others = waiting.get(_mark(compared(x)), [])
        same = (k for k, (_, y) in enumerate(others) if same_leaf(compared(x), y))
        at = next(same, None)
        if at is not None:
            yield Finding(path, RENAMED, to=others.pop(at)[0])


def _mark(leaf: Leaf) -> object:
    """Return what leaves of the same bits have in common; None of those without."""
    form, ts = Abstract.of(leaf), handler_of(leaf).flatten(leaf)[0]
    if not ts or not math.prod(form.shape) or any(t.is_meta for t in ts):
        return None
    return form, tuple(int(bits_of(t).sum()) for t in ts)


def _described(leaf: Leaf) -> str:
    form = Abstract.of(leaf)
    if form.dtype is None:
        return f"{form.kind.__name__} {SHORT(leaf)}"
    return f"{form.kind.__name__} {form.shape} {dtype_name(form.dtype)}"


def _stated(leaf: Leaf) -> str:
    """Return what there is to say of a leaf that may be without data."""
    empty = Abstract.of(leaf).dtype is not None and not any(
        not t.is_meta for t in handler_of(leaf).flatten(leaf)[0]
    )
    return _described(leaf) + (", without data" if empty else "")


def _differences(path: Path, x: Leaf, y: Leaf, looking: _Looking) -> Iterator[Finding]:
    """Yield in what two leaves differ: in kind, else in form, else in value."""
    x, y = compared(x), compared(y)
    a, b = Abstract.of(x), Abstract.of(y)
    if a.kind is not b.kind:
        full = full_name(a.kind), full_name(b.kind)
        yield Finding(path, "kind", *apart((_described(x), _described(y)), full))
        return
    if a.shape != b.shape:
        yield Finding(path, "shape", str(a.shape), str(b.shape))
    if a.dtype != b.dtype:
        yield Finding(path, "dtype", *apart((dtype_name(a.dtype), dtype_name(b.dtype))))
    elif a.shape == b.shape and not same_form(x, y):
        yield Finding(path, "layout", *_layouts(x, y))
    elif a.shape == b.shape and not looking.values and (_has_data(x) or _has_data(y)):
        yield Finding(path, UNSEEN)
    elif a.shape == b.shape and not same_leaf(x, y):
        yield _values(path, x, y, looking.tolerance)


def _has_data(leaf: Leaf) -> bool:
    return len(handler_of(leaf).flatten(leaf)[0]) > 0


def _layouts(x: Leaf, y: Leaf) -> tuple[str, str]:
    """Return how the data of two leaves is laid out otherwise: the tensors, or aux."""
    forms = [Abstract.of(leaf).forms() for leaf in (x, y)]
    auxes = [handler_of(leaf).flatten(leaf)[1] for leaf in (x, y)]
    told: list[tuple[str, str]] = []
    if forms[0] != forms[1]:
        told.append(apart((_tensors(forms[0]), _tensors(forms[1]))))
    if not told or not same_value(*auxes):
        told.append(sides("aux", *auxes))
    ours, theirs = map("; ".join, zip(*told, strict=True))
    return ours, theirs


def _tensors(forms: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> str:
    return ", ".join(f"{dtype_name(dtype)} {shape}" for shape, dtype in forms)


def _values(path: Path, x: Leaf, y: Leaf, tolerance: Tolerance | None) -> Finding:
    """Return what tells two leaves of one form apart."""
    ours, theirs = handler_of(x).flatten(x)[0], handler_of(y).flatten(y)[0]
    own = handler_of(x).gap
    if not ours:
        name = Abstract.of(x).kind.__name__
        a, b = apart((SHORT(x), SHORT(y)), (FULL(x), FULL(y)))
        gap = NO_NUMBERS if own is None else own(x, y, tolerance)
        return Finding(path, VALUE, f"{name} {a}", f"{name} {b}", {0: gap}, 1)
    if any(t.is_meta for t in (*ours, *theirs)):
        return Finding(path, VALUE, _stated(x), _stated(y))
    layout = Abstract.of(x).layout
    if layout is None or layout.parts is not None:
        if own is None:
            found = [
                gap_between(s, t, tolerance) for s, t in zip(ours, theirs, strict=True)
            ]
        else:
            found = [own(x, y, tolerance)]
        total = sum(gap.of for gap in found)
        return Finding(path, VALUE, gaps=dict(enumerate(found)), total=total)
    gaps: dict[object, Gap] = {}
    for box in layout.boxes.get(RankGroup.of().me, ()):
        a, b = (
            region(ts[box.tensor].detach(), box.local, box.size)
            for ts in (ours, theirs)
        )
        gaps[box.offset, box.size] = gap_between(a, b, tolerance)
    total = math.prod(layout.shape)
    return Finding(path, VALUE, gaps=gaps, total=total, is_shared=True)


VALUE: Final = "value"
