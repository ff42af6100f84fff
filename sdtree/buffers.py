"""Writing into buffers that the caller gives: everything is checked, then copied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import add, attrgetter, is_, le

import torch
from torch import Tensor

from sdtree.errors import SpecMismatch
from sdtree.kinds.abstract import Abstract
from sdtree.leaf import handler_of
from sdtree.overlap import check_overlap, unexpanded
from sdtree.path import where
from sdtree.room import fill
from sdtree.shapes import pair
from sdtree.stages import Action, Entry
from sdtree.treespec import TreeSpec, take
from sdtree.typing import Leaf, Tree
from sdtree.window import Parts, Window, apart

MOST_SHOWN = 8


def writer(into: Tree, entry: Entry) -> Action:
    """Return the action that copies leaves into the buffers at their paths.

    Structure is checked here, and shapes, dtypes and overlaps as far as the leaves are
    known before the first window; the rest before a window is written.
    """
    given, spec = take(into)
    order = pair(entry.spec, spec, "into=")
    buffers = Buffers.of([given[k] for k in order], entry.spec)
    if entry.leaves is not None:
        everything = Window(entry.spec, range(len(entry.leaves)), list(entry.leaves))
        every = apart(everything.leaves, everything.path)
        check(everything, every, buffers)
        return lambda window: write(window, _parts(window, every), buffers)
    known = entry.preview()
    if known is not None:
        foreseen = Window(entry.spec, range(len(known)), list(known))
        check_fit(foreseen, apart(known, foreseen.path), buffers, foreseen=True)

    def act(window: Window) -> list[Leaf]:
        parts = apart(window.leaves, window.path)
        check(window, parts, buffers)
        return write(window, parts, buffers)

    return act


_IS_META = attrgetter("is_meta")


@dataclass(frozen=True, slots=True)
class Buffers:
    """The leaves to write into, in the order of the tree, and their local tensors.

    ``are_dense``: all of them are contiguous and hold data.
    """

    leaves: list[Leaf]
    parts: Parts
    starts: Sequence[int]
    are_dense: bool

    @classmethod
    def of(cls, leaves: list[Leaf], spec: TreeSpec) -> Buffers:
        parts = apart(leaves, lambda i: spec.paths()[i])
        every = parts.tensors
        dense = all(map(Tensor.is_contiguous, every)) and not any(map(_IS_META, every))
        if parts.is_bare:
            return cls(leaves, parts, range(len(leaves)), dense)
        starts = [0, *accumulate(joint.count for joint in parts.joints)]
        return cls(leaves, parts, starts[:-1], dense)

    def tensors(self, window: Window) -> list[Tensor]:
        """Return the local tensors of the buffers for the leaves of a window."""
        every = self.parts.tensors
        if window.holds_all(len(self.leaves)):
            return every
        return [
            every[self.starts[k] + i]
            for k in window.positions
            for i in range(self.parts.joints[k].count)
        ]


def _parts(window: Window, every: Parts) -> Parts:
    """Return the parts of a window, known already if it holds everything."""
    if window.holds_all(len(every.joints)):
        return every
    return apart(window.leaves, window.path)


def write(window: Window, parts: Parts, buffers: Buffers) -> list[Leaf]:
    """Copy a window into its buffers and return them; plain values are the source's."""
    targets, sources = buffers.tensors(window), parts.tensors
    if not buffers.are_dense:
        targets, sources = _cores(targets, sources)
    if targets:
        with torch.no_grad():
            fill(targets, sources)
    if parts.is_bare and window.holds_all(len(buffers.leaves)):
        return list(buffers.leaves)
    return [
        buffers.leaves[position] if joint.count else leaf
        for position, joint, leaf in zip(
            window.positions, parts.joints, window.leaves, strict=True
        )
    ]


