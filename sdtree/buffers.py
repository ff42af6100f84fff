"""Writing into buffers that the caller gives: everything is checked, then copied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from sdtree.arena import extent, fill, have_same_forms
from sdtree.errors import SpecMismatch
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
        check_fit(foreseen, apart(known, foreseen.path), buffers)

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


def check_fit(window: Window, parts: Parts, buffers: Buffers) -> None:
    """Raise ``SpecMismatch`` unless every leaf has the kind, shape, dtype of its buffer."""
    targets = buffers.tensors(window)
    if _same_kinds(window, parts, buffers) and _same_forms(parts.tensors, targets):
        return
    found: list[str] = []
    for i, leaf in enumerate(window.leaves):
        reason = _misfit(leaf, buffers.leaves[window.positions[i]])
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


def _misfit(leaf: Leaf, buffer: Leaf) -> str:
    """Return why a leaf cannot be written into a buffer, empty if it can."""
    if type(leaf) is not type(buffer):
        here, there = type(leaf).__name__, type(buffer).__name__
        return f"a {here} here, a {there} in the buffer"
    handler = handler_of(leaf)
    sources, aux = handler.flatten(leaf)
    targets, other = handler.flatten(buffer)
    if not sources and not targets:
        return ""
    for what, a, b in (
        ("local tensors", len(sources), len(targets)),
        ("shape", [tuple(t.shape) for t in sources], [tuple(t.shape) for t in targets]),
        ("dtype", [t.dtype for t in sources], [t.dtype for t in targets]),
        ("meta", [t.is_meta for t in sources], [t.is_meta for t in targets]),
    ):
        if a != b:
            return f"{what} {_plain(a)} here, {_plain(b)} in the buffer"
    return "" if aux == other else f"{aux} here, {other} in the buffer"


def _plain(found: object) -> object:
    return found[0] if isinstance(found, list) and len(found) == 1 else found


# -- does it overlap ---------------------------------------------------------------


class Stretch(NamedTuple):
    """The bytes from the first element of a tensor to its last, by address."""

    start: int
    stop: int


def check_overlap(window: Window, parts: Parts, buffers: Buffers) -> None:
    """Raise ``SpecMismatch`` if a buffer overlaps a source, or others but for a tie."""
    targets = buffers.tensors(window)
    owners = parts.owners()
    here, there = _stretches(parts.tensors), _stretches(targets)
    order = torch.argsort(there[0])
    starts, stops = there[0][order], there[1][order]
    reach = torch.cummax(stops, 0).values if len(stops) else stops
    _check_repeats(window, parts, targets, owners)
    clashes = torch.nonzero(starts[1:] < reach[:-1]).flatten().tolist()
    for k in clashes:
        i = int(order[k + 1])
        j = next(int(order[m]) for m in range(k + 1) if stops[m] > starts[k + 1])
        _check_tie(window, parts.tensors, targets, owners, j, i)
    first = torch.searchsorted(reach, here[0], right=True)
    inside = first < len(starts)
    hit = torch.zeros_like(inside)
    hit[inside] = starts[first[inside]] < here[1][inside]
    for i in torch.nonzero(hit & (here[1] > 0)).flatten().tolist():
        j = int(order[int(first[i])])
        raise SpecMismatch(
            f"into= overlaps the source, nothing was written; the buffer at "
            f"{where(window.path(owners[j]))} shares memory with the leaf at "
            f"{where(window.path(owners[i]))}; give buffers of their own, such as "
            "sd.empty_like(tree)"
        )


def _stretches(ts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return where each tensor starts and stops; nowhere, if it has no data."""
    starts = [t.data_ptr() for t in ts]
    sizes = [
        t.nbytes if t.is_contiguous() else extent(t) * t.itemsize for t in ts
    ]
    start = torch.tensor(starts, dtype=torch.int64)
    size = torch.tensor(sizes, dtype=torch.int64)
    return start, torch.where(start == 0, start, start + size)


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
