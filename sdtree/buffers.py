"""Writing into buffers that the caller gives: everything is checked, then copied."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import attrgetter, is_

import torch
from torch import Tensor

from sdtree.arena import extent, fill, have_same_forms
from sdtree.errors import SpecMismatch
from sdtree.kinds.abstract import Abstract
from sdtree.leaf import handler_of
from sdtree.path import where
from sdtree.stages import Action, Entry
from sdtree.tree import TreeSpec, pair, take
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
        check_fit(everything, every, buffers)
        check_overlap(everything, every, buffers)
        return lambda window: write(window, _parts(window, every), buffers)
    known = entry.preview()
    if known is not None:
        foreseen = Window(entry.spec, range(len(known)), list(known))
        check_fit(foreseen, apart(known, foreseen.path), buffers, foreseen=True)

    def act(window: Window) -> list[Leaf]:
        parts = apart(window.leaves, window.path)
        check_fit(window, parts, buffers)
        check_overlap(window, parts, buffers)
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
        if len(window.positions) == len(self.leaves) and self.parts.is_bare:
            if window.positions == range(len(every)):
                return every
        return [
            every[self.starts[k] + i]
            for k in window.positions
            for i in range(self.parts.joints[k].count)
        ]


def _parts(window: Window, every: Parts) -> Parts:
    """Return the parts of a window, known already if it holds everything."""
    if window.positions == range(len(every.joints)):
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
    if parts.is_bare and len(window.positions) == len(buffers.leaves):
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


def unexpanded(t: Tensor, like: Tensor) -> Tensor:
    """Return one of the copies that ``like`` repeats along its dimensions of stride 0."""
    for dim, (size, step) in enumerate(zip(like.size(), like.stride(), strict=True)):
        if step == 0 and size > 1:
            t = t.narrow(dim, 0, 1)
    return t


# -- does it fit -------------------------------------------------------------------


def check_fit(
    window: Window, parts: Parts, buffers: Buffers, *, foreseen: bool = False
) -> None:
    """Raise ``SpecMismatch`` unless every leaf has the kind, shape, dtype of its buffer.

    Of leaves that are only foreseen the data cannot be asked.
    """
    targets = buffers.tensors(window)
    if (
        buffers.are_dense
        and _same_kinds(window, parts, buffers)
        and have_same_forms(parts.tensors, targets)
        and not any(map(_IS_META, parts.tensors))
    ):
        return
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
    if len(window.positions) < len(there):
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


# -- does it overlap ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stretches:
    """For each tensor the addresses from its first byte to its last, as [start, stop).

    Tensors without data start and stop at 0.
    """

    start: Tensor
    stop: Tensor

    @classmethod
    def of(cls, ts: Sequence[Tensor]) -> Stretches:
        start = _integers([*map(Tensor.data_ptr, ts)])
        if all(map(Tensor.is_contiguous, ts)):
            size = _integers([t.nbytes for t in ts])
        else:
            size = _integers([extent(t) * t.itemsize for t in ts])
        return cls(start, torch.where(start == 0, start, start + size))

    def crossing(self, start: int, stop: int) -> list[int]:
        """Return which of them have addresses in [start, stop)."""
        return torch.nonzero((self.start < stop) & (self.stop > start)).flatten().tolist()


def _integers(values: list[int]) -> Tensor:
    """Return a tensor of integers, which ``torch.tensor`` makes at a third the speed."""
    return torch.frombuffer(array("q", values), dtype=torch.int64)


def check_overlap(window: Window, parts: Parts, buffers: Buffers) -> None:
    """Raise ``SpecMismatch`` if a buffer overlaps a source, or others but for a tie."""
    targets, owners = buffers.tensors(window), parts.owners()
    if not targets:
        return
    if not buffers.are_dense:
        _check_repeats(window, parts, targets, owners)
    both = Stretches.of([*targets, *parts.tensors])
    if not _may_overlap(both, len(targets)):
        return
    pairs = Pairs(window, parts.tensors, targets, owners)
    for i in range(len(targets)):
        for j in both.crossing(int(both.start[i]), int(both.stop[i])):
            if j >= len(targets):
                pairs.check_source(i, j - len(targets))
            elif j < i:
                pairs.check_tie(j, i)


def _may_overlap(both: Stretches, count: int) -> bool:
    """Return whether any of the first ``count`` stretches crosses any other.

    In order of their starts: whether one starts before all buffers before it have
    stopped, or a buffer before all sources have.
    """
    order = torch.argsort(both.start)
    start, stop, is_buffer = both.start[order], both.stop[order], order < count
    zero = torch.zeros((), dtype=torch.int64)
    buffers_reach = torch.cummax(torch.where(is_buffer, stop, zero), 0).values
    sources_reach = torch.cummax(torch.where(is_buffer, zero, stop), 0).values
    after = start[1:]
    early = (after < buffers_reach[:-1]) | (is_buffer[1:] & (after < sources_reach[:-1]))
    return bool(early.any())


@dataclass(frozen=True, slots=True)
class Pairs:
    """Leaves and buffers whose stretches cross, each to be looked at exactly."""

    window: Window
    sources: Sequence[Tensor]
    targets: Sequence[Tensor]
    owners: Sequence[int]

    def check_source(self, i: int, j: int) -> None:
        """Raise if a buffer shares a byte with a source."""
        if _touch(self.targets[i], self.sources[j]):
            raise SpecMismatch(
                f"into= overlaps the source, nothing was written; the buffer at "
                f"{self._where(i)} shares memory with the leaf at {self._where(j)}; give "
                "buffers of their own, such as sd.empty_like(tree)"
            )

    def check_tie(self, i: int, j: int) -> None:
        """Raise if two buffers share a byte and not just as their sources do."""
        a, b, x, y = (
            self.sources[i],
            self.sources[j],
            self.targets[i],
            self.targets[j],
        )
        same_places = a.stride() == x.stride() and b.stride() == y.stride()
        gap = b.data_ptr() - a.data_ptr()
        if same_places and gap == y.data_ptr() - x.data_ptr():
            return
        if _touch(x, y):
            raise SpecMismatch(
                f"into= has buffers that overlap where the source does not, nothing was "
                f"written; those at {self._where(i)} and {self._where(j)} share memory, "
                "give them buffers of their own"
            )

    def _where(self, i: int) -> str:
        return where(self.window.path(self.owners[i]))


def _touch(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors whose stretches cross have a byte in common."""
    if a.is_contiguous() and b.is_contiguous():
        return True
    low = min(a.data_ptr(), b.data_ptr())
    high = max(t.data_ptr() + extent(t) * t.itemsize for t in (a, b))
    taken = torch.zeros(high - low, dtype=torch.bool)
    _bytes_of(a, taken, low).fill_(True)
    return bool(_bytes_of(b, taken, low).any())


def _bytes_of(t: Tensor, memory: Tensor, low: int) -> Tensor:
    """Return the part of a map of memory, which begins at ``low``, that ``t`` takes."""
    core = unexpanded(t, t)
    strides = [step * t.itemsize for step in core.stride()]
    size = (*core.size(), t.itemsize)
    return memory.as_strided(size, (*strides, 1), t.data_ptr() - low)


def _check_repeats(
    window: Window, parts: Parts, targets: Sequence[Tensor], owners: Sequence[int]
) -> None:
    for i, (source, target) in enumerate(zip(parts.tensors, targets, strict=True)):
        if target.is_contiguous() or extent(target) >= target.numel():
            continue
        if source.stride() != target.stride():
            raise SpecMismatch(
                f"{where(window.path(owners[i]))}: the buffer holds one element in "
                "several places and the leaf does not; nothing was written, give a "
                "buffer that is not expanded"
            )
