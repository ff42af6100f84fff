"""Buffers of a snapshot: made once for what is to be held, and lent again and again."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdtree.stage.flight import Flight
from sdtree.stage.pinning import registered
from sdtree.tensors.remake import Allocator, remake
from sdtree.tensors.storage import tie_groups

_uses: Any = torch._C._storage_Use_Count


@dataclass(frozen=True, slots=True)
class Forms:
    """What local tensors are but for their data: buffers of equal forms fit."""

    sizes: list[Any]
    strides: list[tuple[int, ...]]
    dtypes: list[torch.dtype]
    metas: list[bool]
    ties: list[Hashable]

    @classmethod
    def of(cls, ts: Sequence[Tensor]) -> Forms:
        return cls(
            list(map(Tensor.size, ts)),
            list(map(Tensor.stride, ts)),
            [t.dtype for t in ts],
            [t.is_meta for t in ts],
            [_tie(group, ts) for group in tie_groups(ts)],
        )


def _tie(group: Sequence[int], ts: Sequence[Tensor]) -> Hashable:
    """Return which tensors a tie has, how they lie in it, and their bits."""
    low = min(ts[i].data_ptr() for i in group)
    return tuple(
        (i, ts[i].data_ptr() - low, ts[i].is_conj(), ts[i].is_neg()) for i in group
    )


class Buffers:
    """The local tensors of one snapshot, and who has it.

    They are lent to one at a time, who gives them back, or loses them: then they are
    free as soon as nothing is left that sees their memory.
    """

    __slots__ = (
        *("__weakref__", "_counts", "_holders", "_starts", "_storages", "_uses"),
        *("flight", "forms", "holder", "strides", "tensors"),
    )

    def __init__(self, ts: Sequence[Tensor], forms: Forms, room: Allocator) -> None:
        self.forms = forms
        self.tensors = remake(ts, room, filled=False)
        self.strides = list(map(Tensor.stride, self.tensors))
        self.holder: Any = None
        self.flight = Flight()
        self._starts = self._addresses()
        self._storages = [*{t.untyped_storage() for t in self.tensors if t.numel()}]
        self._uses = [storage._cdata for storage in self._storages]
        self._holders, self._counts = self._seen()
        if room.pin and room.share:
            registered(self, self._storages)

    def is_free(self) -> bool:
        """Return whether nobody has the snapshot: it was given back, or is gone."""
        if self.holder is None:
            return True
        is_gone = self.holder() is None and self.flight.ready()
        return is_gone and self._seen() == (self._holders, self._counts)

    def fits(self, forms: Forms) -> bool:
        """Return whether they are for tensors of these forms, and still what they were.

        Whoever had them may have given one another shape, or other memory.
        """
        return (
            self.forms == forms
            and self._starts == self._addresses()
            and list(map(Tensor.size, self.tensors)) == self.forms.sizes
            and list(map(Tensor.stride, self.tensors)) == self.strides
            and not any(t.requires_grad or t.__dict__ for t in self.tensors)
        )

    def lend(self, holder: object) -> None:
        """Give the snapshot to someone."""
        self.holder = weakref.ref(holder)

    def _addresses(self) -> list[int]:
        return [0 if t.is_meta else t.data_ptr() for t in self.tensors]

    def _seen(self) -> tuple[list[int], list[int]]:
        """Return by how many each tensor is held, and each storage used."""
        return list(map(sys.getrefcount, self.tensors)), list(map(_uses, self._uses))
