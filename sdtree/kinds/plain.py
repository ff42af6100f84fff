"""Plain Python values, buffers and sets: leaves without local tensors."""

from __future__ import annotations

import datetime
import enum
import io
import math
from collections.abc import Callable, Collection, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdtree.errors import Mismatch, UnknownLeaf, one_of
from sdtree.kinds.handler import Handler, add_handler, find_handler, register_leaf
from sdtree.layout.layout import Layout
from sdtree.tensors.bits import Gap, Tolerance, gap_between
from sdtree.typing import Aux, Leaf

Gaps = Callable[[Leaf, Leaf, Tolerance | None], Gap]
"""Returns how far two leaves are apart."""

PLAIN = (
    *(int, float, complex, bool, str, bytes, type(None), enum.Enum),
    *(torch.Size, torch.dtype, torch.device),
    *(torch.layout, torch.memory_format, torch.qscheme),
    *(datetime.date, datetime.time, datetime.timedelta, datetime.timezone, PurePath),
    *(Mismatch, Layout),
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


def flatten_set(x: Any) -> tuple[Sequence[Tensor], Aux]:
    """Return what is in a set; raise ``UnknownLeaf`` if some of it is not plain."""
    _check_plain(x)
    return (), x.copy()


def _check_plain(x: Collection[Any]) -> None:
    for value in x:
        handler = find_handler(type(value))
        if isinstance(value, tuple) and handler is None:
            _check_plain(value)
        elif handler is None or not (handler.is_plain or handler.kind is frozenset):
            raise UnknownLeaf(
                f"a set with {one_of(type(value))} in it, which has no path "
                "there; make it a list"
            )


def add_plain(kind: type, gap: Gaps | None = None) -> None:
    """Register a kind of values that never change."""
    add_handler(Handler(kind, flatten, unflatten, is_plain=True, gap=gap))


def gap_of_numbers(x: Any, y: Any, tolerance: Tolerance | None) -> Gap:
    """Return how far two numbers are apart, integers exactly."""
    if isinstance(x, int):
        most, scale = abs(x - y), abs(y)
        most, scale = (n if n.bit_length() < 1024 else math.inf for n in (most, scale))
        return Gap(1, most, 1, float(most), float(scale), 1)
    a, b = (torch.tensor([n], dtype=torch.complex128) for n in (x, y))
    return gap_between(a, b, tolerance)._replace(differing=1)


for kind in PLAIN:
    add_plain(kind, gap_of_numbers if kind in (int, float, complex) else None)
register_leaf(io.BytesIO, flatten=Buffer.of, unflatten=lambda buffer, _: buffer.open())
register_leaf(
    bytearray, flatten=lambda x: ((), x.copy()), unflatten=lambda x, _: x.copy()
)
register_leaf(set, flatten=flatten_set, unflatten=lambda x, _: x.copy())
register_leaf(frozenset, flatten=flatten_set, unflatten=unflatten)
