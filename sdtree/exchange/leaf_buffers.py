"""The tensors that leaves come into: new ones like others, or those that are there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdtree.exchange.joint import wholes_of
from sdtree.exchange.twins import Turn
from sdtree.kinds.abstract import Abstract
from sdtree.kinds.handler import find_handler, handler_of
from sdtree.layout.layout import Layout
from sdtree.typing import Leaf
from sdtree.wire.messages import region


def made_like(t: Tensor, device: torch.device) -> Tensor:
    """Return an unfilled tensor of the size and the order of strides of another."""
    if t.is_contiguous():
        return torch.empty_like(t, device=None if t.device == device else device)
    new = torch.empty_like(t, device="meta")
    return torch.empty_strided(t.size(), new.stride(), dtype=t.dtype, device=device)


def blank(form: Abstract, device: torch.device, last: Tensor | None) -> Tensor:
    """Return an unfilled tensor for a leaf; ``last`` is that for one of its form.

    To make one like another takes half as long.
    """
    if last is not None and last.device == device:
        return torch.empty_like(last)
    return torch.empty(form.shape, dtype=form.dtype, device=device)


def marked(t: Tensor, requires_grad: bool) -> Tensor:
    """Return a tensor of its own over the data, that requires grad or does not."""
    if not requires_grad:
        return t.detach()
    return t.detach().requires_grad_(t.is_floating_point() or t.is_complex())


def own_part(layout: Layout | None, ts: Sequence[Tensor], me: int) -> Tensor:
    """Return the whole tensor where this rank holds it."""
    boxes = [box for box in layout.boxes[me] if box.numel] if layout else []
    if not boxes:
        shape = layout.shape if layout else ts[0].shape
        return ts[0].new_empty(shape)
    return region(ts[boxes[0].tensor], boxes[0].local, boxes[0].size)


def junk_like(leaf: Leaf, form: Abstract) -> Leaf:
    """Return a leaf of the form that another was to have, of zeros."""
    handler = handler_of(leaf)
    ts, aux = handler.flatten(leaf)
    zeros = [
        torch.zeros(local.shape, dtype=local.dtype, device=t.device)
        for local, t in zip(form.tensors, ts, strict=True)
    ]
    return handler.unflatten(aux, zeros)


def made_whole(leaf: Leaf, ts: Sequence[Tensor]) -> Leaf:
    """Return the leaf over these tensors, which are those of the whole."""
    makeup = handler_of(leaf).whole(leaf)
    assert makeup is not None
    handler = find_handler(makeup.kind)
    assert handler is not None
    return handler.unflatten(makeup.aux, ts)


def blank_parts(form: Abstract, ts: Sequence[Tensor]) -> list[Tensor]:
    """Return an unfilled tensor for each local tensor of the whole."""
    return [
        torch.empty(shape, dtype=dtype, device=t.device)
        for (shape, dtype), t in zip(wholes_of(form), ts, strict=True)
    ]


def filled(buffer: Leaf, other: Leaf, turn: Turn) -> Leaf:
    """Return a buffer with the data of another, its dimensions in another order."""
    if buffer is not other:
        buffer.copy_(other.permute(turn))
    return buffer
