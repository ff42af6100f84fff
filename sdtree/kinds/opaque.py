"""Plain Python values, and buffers: leaves without local tensors."""

from __future__ import annotations

import enum
import io
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sdtree.leaf import Handler, add_handler, register_leaf
from sdtree.typing import Aux, Leaf

PLAIN = (
    *(int, float, complex, bool, str, bytes, type(None), enum.Enum),
    *(torch.Size, torch.dtype, torch.device, torch.layout, torch.memory_format),
)


def flatten(x: Leaf) -> tuple[Sequence[Tensor], Aux]:
    """Return the value as what is left when there is no tensor."""
    return (), x


def unflatten(aux: Aux, ts: Sequence[Tensor]) -> Leaf:
    """Return the value itself: it cannot change."""
    return aux


class Buffer(NamedTuple):
    """What a ``BytesIO`` holds. Python copies the bytes when one side writes."""

    data: bytes
    position: int

    @classmethod
    def of(cls, x: io.BytesIO) -> tuple[Sequence[Tensor], Buffer]:
        return (), cls(x.getvalue(), x.tell())

    def open(self) -> io.BytesIO:
        buffer = io.BytesIO(self.data)
        buffer.seek(self.position)
        return buffer


def add_plain(kind: type) -> None:
    """Register a kind of values that never change."""
    add_handler(Handler(kind, flatten, unflatten, is_plain=True))


for kind in PLAIN:
    add_plain(kind)
register_leaf(io.BytesIO, flatten=Buffer.of, unflatten=lambda buffer, _: buffer.open())
