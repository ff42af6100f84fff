"""Buffers of a snapshot: made once for what is to be held, and lent again and again."""

from __future__ import annotations

import sys
import weakref
from bisect import bisect_right
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from sdtree.stage.flight import Flight
from sdtree.stage.pinning import registered
from sdtree.tensors.forms import Forms, Ground, One
from sdtree.tensors.remake import Allocator, remake
from sdtree.tensors.storage import dtype_of
from sdtree.transform.into import written
from sdtree.transform.overlap import unexpanded
from sdtree.transform.window import BARE, Parts
from sdtree.typing import Leaf

_uses: Any = torch._C._storage_Use_Count
_requires_grad = attrgetter("requires_grad")


class Buffers:
    """The local tensors of one snapshot, and who has it.

    They are lent to one at a time, who gives them back, or loses them: then they are
    free as soon as nothing is left that sees their memory.
    """

    __slots__ = (
        *("flight", "forms", "holder", "strides", "tensors", "__weakref__"),
        *("_counts", "_holders", "_narrowed", "_places", "_starts", "_storages"),
        *("_beside", "_ground", "_own", "_spans", "_targets", "_uses"),
    )

    def __init__(self, ts: Sequence[Tensor], forms: Forms, room: Allocator) -> None:
        self.forms = forms
        self.tensors = remake(ts, room, filled=False)
        self.strides = [*One().of(map(Tensor.stride, self.tensors))]
        self._places = self._once()
        self._narrowed = [k for k, i in enumerate(self._places) if 0 in self.strides[i]]
        self._targets = self._cores(self.tensors)
        self.holder: Any = None
        self._ground: Ground | None = None
        self._beside: Forms | None = forms  # nothing that was there lies in what is new
        self._spans: tuple[list[int], list[int]] | None = None
        self.flight = Flight()
        self._starts = self._addresses()
        self._own = [t for t in self.tensors if t.numel() and not t.is_meta]
        self._storages = [*{*map(Tensor.untyped_storage, self._own)}]
        self._uses = [storage._cdata for storage in self._storages]
        self._holders, self._counts = self._seen()
        if room.pin and room.share:
            registered(self, self._storages)

    @property
    def nbytes(self) -> int:
        """Return the bytes of the memory that they lie in."""
        return sum(storage.nbytes() for storage in self._storages)

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
            (self.forms is forms or self.forms == forms)
            and self._are_kept()
            and not any(map(vars, self.tensors))
        )

    def _are_kept(self) -> bool:
        """Return whether the tensors are of the forms that they were made in, there."""
        if self._ground is not None and self._ground.is_of(self.tensors):
            return True
        kept = (
            self._starts == self._addresses()
            and list(map(Tensor.size, self.tensors)) == self.forms.sizes
            and list(map(Tensor.stride, self.tensors)) == self.strides
            and list(map(dtype_of, self.tensors)) == self.forms.dtypes
            and not any(map(_requires_grad, self.tensors))
        )
        if kept:
            self._ground = self._ground or Ground(self.tensors)
            self._ground.lay = self._ground.lay_of(self.tensors)
        return kept

    def _once(self) -> Sequence[int]:
        """Return the places of what has data, but where one before is the same."""
        tied = [i for tie in self.forms.ties for i, *_ in tie]
        firsts = {tied[k] for k in written([self.tensors[i] for i in tied])}
        left = {*self.forms.metas, *tied} - firsts
        every = range(len(self.tensors))
        return [i for i in every if i not in left] if left else every

    def filled_by(self, ts: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return what is to be written, and from where: no element twice."""
        return self._targets, self._cores(ts)

    def hold_some_of(self, ts: Sequence[Tensor], forms: Forms) -> bool:
        """Return whether tensors of these forms lie in the buffers, some or a part.

        It is asked once: as long as they lie where they lay, ``forms`` is one object.
        """
        if self._beside is not forms:
            self._spans = self._spans or self._stretches()
            begins, ends = self._spans
            found = map(Tensor.data_ptr, ts)
            if any(at < ends[bisect_right(begins, at) - 1] for at in found):
                return True
            self._beside = forms
        return False

    def _cores(self, ts: Sequence[Tensor]) -> list[Tensor]:
        """Return of tensors that lie as the buffers what of them is not there twice."""
        found = [ts[i] for i in self._places]
        for k in self._narrowed:
            found[k] = unexpanded(found[k], self.tensors[self._places[k]])
        return found

    def lend(self, holder: object) -> None:
        """Give the snapshot to someone."""
        self.holder = weakref.ref(holder)

    def _stretches(self) -> tuple[list[int], list[int]]:
        """Return where the memory begins, in order, and ends; the first is nothing."""
        spans = sorted((x.data_ptr(), x.data_ptr() + len(x)) for x in self._storages)
        return [0, *(low for low, _ in spans)], [0, *(high for _, high in spans)]

    def _addresses(self) -> list[int]:
        return list(map(Tensor.data_ptr, self.tensors))

    def _seen(self) -> tuple[list[int], list[int]]:
        """Return by how many each tensor and storage is held, and each storage used.

        What is meta has no memory to be seen, and may be the very leaf that was given.
        """
        every = [*self._own, *self._storages]
        return list(map(sys.getrefcount, every)), list(map(_uses, self._uses))


def joined(parts: Parts, tensors: Sequence[Tensor]) -> list[Leaf]:
    """Return the leaves over buffers: what has marks is over a tensor of its own."""
    if parts.is_bare:
        return list(tensors)
    pairs = zip(parts.owners(), tensors, strict=True)
    return parts.join([t if parts.defs[k] is BARE else t.detach() for k, t in pairs])
