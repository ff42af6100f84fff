"""Tensors filled with the data of others, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor

from sdtree.tensors.storage import blocks, is_lazy

_dtype = attrgetter("dtype")


def fill(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each source into its target, which then reads as it."""
    every, others = list(targets), list(sources)
    for part in blocks(len(others)):
        there, here = as_stored(every[part], others[part])
        try:
            torch._foreach_copy_(there, here)
        except RuntimeError:  # where some targets are lazy it has written none
            if not any(map(is_lazy, there)):
                raise
            for pair in zip(there, here, strict=True):
                Tensor.copy_(*pair)


def as_stored(
    targets: list[Tensor], sources: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return what torch is to copy: bools as their bytes, for it makes 1 of any but 0.

    >>> u = torch.tensor([0, 7], dtype=torch.uint8)
    >>> as_stored([u.bool()], [u.view(torch.bool)])[1]
    [tensor([0, 7], dtype=torch.uint8)]
    """
    if torch.bool not in map(_dtype, sources):
        return targets, sources
    pairs = [
        (raw(t), raw(x)) if t.dtype == x.dtype else (t, x)
        for t, x in zip(targets, sources, strict=True)
    ]
    return [t for t, _ in pairs], [x for _, x in pairs]


def raw(t: Tensor) -> Tensor:
    """Return a tensor that torch copies bit for bit: of a bool its bytes.

    >>> raw(torch.tensor([0, 7], dtype=torch.uint8).view(torch.bool))
    tensor([0, 7], dtype=torch.uint8)
    """
    return t.view(torch.uint8) if t.dtype is torch.bool else t
