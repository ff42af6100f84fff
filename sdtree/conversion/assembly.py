"""A leaf that is yet to be put together, of pieces of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdtree.conversion.naming import At
from sdtree.conversion.pieces import Made, Same, View
from sdtree.kinds.handler import Handler, add_handler
from sdtree.tensors.bits import same_bits
from sdtree.typing import Aux, Leaf

Sources = Mapping[tuple[int, At], Tensor]
"""The tensors of a group, by their term and their place in its family."""


@dataclass(frozen=True, slots=True, eq=False)
class Assembly:
    """A leaf to be: what it is made of, and its form.

    ``mark`` is memory that it has in common with others that become one tensor with it,
    which so come in one window; None if there are none.
    """

    made: Made
    sources: Sources
    dtype: torch.dtype
    device: torch.device
    mark: Tensor | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the leaf."""
        return self.made.shape

    def put_together(self) -> Tensor:
        """Return the leaf: a dense tensor."""
        whole = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        for sizes, start, steps, value in self.made.fills:
            if 0 not in sizes:
                whole.as_strided(sizes, steps, start).fill_(value)
        for sizes, start, steps, view in self.made.pieces:
            if 0 not in sizes:
                target = whole.as_strided(sizes, steps, start)
                target.copy_(viewed(self.sources, sizes, view))
        return whole


def viewed(sources: Sources, sizes: tuple[int, ...], view: View) -> Tensor:
    """Return a part of a leaf; it is not copied."""
    t = resolved(sources[view.source, view.at])
    strides = t.stride()
    begins = sum(n * stride for n, stride in zip(view.starts, strides, strict=True))
    steps = [strides[dim] * step if step else 0 for dim, step in view.ways]
    return t.as_strided(sizes, steps, t.storage_offset() + begins)


def resolved(t: Tensor) -> Tensor:
    """Return a tensor without conj and neg bits."""
    return t.resolve_conj().resolve_neg() if t.is_conj() or t.is_neg() else t


def agrees(sources: Sources, same: Same) -> bool:
    """Return whether two parts of leaves have the same bits."""
    if 0 in same.sizes:
        return True
    one, other = (viewed(sources, same.sizes, x) for x in (same.one, same.other))
    return same_bits(one, other)


def _flatten(x: Assembly) -> tuple[Sequence[Tensor], Aux]:
    form = _form(x)
    return ([*form] if x.mark is None else [*form, x.mark]), x


def _form(x: Assembly) -> Sequence[Tensor]:
    return [torch.empty(x.shape, dtype=x.dtype, device="meta")]


def _itself(x: Assembly, _: Sequence[Tensor]) -> Leaf:
    return x


add_handler(
    Handler(
        Assembly,
        _flatten,
        _itself,
        stands_for=lambda _: Tensor,
        tensors=_form,
        dtype=lambda x: x.dtype,
    )
)
