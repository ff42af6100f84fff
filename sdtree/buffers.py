"""Writing into buffers that the caller gives: everything is checked, then copied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

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
        parts = apart(everything.leaves, everything.path)
        check_fit(everything, parts, buffers)
        check_overlap(everything, parts, buffers)
        return lambda window: write(window, apart(window.leaves, window.path), buffers)
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


@dataclass(frozen=True, slots=True)
class Buffers:
    """The leaves to write into, in the order of the tree, and their local tensors."""

    leaves: list[Leaf]
    parts: Parts
    starts: Sequence[int]

    @classmethod
    def of(cls, leaves: list[Leaf], spec: TreeSpec) -> Buffers:
        parts = apart(leaves, lambda i: spec.paths()[i])
        if parts.is_bare:
            return cls(leaves, parts, range(len(leaves)))
        starts = [0, *accumulate(joint.count for joint in parts.joints)]
        return cls(leaves, parts, starts[:-1])

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


def write(window: Window, parts: Parts, buffers: Buffers) -> list[Leaf]:
    """Copy a window into its buffers and return them; plain values are the source's."""
    pairs = zip(buffers.tensors(window), parts.tensors, strict=True)
    cores = [
        (target, source)
        if target.is_contiguous()
        else (unexpanded(target, target), unexpanded(source, target))
        for target, source in pairs
        if not target.is_meta
    ]
    with torch.no_grad():
        fill([target for target, _ in cores], [source for _, source in cores])
    return [
        buffers.leaves[position] if joint.count else leaf
        for position, joint, leaf in zip(
            window.positions, parts.joints, window.leaves, strict=True
        )
    ]


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
    if _same_kinds(window, parts, buffers) and _same_forms(parts.tensors, targets):
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
    if not (parts.is_bare and buffers.parts.is_bare):
        return False
    return len({*map(type, window.leaves), *map(type, buffers.leaves)}) <= 1


def _same_forms(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> bool:
    same_data = [t.is_meta for t in sources] == [t.is_meta for t in targets]
    return same_data and have_same_forms(sources, targets)


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
        sizes = [t.nbytes if t.is_contiguous() else extent(t) * t.itemsize for t in ts]
        start = torch.tensor([t.data_ptr() for t in ts], dtype=torch.int64)
        size = torch.tensor(sizes, dtype=torch.int64)
        return cls(start, torch.where(start == 0, start, start + size))

    def crossing(self, start: int, stop: int) -> list[int]:
        """Return which of them have addresses in [start, stop)."""
        return torch.nonzero((self.start < stop) & (self.stop > start)).flatten().tolist()


def check_overlap(window: Window, parts: Parts, buffers: Buffers) -> None:
    """Raise ``SpecMismatch`` if a buffer overlaps a source, or others but for a tie."""
    sources, targets, owners = parts.tensors, buffers.tensors(window), parts.owners()
    if not targets:
        return
    here, there = Stretches.of(sources), Stretches.of(targets)
    _check_repeats(window, parts, targets, owners)
    order = torch.argsort(there.start)
    starts, reach = there.start[order], torch.cummax(there.stop[order], 0).values
    for k in torch.nonzero(starts[1:] < reach[:-1]).flatten().tolist():
        i = int(order[k + 1])
        for j in there.crossing(int(there.start[i]), int(there.stop[i])):
            if j != i and _touch(targets[i], targets[j]):
                _check_tie(window, sources, targets, owners, j, i)
    first = torch.searchsorted(reach, here.start, right=True).clamp(max=len(reach) - 1)
    met = (starts[first] < here.stop) & (reach[first] > here.start)
    for i in torch.nonzero(met).flatten().tolist():
        for j in there.crossing(int(here.start[i]), int(here.stop[i])):
            if _touch(sources[i], targets[j]):
                leaf, buffer = where(window.path(owners[i])), where(window.path(owners[j]))
                raise SpecMismatch(
                    f"into= overlaps the source, nothing was written; the buffer at "
                    f"{buffer} shares memory with the leaf at {leaf}; give buffers of "
                    "their own, such as sd.empty_like(tree)"
                )


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


def _check_tie(
    window: Window,
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
    owners: Sequence[int],
    i: int,
    j: int,
) -> None:
    """Raise unless two buffers that overlap do so as their sources do."""
    a, b, x, y = sources[i], sources[j], targets[i], targets[j]
    same_places = a.stride() == x.stride() and b.stride() == y.stride()
    apart_by = b.data_ptr() - a.data_ptr()
    if same_places and apart_by == y.data_ptr() - x.data_ptr():
        return
    here, there = where(window.path(owners[i])), where(window.path(owners[j]))
    raise SpecMismatch(
        f"into= has buffers that overlap where the source does not, nothing was "
        f"written; those at {here} and {there} share memory, give them buffers of "
        "their own"
    )
