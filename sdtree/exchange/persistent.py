"""Persistent leaves: made once, and received into at one call after the other."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple

from torch import Tensor

from sdtree.tensors.forms import Footing
from sdtree.transform.results import has_grads
from sdtree.transform.stages import Lasting
from sdtree.wire.columns import Fresh, Part, Rows, with_grads
from sdtree.wire.messages import Column

OVERWRITTEN: Final = "the results of the call before are partly overwritten"
"""What a call that fails on its way leaves."""


class Made(NamedTuple):
    """Leaves in a column, what they were when they were made, and their marks."""

    column: Column
    footing: Footing
    grads: Sequence[bool]

    def is_as_it_was(self) -> bool:
        """Return whether nobody has given one another place, form or mark."""
        leaves = self.column.tensors
        is_there = self.footing.holds(leaves) and not any(map(vars, leaves))
        return is_there and not (any(self.grads) and has_grads(leaves))


@dataclass(slots=True)
class Persistent:
    """Leaves that take what comes at each call, in the memory that they were made in.

    Whoever hands out results is told of those of a column, or one that goes alone, by
    the position of the first. They are made anew if a user has given one other memory
    or another form, or if gradients are required of others. Those that are ``tied`` are
    none of them: they would be copied apart.
    """

    lasting: Lasting
    tied: Collection[int]
    _made: dict[int, Made] = field(init=False, default_factory=dict[int, Made])

    @property
    def has_leaves(self) -> bool:
        """Return whether there are any yet."""
        return bool(self._made)

    def part(
        self, i: int, sources: Sequence[Tensor], fresh: Fresh, grads: Sequence[bool]
    ) -> Part:
        """Return what there is to do with a column whose leaves would be fresh."""
        column = self._column(i, grads, lambda: Rows.like(fresh))
        return Part(sources, column, partial(list, column.tensors))

    def keep_clear_of(self, sources: Sequence[Tensor]) -> None:
        """Let go of leaves in whose memory something lies that is to be read."""
        starts = sorted(map(Tensor.data_ptr, sources))
        for i, made in [*self._made.items()]:
            first, last = made.column.tensors[0], made.column.tensors[-1]
            k = bisect_left(starts, first.data_ptr())
            if k < len(starts) and starts[k] < last.data_ptr() + last.nbytes:
                del self._made[i]

    def leaf(self, i: int, grad: bool, make: Callable[[], Tensor]) -> Tensor:
        """Return a leaf that is received into by itself."""
        return self._column(i, [grad], lambda: Column([make()])).tensors[0]

    def _column(
        self, i: int, grads: Sequence[bool], make: Callable[[], Column]
    ) -> Column:
        made = self._made.get(i)
        if made is None or made.grads != grads or not made.is_as_it_was():
            column = make()
            self.lasting[i] = with_grads(column.tensors, grads)
            made = self._made[i] = Made(column, Footing.of(column.tensors), grads)
        return made.column
