"""Which tensors share storage, what they cover of it, and their like over another."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sdtree.arena import as_one, span, tie_groups
from sdtree.typing import Leaf
from sdtree.window import apart


def by_storage(ts: Collection[Tensor]) -> list[list[int]]:
    """Return the places of tensors, those of one storage together.

    Zero-size and meta tensors share none.
    """
    ties = {group[0]: group for group in tie_groups(list(ts))}
    followers = {i for _, *others in ties.values() for i in others}
    return [ties.get(i, [i]) for i in range(len(ts)) if i not in followers]


def bounds(ts: Collection[Tensor]) -> tuple[int, int]:
    """Return the bytes of their storage that tensors lie in, as [low, high)."""
    spans = [span(t) for t in ts]
    return min(spans)[0], max(stop for _, stop in spans)


def overlapping(tensors: Mapping[int, Tensor]) -> Iterator[dict[int, Tensor]]:
    """Yield tensors that share bytes together, those that share none alone."""
    positions = list(tensors)
    for group in by_storage(tensors.values()):
        ts = {i: tensors[i] for i in (positions[k] for k in group)}
        grids = {i: Grid.of(t) for i, t in ts.items()} if len(ts) > 1 else {}
        for members in _touching(grids) if grids else [ts]:
            yield {i: ts[i] for i in sorted(members)}


def over(t: Tensor, storage: torch.UntypedStorage, low: int) -> Tensor:
    """Return the like of ``t`` over storage that begins where its own has ``low``."""
    offset = (span(t)[0] - low) // t.itemsize
    empty = torch.empty(0, dtype=t.dtype, device=storage.device)
    return empty.set_(storage, offset, t.size(), t.stride())


def cut_storages(ts: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors over no more of their storages than they cover, not copied.

    What holds nothing gets a storage of its own: its old one may begin where another's
    does, which torch.save would take for one storage of two dtypes.
    """
    ts = as_one(ts)
    cut = [t if t.numel() or t.is_meta else torch.empty_like(t) for t in ts]
    for members in by_storage(ts):
        first = ts[members[0]]
        if not first.numel():
            continue
        low, high = bounds([ts[i] for i in members])
        storage = first.untyped_storage()
        if high - low < storage.nbytes():
            part = storage[low:high]  # one for all: torch.save goes by its identity
            for i in members:
                cut[i] = over(ts[i], part, low)
    return cut


def hollow_storages(ts: Sequence[Tensor]) -> list[Tensor]:
    """Return the like of tensors over storage that no one fills: it takes no memory."""
    ts = as_one(ts)
    made = list(ts)
    for members in by_storage(ts):
        low, high = bounds([ts[i] for i in members])
        low -= low % max(ts[i].itemsize for i in members)
        room = torch.UntypedStorage(high - low)
        for i in members:
            made[i] = over(ts[i], room, low)
    return made


def remade(
    leaves: Sequence[Leaf], remake: Callable[[Sequence[Tensor]], Sequence[Tensor]]
) -> list[Leaf]:
    """Return the leaves with other local tensors in them.

    What torch writes with its data inside, as it does numpy arrays, stays itself.
    """
    inside = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    parts = apart(inside, lambda i: (i,))
    made = iter(parts.join(remake(parts.tensors)))
    return [next(made) if isinstance(leaf, Tensor) else leaf for leaf in leaves]


# -- which bytes are shared --------------------------------------------------------


class Grid(NamedTuple):
    """The bytes that a tensor lies on: a run of them, again and again.

    ``dims`` are how far apart it comes again and how many times, the farthest first.
    """

    start: int
    run: int
    dims: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, t: Tensor) -> Grid:
        """Return the bytes of a tensor, runs that touch each other made one."""
        pairs = zip(t.stride(), t.size(), strict=True)
        dims = sorted((s * t.itemsize, size) for s, size in pairs if s and size > 1)
        run, apart = t.itemsize, 0
        for step, size in dims:
            if step > run:
                break
            run += (size - 1) * step
            apart += 1
        return cls(span(t)[0], run, tuple(dims[apart:][::-1]))

    @property
    def stop(self) -> int:
        """Return the byte after the last."""
        last = sum((size - 1) * step for step, size in self.dims)
        return self.start + last + self.run

    def within(self, step: int, low: int) -> Grid:
        """Return what is left of it where ``low`` and each ``step`` after are one."""
        dims = self.dims[1:] if self.dims[:1] and self.dims[0][0] == step else self.dims
        return Grid((self.start - low) % step, self.run, dims)


def _touching(grids: Mapping[int, Grid]) -> Iterator[Collection[int]]:
    """Yield the keys of grids that share a byte, with what these share bytes with.

    Those that cross without a common step are taken to share one.
    """
    for group in _crossing(grids):
        parts = [group]
        folded = _folded({i: grids[i] for i in group})
        if folded is not None:
            parts = list(_touching(folded))
        if len(parts) == 1:
            yield group
            continue
        for part in parts:
            yield from _touching({i: grids[i] for i in part})


def _crossing(grids: Mapping[int, Grid]) -> Iterator[list[int]]:
    """Yield the keys of grids whose spans cross, with what these cross."""
    found: list[int] = []
    reached = 0
    for i in sorted(grids, key=grids.__getitem__):
        if found and grids[i].start >= reached:
            yield found
            found = []
        found.append(i)
        reached = max(reached, grids[i].stop)
    yield found


def _folded(grids: Mapping[int, Grid]) -> dict[int, Grid] | None:
    """Return grids without the step that they have in common, None if they have none.

    Law: grids that are apart then have been apart before.
    """
    steps = {grid.dims[0][0] for grid in grids.values() if grid.dims}
    if len(grids) == 1 or len(steps) != 1:
        return None
    [step] = steps
    low = min(grid.start for grid in grids.values())
    folded = {i: grid.within(step, low) for i, grid in grids.items()}
    return None if any(grid.stop > step for grid in folded.values()) else folded
