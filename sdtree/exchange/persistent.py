"""Persistent leaves: made once, and received into at one call after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from torch import Tensor

from sdtree.tensors.forms import Footing
from sdtree.transform.stages import Lasting
from sdtree.wire.columns import Fresh, Part, Rows, made_of


class Made(NamedTuple):
    """The leaves of a column, what they were when they were made, and their marks."""

    rows: Rows
    footing: Footing
    grads: Sequence[bool]


@dataclass(slots=True)
class Persistent:
    """Leaves that take what comes at each call, in the memory that they were made in.

    Whoever hands out results is told of those of each column, by the position of the
    first. All of them are made anew if a user has given one other memory or another
    form, or if gradients are required of others.
    """

    lasting: Lasting
    _made: dict[int, Made] = field(init=False, default_factory=dict[int, Made])

    def part(
        self, i: int, sources: Sequence[Tensor], fresh: Fresh, grads: Sequence[bool]
    ) -> Part:
        """Return what there is to do with a column whose leaves would be fresh."""
        made = self._made.get(i)
        is_there = made is not None and made.footing.holds(made.rows.tensors)
        if made is None or not is_there or made.grads != grads:
            rows = Rows.like(fresh)
            self.lasting[i] = made_of(rows, grads)
            made = self._made[i] = Made(rows, Footing.of(rows.tensors), grads)
        return Part(sources, made.rows, partial(list, made.rows.tensors))
