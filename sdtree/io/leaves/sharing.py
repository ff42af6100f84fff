"""Which tensors share storage, what they cover of it, and their like over another."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from sdtree.tensors.lattice import Lattice, crossing
from sdtree.tensors.remake import tied_still
from sdtree.tensors.storage import as_one, extent, place_of, raw, span, tie_groups
from sdtree.transform.overlap import lattice_of
from sdtree.transform.window import apart
from sdtree.typing import Leaf


def by_storage(ts: Collection[Tensor]) -> list[list[int]]:
    """Return the places of tensors, those of one storage together.

    Zero-size and meta tensors share none. Memory that several storages have is one to
    them only as far as ``as_one`` could make it so.
    """
    return _each_in(_ties(ts), len(ts))


def by_storage_to_be(ts: Sequence[Tensor]) -> list[list[int]]:
    """Return the places of tensors, those together that stay tied in a copy."""
    return _each_in(tied_still(ts, _ties(ts), None), len(ts))


def _ties(ts: Collection[Tensor]) -> list[list[int]]:
    return tie_groups(list(ts), [place_of(t)[0] for t in ts])


def _each_in(groups: Sequence[list[int]], count: int) -> list[list[int]]:
    """Return groups of places, and those that are in none alone."""
    ties = {group[0]: group for group in groups}
    followers = {i for _, *others in groups for i in others}
    return [ties.get(i, [i]) for i in range(count) if i not in followers]


def bounds(ts: Collection[Tensor]) -> tuple[int, int]:
    """Return the bytes of their storage that tensors lie in, as [low, high)."""
    spans = [span(t) for t in ts]
    return min(spans)[0], max(stop for _, stop in spans)


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
    """Return the like of tensors over storage that no one fills: it takes no memory.

    They are tied as their copies are: a conjugate is not to what it is of.
    """
    ts = as_one(ts)
    made = list(ts)
    for members in by_storage_to_be(ts):
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

    What torch writes with its data inside, as it does numpy arrays, stays itself, and
    so does what is tied to it.
    """
    parts = apart(leaves, lambda i: (i,))
    owners = parts.owners()
    stays = {k for k, i in enumerate(owners) if not isinstance(leaves[i], Tensor)}
    for group in tie_groups(parts.tensors) if stays else ():
        if not stays.isdisjoint(group):
            stays.update(group)
    made = list(parts.tensors)
    moved = [k for k in range(len(made)) if k not in stays]
    for k, t in zip(moved, remake([made[k] for k in moved]), strict=True):
        made[k] = t
    return [
        new if isinstance(leaf, Tensor) else leaf
        for leaf, new in zip(leaves, parts.join(made), strict=True)
    ]


def copy_bytes(source: Tensor, target: Tensor) -> None:
    """Copy a tensor to one of its form, whatever strides they have in common."""
    if target.is_contiguous():
        raw(target).copy_(raw(source))
    else:  # the strides are alike, and may have one element in several places
        raw(_covered(target)).copy_(raw(_covered(source)))


def _covered(t: Tensor) -> Tensor:
    return t.as_strided((extent(t),), (1,), t.storage_offset())


# -- which bytes are shared --------------------------------------------------------


def overlapping(tensors: Mapping[int, Tensor]) -> Iterator[dict[int, Tensor]]:
    """Yield tensors that share bytes together, those that share none alone.

    Those that cross, and have no step in common, are taken to share some.
    """
    positions = list(tensors)
    for group in by_storage(tensors.values()):
        ts = {i: tensors[i] for i in (positions[k] for k in group)}
        views = {i: lattice_of(t) for i, t in ts.items()} if len(ts) > 1 else {}
        for members in _meeting(views) if views else [ts]:
            yield {i: ts[i] for i in sorted(members)}


def _meeting(views: Mapping[int, Lattice]) -> Iterator[Collection[int]]:
    """Yield the keys of views that meet, with what these meet."""
    keys = [*views]
    spans = [(view.start, view.stop) for view in views.values()]
    groups = [[keys[k] for k in group] for group in crossing(spans, keys)]
    crossed = {key for group in groups for key in group}
    yield from ([key] for key in keys if key not in crossed)
    for group in groups:
        folded = _folded({key: views[key] for key in group})
        parts = [group] if folded is None else [*_meeting(folded)]
        if len(parts) == 1:
            yield group
        else:
            for part in parts:
                yield from _meeting({key: views[key] for key in part})


def _folded(views: Mapping[int, Lattice]) -> dict[int, Lattice] | None:
    """Return where views lie in the step that they have in common, None if in none.

    Law: views that do not meet then do not meet at all.
    """
    steps = {view.dims[0][1] for view in views.values() if not view.is_run}
    if len(steps) != 1:
        return None
    [step] = steps
    low = min(view.start for view in views.values())
    folded = {
        key: Lattice((view.start - low) % step, view.dims[not view.is_run :])
        for key, view in views.items()
    }
    return None if any(view.stop > step for view in folded.values()) else folded
