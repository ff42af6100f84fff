"""A leaf that is yet to be put together, of pieces of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sdtree.conversion.pieces import Made, Place
from sdtree.conversion.shares import cut_of, resolved
from sdtree.kinds.handler import Handler, add_handler
from sdtree.tensors.remake import fill
from sdtree.typing import Aux, Leaf

Sources = Mapping[Place, Tensor]
"""The tensors of a group, by their term and their place in its family."""


@dataclass(frozen=True, eq=False)
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

    @property
    def memory(self) -> Tensor:
        """Return what shares memory with just those leaves that are to share its own.

        As the leaf itself it is shared by none if it is meta, and may have no bytes.
        """
        if self.mark is None or self.device.type == "meta":
            return torch.empty(1, dtype=torch.uint8)
        return self.mark[:0] if 0 in self.shape else self.mark

    @cached_property
    def whole(self) -> Tensor:
        """Return the leaf put together once, for those that need all of it."""
        return self.put_together()

    def put_together(self) -> Tensor:
        """Return the leaf: a dense tensor."""
        whole = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        self.write(whole)
        return whole

    def write(self, whole: Tensor) -> None:
        """Write the leaf to a tensor of its form."""
        for sizes, target, value, _ in self.made.fills:
            if 0 not in sizes:
                cut_of(whole, sizes, target).fill_(value)
        for sizes, target, source, place in self.made.pieces:
            if 0 not in sizes:
                found = cut_of(resolved(self.sources[place]), sizes, source)
                fill([cut_of(whole, sizes, target)], [found])


def _flatten(x: Assembly) -> tuple[Sequence[Tensor], Aux]:
    return [*_form(x), *(() if x.mark is None else (x.mark,))], x


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