def _cores(
    targets: Sequence[Tensor], sources: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return what is to be written and from where: nothing meta, no element twice."""
    real = [i for i, t in enumerate(targets) if not t.is_meta]
    return (
        [unexpanded(targets[i], targets[i]) for i in real],
        [unexpanded(sources[i], targets[i]) for i in real],
    )


# -- does it fit -------------------------------------------------------------------


def check(window: Window, parts: Parts, buffers: Buffers) -> None:
    """Raise ``SpecMismatch`` unless every leaf of a window can be written as it is."""
    targets = buffers.tensors(window)
    plain = buffers.are_dense and _same_kinds(window, parts, buffers)
    if plain and _fit_plainly(parts.tensors, targets):
        return
    check_fit(window, parts, buffers)
    check_overlap(window, parts, targets)


def _fit_plainly(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> bool:
    """Return whether tensors agree in shape and dtype, are dense and apart in memory.

    One loop over pairs, since what is asked of a tensor while it is at hand costs half
    as much, and no tensor arithmetic on addresses, which would wait for threads. A no
    means that each is to be looked at.
    """
    here: list[int] = []
    there: list[int] = []
    sizes: list[int] = []
    for x, y in zip(sources, targets, strict=True):
        if x.shape != y.shape or x.dtype is not y.dtype or not x.is_contiguous():
            return False
        size = x.nbytes
        if size:
            here.append(x.data_ptr())
            there.append(y.data_ptr())
            sizes.append(size)
    return 0 not in here and _are_apart(here + there, sizes + sizes)


def _are_apart(starts: Sequence[int], sizes: Sequence[int]) -> bool:
    """Return whether stretches of memory are disjoint.

    They are if, in order, each end lies before the start that follows as many: if two
    crossed, some end would lie behind it.
    """
    ends = sorted(map(add, starts, sizes))
    return all(map(le, ends, sorted(starts)[1:]))


def check_fit(
    window: Window, parts: Parts, buffers: Buffers, *, foreseen: bool = False
) -> None:
    """Raise ``SpecMismatch`` unless leaves have kind, shape, dtype of their buffers.

    Of leaves that are only foreseen the data cannot be asked.
    """
    found: list[str] = []
    for i, leaf in enumerate(window.leaves):
        reason = _misfit(leaf, buffers.leaves[window.positions[i]], foreseen)
        if reason:
            found.append(f"{where(window.path(i))}: {reason}")
    if found:
        shown = "; ".join(found[:MOST_SHOWN])
        more = f" and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
        raise SpecMismatch(f"into= does not fit, nothing was written; {shown}{more}")


def _same_kinds(window: Window, parts: Parts, buffers: Buffers) -> bool:
    """Return whether all leaves are tensors or plain values, and the buffers alike."""
    if not (parts.is_simple and buffers.parts.is_simple):
        return False
    there = buffers.leaves
    if not window.holds_all(len(there)):
        there = [buffers.leaves[k] for k in window.positions]
    return all(map(is_, map(type, window.leaves), map(type, there)))


def _misfit(leaf: Leaf, buffer: Leaf, foreseen: bool) -> str:
    """Return why a leaf cannot be written into a buffer, empty if it can."""
    a, b = Abstract.of(leaf), Abstract.of(buffer)
    if a.dtype is None and b.dtype is None:
        return ""
    for what, here, there in (
        ("kind", a.kind.__name__, b.kind.__name__),
        ("shape", a.shape, b.shape),
        ("dtype", a.dtype, b.dtype),
        ("local tensors", a.forms(), b.forms()),
    ):
        if here != there:
            return f"{what} {here} here, {there} in the buffer"
    return "" if foreseen else _misfit_inside(leaf, buffer)


def _misfit_inside(leaf: Leaf, buffer: Leaf) -> str:
    """Return what keeps two leaves of one form apart: missing data, another aux."""
    handler = handler_of(leaf)
    (sources, aux), (targets, other) = handler.flatten(leaf), handler.flatten(buffer)
    if [t.is_meta for t in sources] != [t.is_meta for t in targets]:
        return "one of leaf and buffer is meta and has no data"
    return "" if aux == other else f"{aux} here, {other} in the buffer"
