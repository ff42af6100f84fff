"""Storage: which tensors share it, and what they cover of it."""

from __future__ import annotations

import ctypes
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from operator import attrgetter
from typing import Any, Final

import torch
from torch import Tensor, UntypedStorage

from sdtree.errors import UnknownLeaf
from sdtree.tensors.slab import place_in, starts_in

_nbytes, dtype_of = attrgetter("nbytes"), attrgetter("dtype")
_is_nested = attrgetter("is_nested")

ALIGNMENT = 16
"""Where a span of bytes begins: at a multiple of the largest element."""

AT_HAND = 256
"""How many tensors the processor has at hand, so that to ask them again is quick."""


def blocks(count: int) -> list[slice]:
    """Return the blocks of so many tensors: all is asked of one, then of the next.

    Of many small ones that takes half as long as one question to all, then the next.

    >>> blocks(300)
    [slice(0, 256, None), slice(256, 512, None)]
    """
    return [slice(i, i + AT_HAND) for i in range(0, count, AT_HAND)]


@lru_cache(maxsize=4096)
def dense_strides(size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor.

    >>> dense_strides((2, 3))
    (3, 1)
    """
    return (
        tuple([*accumulate(size[:0:-1], int.__mul__, initial=1)][::-1]) if size else ()
    )


def is_lazy(t: Tensor) -> bool:
    """Return whether a tensor reads as the conjugate or the negative of its memory."""
    return t.is_conj() or t.is_neg()


def extent(t: Tensor) -> int:
    """Return how many elements of storage lie from the first of ``t`` to its last."""
    if t.is_contiguous() or not t.numel():
        return t.numel()
    return 1 + sum(
        (size - 1) * step for size, step in zip(t.size(), t.stride(), strict=True)
    )


def span(t: Tensor) -> tuple[int, int]:
    """Return the bytes of its storage that ``t`` covers, as [start, stop)."""
    start = int(t.storage_offset()) * t.itemsize
    return start, start + extent(t) * t.itemsize


def stretch(t: Tensor) -> tuple[int, int]:
    """Return the addresses that ``t`` covers, as [start, stop)."""
    return t.data_ptr(), t.data_ptr() + extent(t) * t.itemsize


def storage_keys(ts: Sequence[Tensor]) -> list[int]:
    """Return for each tensor where its memory begins, 0 if it holds nothing.

    Storages that torch made lie apart. Those over memory of others may overlap, as what
    ``torch.from_numpy`` makes of views: they are one memory, and begin with its first.
    What holds nothing joins none.
    What lies side by side in a shared slab begins where its own place does.
    One loop: what is asked of a storage while it is at hand costs half as much.
    """
    starts: list[int] = []
    is_own = True
    for t in ts:
        storage = t.untyped_storage()
        size = storage.nbytes()
        if size != t.nbytes or t.storage_offset() or not t.is_contiguous():
            check_held(t, size)
        starts.append(storage.data_ptr())
        is_own = is_own and storage.resizable()
    if is_own:
        return starts
    places = list(map(place_of, ts))
    first: dict[int, int] = {}
    begin = reached = 0
    held = {place for place, t in zip(places, ts, strict=True) if t.numel()}
    for start, stop in sorted(held):
        begin = begin if start < reached else start
        reached = max(reached, stop)
        first[start] = begin
    return [first.get(start, start) for start, _ in places]


def stand_alone(ts: Sequence[Tensor]) -> bool:
    """Return whether each tensor is the whole of a storage of its own.

    So none is tied, none lacks what it shows, and none is meta or empty. It is asked
    of all at once, trait by trait. A no only means that each is asked.

    >>> t = torch.ones(2, 2)
    >>> stand_alone([t, torch.ones(2)]), stand_alone([t, t]), stand_alone([t[0]])
    (True, False, False)
    """
    try:
        storages = [*map(Tensor.untyped_storage, ts)]
        starts = [*map(UntypedStorage.data_ptr, storages)]
        begins = [*map(Tensor.data_ptr, ts)]
    except RuntimeError:  # some have none
        return False
    return (
        starts == begins
        and len({0, *starts}) == len(ts) + 1
        and [*map(UntypedStorage.nbytes, storages)] == [*map(_nbytes, ts)]
        and all(map(UntypedStorage.resizable, storages))
        and all(map(Tensor.is_contiguous, ts))
        and not any(map(_is_nested, ts))
    )


# -- tensors that are no more than their elements --------------------------------------

STRIDED: Final = torch.strided

_SMALL = (f"{sign}int{bits}" for bits in range(1, 8) for sign in ("", "u"))
_RAW = ("bit", "bits1x8", "bits2x4", "bits4x2", "bits8", "bits16")
PACKED: Final = frozenset(
    found
    for name in (*_SMALL, *_RAW)
    if isinstance(found := getattr(torch, name, None), torch.dtype)
)
"""Dtypes that torch can hold, and neither copies nor makes in every mode."""

QUANTIZED: Final = frozenset(
    [torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4]
)
"""The dtypes of quantized tensors."""

MANY: Final = frozenset([torch.quint4x2, torch.quint2x4])
"""Dtypes of which a byte may hold several elements: sizes do not tell how many."""

BESIDE: Final = PACKED | QUANTIZED
"""The dtypes of tensors that are not their own local tensors."""


def are_bare(xs: Sequence[Tensor]) -> bool:
    """Return whether each tensor is its own local tensor; all are of one type.

    One loop: what is asked of a tensor while it is at hand costs half as much.
    """
    if type(xs[0]) is not Tensor:
        return False
    for x in xs:
        if x.layout is not STRIDED or x.requires_grad or x.__dict__:
            return False
        if x.dtype in BESIDE:
            return False
    return True


def bare(xs: Sequence[Tensor]) -> Sequence[Tensor] | None:
    """Return the local tensor of each, which is itself, None if one is more."""
    return xs if are_bare(xs) else None


def raw(t: Tensor) -> Tensor:
    """Return a tensor that torch copies bit for bit: of a bool its bytes.

    >>> raw(torch.tensor([0, 7], dtype=torch.uint8).view(torch.bool))
    tensor([0, 7], dtype=torch.uint8)
    """
    return t.view(torch.uint8) if t.dtype is torch.bool else t


def as_stored(
    targets: list[Tensor], sources: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return what torch is to copy: bools as bytes, for it makes 1 of any but 0."""
    pairs = [
        (raw(t), raw(x)) if t.dtype == x.dtype else (t, x)
        for t, x in zip(targets, sources, strict=True)
    ]
    return [t for t, _ in pairs], [x for _, x in pairs]


# -- where they lie --------------------------------------------------------------------


def place_of(t: Tensor) -> tuple[int, int]:
    """Return the addresses of its storage, or of its place in one that is a slab."""
    storage = t.untyped_storage()
    start, size = storage.data_ptr(), storage.nbytes()
    if not start:
        return 0, 0
    starts = () if storage.resizable() or not t.numel() else starts_in(storage)
    low, high = place_in(starts, span(t)[0]) if starts else (0, size)
    return start + low, start + min(high, size)


def loss(t: Tensor, size: int) -> str:
    """Return what a tensor lacks whose storage has that many bytes, empty if nothing.

    Whoever resizes a storage may leave tensors over memory that is not theirs any more.
    """
    is_all = t.nbytes == size and t.is_contiguous() and not t.storage_offset()
    if is_all or not t.numel() or t.is_meta or t.dtype in MANY:
        return ""
    if (stop := span(t)[1]) <= size:
        return ""
    return f"its memory was freed: it ends at byte {stop:,}, its storage at {size:,}"


def check_held(t: Tensor, size: int) -> None:
    """Raise ``UnknownLeaf`` if a tensor covers more than the bytes of its storage."""
    if lost := loss(t, size):
        raise UnknownLeaf(
            f"a tensor has no data, {lost}; give the storage its size and the data "
            "first, or drop the leaf"
        )


def tie_groups(
    ts: Sequence[Tensor], keys: Sequence[int] | None = None
) -> list[list[int]]:
    """Return the positions of tensors that share memory, group by group.

    Zero-size and meta tensors have no memory to share. ``keys`` are the storage keys
    where they are known.
    """
    keys = storage_keys(ts) if keys is None else keys
    shared = repeated(keys) - {0}
    groups = defaultdict[int, list[int]](list)
    for i, key in enumerate(keys) if shared else ():
        if key in shared and ts[i].numel():
            groups[key].append(i)
    return [group for group in groups.values() if len(group) > 1]


def repeated(keys: Sequence[int]) -> set[int]:
    """Return the keys that stand more than once.

    >>> repeated([3, 1, 3])
    {3}
    """
    if len({*keys}) == len(keys):
        return set()
    return {key for key, times in Counter(keys).items() if times > 1}


def covered_bytes(ts: Sequence[Tensor]) -> int:
    """Return how many bytes the tensors cover together, shared ones counted once."""
    groups = tie_groups(ts)
    tied = {i for group in groups for i in group}
    total = sum(bytes_of(t) for i, t in enumerate(ts) if i not in tied)
    return total + sum(union_of([stretch(ts[i]) for i in group]) for group in groups)


def bytes_of(t: Tensor) -> int:
    """Return the bytes of a tensor; an expanded one counts what it covers."""
    size = t.nbytes
    return size if t.is_contiguous() else min(size, extent(t) * t.itemsize)


def union_of(spans: Iterable[tuple[int, int]]) -> int:
    """Return how many bytes some spans of one storage cover together.

    >>> union_of([(0, 8), (4, 12), (20, 24)])
    16
    """
    total, reached = 0, 0
    for start, stop in sorted(spans):
        total += max(0, stop - max(start, reached))
        reached = max(reached, stop)
    return total


# -- memory that torch did not make ------------------------------------------------


def storage_over(start: int, size: int, owner: object) -> UntypedStorage:
    """Return a storage over the memory of an owner, which is kept as long as it is."""
    if not size:
        return UntypedStorage(0, device="cpu")
    memory: Any = (ctypes.c_ubyte * size).from_address(start)
    memory.owner = owner
    return torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()


def stored_bytes(t: Tensor, start: int, length: int) -> Tensor:
    """Return bytes of the storage under ``t`` as a tensor that shares it."""
    flat = torch.empty(0, dtype=torch.uint8, device=t.device)
    return flat.set_(t.untyped_storage(), start, (length,), (1,))


def as_one(ts: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors over one storage where they share memory.

    Law: each covers the very memory that it did. Only memory that is not torch's own
    can lie under several storages; what begins in it where no element of its dtype
    may, as ``torch.frombuffer`` allows, keeps its own.
    """
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for i, key in enumerate(storage_keys(ts)):
        if key and ts[i].numel():
            groups[key].append(i)
    result = list(ts)
    for members in groups.values():
        storages = [ts[i].untyped_storage() for i in members]
        if len({each._cdata for each in storages}) > 1:
            whole = _whole([ts[i] for i in members], storages)
            for i in members:
                result[i] = ts[i] if whole is None else _over(ts[i], whole)
    return result


def _whole(
    ts: Sequence[Tensor], storages: Sequence[UntypedStorage]
) -> UntypedStorage | None:
    """Return a storage over the memory of all, None if there can be none.

    It begins where elements of each tensor may, which can be some bytes before.
    """
    start = start_for(ts, min(each.data_ptr() for each in storages))
    size = max(each.data_ptr() + each.nbytes() for each in storages) - start
    for each in storages:
        if (each.data_ptr(), each.nbytes()) == (start, size):
            return each
    is_here = storages[0].device.type == "cpu"
    return storage_over(start, size, storages) if is_here else None


def start_for(ts: Sequence[Tensor], low: int | None = None) -> int:
    """Return the last address from which the tensors lie by whole elements.

    It is not behind ``low``, which is where the first begins if it is not given. What
    lies with the largest elements tells for all that have one.
    """
    low = min(t.data_ptr() for t in ts) if low is None else low
    largest = max(ts, key=lambda t: t.itemsize)
    return low - (low - largest.data_ptr()) % largest.itemsize


def _over(t: Tensor, storage: UntypedStorage) -> Tensor:
    """Return the same tensor over a storage that its memory lies in."""
    offset, odd = divmod(t.data_ptr() - storage.data_ptr(), t.itemsize)
    if odd:  # no tensor of this storage could lie there
        return t
    empty = torch.empty(0, dtype=t.dtype, device=storage.device)
    bare = empty.set_(storage, offset, t.size(), t.stride())
    bare = bare.conj() if t.is_conj() else bare
    return torch._neg_view(bare) if t.is_neg() else bare


def identity_of(ts: Sequence[Tensor]) -> Hashable:
    """Return what is the same for two leaves if their data is one and the same.

    The storage is told by where it begins, or by its own identity: an empty part of a
    tie has no address. So the local tensors must be held as long as they are compared.
    """
    return tuple(
        (
            *(storage_of(t), t.storage_offset(), t.size(), t.stride()),
            *(t.dtype, t.is_conj(), t.is_neg()),
        )
        for t in ts
    )


def storage_of(t: Tensor) -> int:
    """Return what two tensors have in common that share storage, an empty one too."""
    return place_of(t)[0] or t.untyped_storage()._cdata
