"""New tensors for old ones: of the same sizes, strides and ties, and the data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import ClassVar, Final, Protocol

import torch
from torch import Tensor

from sdtree.errors import UnknownLeaf
from sdtree.tensors.devices import REFUSALS, check_present
from sdtree.tensors.outcome import bytes_taken, is_sparse, tie_bytes
from sdtree.tensors.slab import Slab
from sdtree.tensors.storage import (
    ALIGNMENT,
    as_one,
    as_stored,
    blocks,
    check_held,
    dtype_of,
    extent,
    is_lazy,
    place_of,
    span,
    stored_bytes,
    tie_groups,
)


class Room(Protocol):
    """What makes new tensors, none of them filled."""

    def strided(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a tensor of the size and strides of a contiguous one."""
        ...

    def dense(self, size: Sequence[int], like: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a contiguous tensor, where it is meant for ``like``."""
        ...


@dataclass(frozen=True, slots=True)
class Allocator:
    """Where new tensors are made: the device of the old ones unless one is given."""

    in_slab: ClassVar[bool] = False

    device: torch.device | None = None
    pin: bool = False
    share: bool = False

    def strided(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Return an unfilled tensor of the size and strides of ``like``."""
        return self._settle(
            torch.empty_strided(
                like.size(),
                like.stride(),
                dtype=dtype,
                device=self.device or like.device,
                pin_memory=self.pin,
            )
        )

    def dense(self, size: Sequence[int], like: Tensor, dtype: torch.dtype) -> Tensor:
        """Return an unfilled contiguous tensor on the device meant for ``like``."""
        device = self.device or like.device
        return self._settle(
            torch.empty(size, dtype=dtype, device=device, pin_memory=self.pin)
        )

    def _settle(self, t: Tensor) -> Tensor:
        return t.share_memory_() if self.share and t.numel() else t


@dataclass(frozen=True, slots=True)
class SlabAllocator(Allocator):
    """One that makes them at once, on the host, in one slab; all but those on meta."""

    in_slab: ClassVar[bool] = True


def buffers_on(device: torch.device | None, pin: bool, share: bool) -> Allocator:
    """Return where buffers are made, in one slab if they are pinned or shared."""
    kind = SlabAllocator if pin or share else Allocator
    return kind(device, pin, share)


@dataclass(slots=True)
class Remake:
    """New tensors in the order of the old ones, and the copies that fill them."""

    made: list[Tensor]
    targets: list[Tensor]
    sources: list[Tensor]


def remake(
    ts: Sequence[Tensor],
    room: Allocator,
    dtypes: Sequence[torch.dtype] | None = None,
    *,
    filled: bool = True,
) -> list[Tensor]:
    """Return new tensors of the sizes, strides and ties of the old ones, and the data.

    Law: two of them share storage if and only if the old ones do and end in one dtype,
    at the same offset from each other. Of each storage only the span that its tensors
    cover is made; an untied tensor that fills less than half of its span is made
    dense. Meta tensors have no storage: they take on the dtype, and those strides.
    """
    try:
        return _remade(ts, room, dtypes, filled)
    except REFUSALS:
        check_present(room.device)  # if it is not, this says more than torch does
        raise


def remake_some(
    ts: Sequence[Tensor],
    which: Sequence[int],
    room: Allocator,
    dtypes: Sequence[torch.dtype] | None = None,
) -> list[Tensor]:
    """Return the tensors, some of them made anew, as ``remake`` does; the others stay.

    >>> remake_some([torch.ones(2), torch.ones(1)], [1], Allocator(), [torch.half] * 2)
    [tensor([1., 1.]), tensor([1.], dtype=torch.float16)]
    """
    wanted = None if dtypes is None else [dtypes[i] for i in which]
    result = list(ts)
    for i, t in zip(which, remake([ts[i] for i in which], room, wanted), strict=True):
        result[i] = t
    return result


FLOAT4: Final = torch.float4_e2m1fn_x2
"""Pairs of elements in a byte, which torch holds and does not calculate with."""


def in_dtypes(ts: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    """Return the tensors in these dtypes, ties kept; those that have theirs stay."""
    changed = [i for i, t in enumerate(ts) if t.dtype != dtypes[i]]
    for i in changed:
        if FLOAT4 in (ts[i].dtype, dtypes[i]):
            raise UnknownLeaf(
                f"torch converts nothing from {ts[i].dtype} to {dtypes[i]}; leave it "
                "out with sd.where, or make another tensor of it before with sd.map"
            )
    return remake_some(ts, changed, Allocator(), dtypes)


def in_dtype(dtype: torch.dtype, ts: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors, those that are floating-point in a dtype; see ``in_dtypes``.

    >>> in_dtype(torch.half, [torch.ones(1), torch.tensor(1)])
    [tensor([1.], dtype=torch.float16), tensor(1)]
    """
    return in_dtypes(ts, [or_own(dtype, t) for t in ts])


def or_own(dtype: torch.dtype, t: Tensor) -> torch.dtype:
    """Return what becomes of the dtype of a tensor that is cast."""
    return dtype if t.is_floating_point() else t.dtype


def _remade(
    ts: Sequence[Tensor],
    room: Allocator,
    dtypes: Sequence[torch.dtype] | None,
    filled: bool,
) -> list[Tensor]:
    easy, keys = _scan(ts, room, filled)
    if not keys:
        ts = as_one(ts)
        keys = [place_of(t)[0] for t in ts]
    ties = tie_groups(ts, keys) if len({*keys}) < len(keys) else []
    if room.in_slab:
        return _in_slab(ts, ties, room, filled)
    if dtypes is None and not ties and all(easy):
        return _anew(ts, filled)
    result = Remake(list(ts), [], [])
    tied = tied_still(ts, ties, dtypes)
    for members in tied:
        _remake_tie(members, ts, room, dtypes, result)
    done = {i for members in tied for i in members}
    easy = [is_easy and dtypes is None for is_easy in easy]
    bulk = [i for i, is_easy in enumerate(easy) if is_easy and i not in done]
    for i, t in zip(bulk, _anew([ts[i] for i in bulk], filled), strict=True):
        result.made[i] = t
    for i in [i for i, is_easy in enumerate(easy) if not is_easy and i not in done]:
        _remake_one(i, ts[i], room, _dtype(i, ts, dtypes), result)
    if filled and result.targets:
        fill(result.targets, result.sources)
    return result.made


def _in_slab(
    ts: Sequence[Tensor], ties: Sequence[Sequence[int]], room: Allocator, filled: bool
) -> list[Tensor]:
    """Return tensors that have one place of a slab for each tie and each other."""
    tied = tied_still(ts, ties, None)
    rest = sorted(set(range(len(ts))).difference(i for tie in tied for i in tie))
    sizes = [tie_bytes([ts[i] for i in tie]) + 2 * ALIGNMENT for tie in tied]
    sizes += [0 if ts[i].is_meta else bytes_taken(ts[i]) for i in rest]
    slab = Slab.of(sizes, pin=room.pin, share=room.share)
    result = Remake(list(ts), [], [])
    for members in tied:
        _remake_tie(members, ts, slab, None, result)
    for i in rest:
        _remake_one(i, ts[i], slab, ts[i].dtype, result)
    slab.close()
    if filled:
        fill(result.targets, result.sources)
    return result.made


def tied_still(
    ts: Sequence[Tensor],
    ties: Sequence[Sequence[int]],
    dtypes: Sequence[torch.dtype] | None,
) -> list[list[int]]:
    """Return the positions of tensors that stay tied when they are remade."""
    outcomes = (part for tie in ties for part in _by_outcome(tie, ts, dtypes))
    return [members for members in outcomes if len(members) > 1]


def _dtype(
    i: int, ts: Sequence[Tensor], dtypes: Sequence[torch.dtype] | None
) -> torch.dtype:
    return ts[i].dtype if dtypes is None else dtypes[i]


def _scan(
    ts: Sequence[Tensor], room: Allocator, filled: bool
) -> tuple[list[bool], list[int]]:
    """Return which tensors torch itself makes anew as we want them, and storage keys.

    These are the dense ones that stay on their device and have no bits to resolve, or
    to keep: of the bytes of a bool a clone keeps 0 and 1. No keys if some memory is not
    torch's own. One loop: what is asked of a tensor while it is at hand costs half as
    much.
    """
    keys: list[int] = []
    easy: list[bool] = []
    is_own = True
    is_home = _test_of_home(room)
    for t in ts:
        storage = t.untyped_storage()
        is_dense = t.is_contiguous()
        if filled:
            size = storage.nbytes()
            if size != t.nbytes or not is_dense or t.storage_offset():
                check_held(t, size)
        keys.append(storage.data_ptr())
        is_own = is_own and storage.resizable()
        easy.append(
            is_dense
            and is_home(t)
            and not (filled and (t.is_neg() or t.is_conj() or t.dtype is torch.bool))
        )
    return easy, keys if is_own else []


def _test_of_home(room: Allocator) -> Callable[[Tensor], bool]:
    """Return the test whether torch makes the new tensor where it is to be."""
    if room.pin or room.share:
        return lambda _: False
    if room.device is None:
        return lambda t: not t.is_meta
    if room.device.type == "cpu":
        return attrgetter("is_cpu")
    return lambda t: t.device == room.device


def _anew(ts: Sequence[Tensor], filled: bool) -> list[Tensor]:
    """Return tensors as torch itself makes them anew, many in a call where it does."""
    if not filled:
        return list(map(torch.empty_like, ts))
    if ts and hasattr(torch, "_foreach_clone"):
        every = list(ts)
        parts = [torch._foreach_clone(every[part]) for part in blocks(len(every))]
        return [*chain.from_iterable(parts)]
    return [t.clone() for t in ts]


def _by_outcome(
    group: Sequence[int], ts: Sequence[Tensor], dtypes: Sequence[torch.dtype] | None
) -> Iterable[list[int]]:
    """Split a tie into the parts that stay tied: one per bit and per change of dtype.

    Members that keep their dtype stay together whatever it is, as views of bytes.
    """
    parts: defaultdict[object, list[int]] = defaultdict(list)
    for i in group:
        t = ts[i]
        bits, dtype = (t.is_conj(), t.is_neg()), _dtype(i, ts, dtypes)
        changes = any(bits) or dtype != t.dtype
        parts[(*bits, t.dtype, dtype) if changes else None].append(i)
    return parts.values()


def _remake_one(
    i: int, t: Tensor, room: Room, dtype: torch.dtype, result: Remake
) -> None:
    if t.is_meta:
        result.made[i] = _without_data(t, dtype)
        return
    if t.is_contiguous():
        made = target = room.strided(t, dtype)
        source = t
    elif is_sparse(t):
        made = target = room.dense(t.size(), t, dtype)
        source = t
    else:
        covered = extent(t)
        target = room.dense((covered,), t, dtype)
        source = t.as_strided((covered,), (1,), t.storage_offset())
        made = target.as_strided(t.size(), t.stride())
    result.made[i] = made
    result.targets.append(target)
    result.sources.append(source)


def _without_data(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a meta tensor with the strides that one with data would get."""
    if is_sparse(t):
        return torch.empty(t.size(), dtype=dtype, device="meta")
    if t.dtype == dtype:
        return t.detach()
    return torch.empty_strided(t.size(), t.stride(), dtype=dtype, device="meta")


def _remake_tie(
    members: Sequence[int],
    ts: Sequence[Tensor],
    room: Room,
    dtypes: Sequence[torch.dtype] | None,
    result: Remake,
) -> None:
    if len({ts[i].dtype for i in members}) > 1:
        _remake_bytes(members, ts, room, result)
        return
    first = ts[members[0]]
    offsets = {i: int(ts[i].storage_offset()) for i in members}
    low = min(offsets.values())
    high = max(offset + extent(ts[i]) for i, offset in offsets.items())
    target = room.dense((high - low,), first, _dtype(members[0], ts, dtypes))
    result.targets.append(target)
    result.sources.append(first.as_strided((high - low,), (1,), low))
    for i, offset in offsets.items():
        t = ts[i]
        result.made[i] = target[offset - low :].as_strided(t.size(), t.stride())


def _remake_bytes(
    members: Sequence[int], ts: Sequence[Tensor], room: Room, result: Remake
) -> None:
    spans = [span(ts[i]) for i in members]
    start, stop = min(start for start, _ in spans), max(stop for _, stop in spans)
    low = start // ALIGNMENT * ALIGNMENT
    first = ts[members[0]]
    padded = -(-(stop - low) // ALIGNMENT) * ALIGNMENT
    target = room.dense((padded,), first, torch.uint8)
    result.targets.append(target[start - low : stop - low])
    result.sources.append(stored_bytes(first, start, stop - start))
    for i, (start, _) in zip(members, spans, strict=True):
        t = ts[i]
        offset = (start - low) // t.itemsize
        typed = target.view(t.dtype)
        result.made[i] = typed[offset:].as_strided(t.size(), t.stride())


def fill(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each source into its target, bit for bit, which then reads as it."""
    every, others = list(targets), list(sources)
    for part in blocks(len(others)):
        there, here = every[part], others[part]
        if torch.bool in map(dtype_of, here):
            there, here = as_stored(there, here)
        try:
            torch._foreach_copy_(there, here)
        except RuntimeError:  # where some targets are lazy it has written none
            if not any(map(is_lazy, there)):
                raise
            for pair in zip(there, here, strict=True):
                Tensor.copy_(*pair)
