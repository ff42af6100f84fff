"""Where leaves lie in memory: told to a file, and made again of dense tensors."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from sdtree.errors import FileError
from sdtree.tensors.bits import same_bits
from sdtree.tensors.storage import raw, start_for
from sdtree.transform.overlap import unexpanded
from sdtree.tree.plain_json import FAR, shortly

SPARSEST: Final = 4096
"""How many times its leaves a storage may be: a few bytes could claim any number."""


class Place(NamedTuple):
    """Where in its storage a leaf begins, in bytes, and its strides."""

    leaf: int
    offset: int
    stride: tuple[int, ...]

    @classmethod
    def told(cls, leaf: int, offset: int, stride: Sequence[int]) -> Place:
        """Return the place that a file tells; raise ``FileError`` if there is none."""
        if any(type(n) is not int or n < 0 for n in (leaf, offset, *stride)):
            raise FileError(f"its metadata has leaf {shortly(leaf)} nowhere")
        return cls(leaf, offset, tuple(stride))

    def stop(self, t: Tensor) -> int:
        """Return the byte after the last of a tensor of that size that lies there."""
        if not t.numel():
            return self.offset
        steps = zip(t.shape, self.stride, strict=True)
        last = sum((size - 1) * step for size, step in steps)
        return self.offset + (last + 1) * t.itemsize

    def is_loose(self, t: Tensor) -> bool:
        """Return whether its strides alone tell where a tensor of that size lies.

        There is no other in its storage, and each dimension holds the inner ones: so
        its elements cannot disagree.
        """
        if self.offset or len(self.stride) != t.dim() or is_too_sparse([self], [t]):
            return False
        reach = 0
        for step, size in sorted(zip(self.stride, t.shape, strict=True)):
            if step >= FAR or (size > 1 and step <= reach):
                return False
            reach += step * (size - 1)
        return True

    def over(self, storage: torch.UntypedStorage, like: Tensor) -> Tensor:
        """Return the tensor of that size and dtype that lies there in a storage."""
        empty = torch.empty(0, dtype=like.dtype)
        offset = self.offset // like.itemsize
        return empty.set_(storage, offset, like.shape, self.stride)


def places_of(ts: Mapping[int, Tensor]) -> list[Place]:
    """Return the places of tensors of one storage, the first at its beginning."""
    low = start_for([*ts.values()])
    return [Place(i, t.data_ptr() - low, tuple(t.stride())) for i, t in ts.items()]


def is_too_sparse(places: Sequence[Place], ts: Sequence[Tensor]) -> bool:
    """Return whether tensors fill so little of a storage that no file may claim it."""
    size = max(place.stop(t) for place, t in zip(places, ts, strict=True))
    return size > SPARSEST * sum(t.nbytes for t in ts)


def placed(places: Sequence[Place], ts: Sequence[Tensor]) -> list[Tensor] | None:
    """Return dense tensors over one storage, where they have these places in it.

    None if they do not fit there, or do not agree on a byte that they would share.
    """
    pairs = list(zip(places, ts, strict=True))
    if any(len(p.stride) != t.dim() or p.offset % t.itemsize for p, t in pairs):
        return None
    if is_too_sparse(places, ts):
        raise FileError("its metadata spreads few bytes over a large storage")
    whole = _find_whole(places, ts)
    if whole is None:
        storage = zeros(max(place.stop(t) for place, t in pairs))
    else:
        storage = whole.untyped_storage()
    made = [place.over(storage, t) for place, t in pairs]
    if whole is None:
        for target, t in zip(made, ts, strict=True):
            raw(unexpanded(target, target)).copy_(raw(unexpanded(t, target)))
    return made if all(map(same_bits, made, ts)) else None


def _find_whole(places: Sequence[Place], ts: Sequence[Tensor]) -> Tensor | None:
    """Return the tensor that is all that the others lie in, if there is one."""
    size = max(place.stop(t) for place, t in zip(places, ts, strict=True))
    for place, t in zip(places, ts, strict=True):
        if not place.offset and t.nbytes == size and place.stride == t.stride():
            return t
    return None


def zeros(size: int) -> torch.UntypedStorage:
    """Return a storage of zeros, of which only what is written to takes memory."""
    memory = mmap.mmap(-1, max(size, 1), access=mmap.ACCESS_COPY)
    return torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()
