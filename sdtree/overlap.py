"""Buffers must not overlap the source, nor each other but as their sources do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import add, le

import torch
from torch import Tensor

from sdtree.arena import extent
from sdtree.errors import SpecMismatch
from sdtree.path import where
from sdtree.window import Parts, Window


def do_not_clash(here: list[int], there: list[int], sizes: list[int]) -> bool:
    """Return whether each source can be copied there: ties go where their twins do.

    No arithmetic of tensors on addresses: it would wait for threads.
    """
    first: dict[int, int] = {}
    for i, start in enumerate(there):
        twin = first.setdefault(start, i)
        if twin != i and (here[i], sizes[i]) != (here[twin], sizes[twin]):
            return False
    if len(first) < len(there):
        kept = [*first.values()]
        there = [there[i] for i in kept]
        here, sizes = [here[i] for i in kept], [sizes[i] for i in kept]
    sources = dict(zip(here, sizes, strict=True))
    if len(sources) < len(here) and any(
        sources[start] != size for start, size in zip(here, sizes, strict=True)
    ):
        return False
    return _are_apart([*sources, *there], [*sources.values(), *sizes])


def _are_apart(starts: Sequence[int], sizes: Sequence[int]) -> bool:
    """Return whether stretches of memory are disjoint.

    They are if, in order, each end lies before the start that follows as many: if two
    crossed, some end would lie behind it.
    """
    ends = sorted(map(add, starts, sizes))
    return all(map(le, ends, sorted(starts)[1:]))


def check_overlap(window: Window, parts: Parts, targets: Sequence[Tensor]) -> None:
    """Raise ``SpecMismatch`` if a buffer overlaps a source, or others but for a tie."""
    count, owners = len(targets), parts.owners()
    _check_repeats(window, parts, targets, owners)
    pairs = Pairs(window, parts.tensors, targets, owners)
    for i, j in crossings([*targets, *parts.tensors]):
        if j < count:
            pairs.check_tie(i, j)
        elif i < count:
            pairs.check_source(i, j - count)


def crossings(ts: Sequence[Tensor]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of places, lower first, whose stretches of memory cross.

    The stretch of a tensor goes from its first byte to its last.
    """
    starts = [t.data_ptr() for t in ts]
    sizes = [t.nbytes if t.is_contiguous() else extent(t) * t.itemsize for t in ts]
    places = [i for i, start in enumerate(starts) if start]
    if len(places) < len(ts):
        starts, sizes = [starts[i] for i in places], [sizes[i] for i in places]
    if _are_apart(starts, sizes):
        return
    alive: list[tuple[int, int]] = []
    for start, size, i in sorted(zip(starts, sizes, places, strict=True)):
        alive = [(end, j) for end, j in alive if end > start]
        for _, j in alive:
            yield min(i, j), max(i, j)
        alive.append((start + size, i))


@dataclass(frozen=True, slots=True)
class Pairs:
    """Leaves and buffers whose stretches cross, each to be looked at exactly."""

    window: Window
    sources: Sequence[Tensor]
    targets: Sequence[Tensor]
    owners: Sequence[int]

    def check_source(self, i: int, j: int) -> None:
        """Raise if a buffer shares a byte with a source."""
        if touch(self.targets[i], self.sources[j]):
            raise SpecMismatch(
                f"into= overlaps the source, nothing was written; the buffer at "
                f"{self._where(i)} shares memory with the leaf at {self._where(j)}; "
                "give buffers of their own, such as sd.empty_like(tree)"
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
        if touch(x, y):
            raise SpecMismatch(
                f"into= has buffers that overlap where the source does not, nothing "
                f"was written; those at {self._where(i)} and {self._where(j)} share "
                "memory, give them buffers of their own"
            )

    def _where(self, i: int) -> str:
        return where(self.window.path(self.owners[i]))


def touch(a: Tensor, b: Tensor) -> bool:
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


def unexpanded(t: Tensor, like: Tensor) -> Tensor:
    """Return one of the copies that ``like`` repeats along dimensions of stride 0."""
    for dim, (size, step) in enumerate(zip(like.size(), like.stride(), strict=True)):
        if step == 0 and size > 1:
            t = t.narrow(dim, 0, 1)
    return t
