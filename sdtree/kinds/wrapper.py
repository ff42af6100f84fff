"""Wrapper subclasses, by what their ``__tensor_flatten__`` lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sdtree.errors import UnknownLeaf
from sdtree.kinds.forms import Form
from sdtree.leaf import Handler, handler_of
from sdtree.typing import Aux


@dataclass(frozen=True, slots=True)
class Inner:
    """One inner tensor of a wrapper: its name and how it came apart in its turn."""

    name: str
    handler: Handler
    aux: Aux
    count: int


@dataclass(frozen=True, slots=True)
class Wrapper:
    """A wrapper subclass: what its ``__tensor_flatten__`` says beside the tensors."""

    cls: Any
    inner: tuple[Inner, ...]
    context: Any
    size: tuple[int, ...]
    stride: tuple[int, ...] = field(compare=False)

    def join(self, ts: Sequence[Tensor]) -> Tensor:
        rest = iter(ts)
        tensors = {
            part.name: part.handler.unflatten(
                part.aux, [next(rest) for _ in range(part.count)]
            )
            for part in self.inner
        }
        return self.cls.__tensor_unflatten__(
            tensors, self.context, torch.Size(self.size), self.stride
        )


def split_wrapper(x: Any) -> tuple[Sequence[Tensor], Form]:
    names, context = x.__tensor_flatten__()
    local: list[Tensor] = []
    inner: list[Inner] = []
    for name in names:
        part = getattr(x, name)
        if not isinstance(part, Tensor):
            raise UnknownLeaf(
                f"{type(x).__qualname__}.__tensor_flatten__ lists {name!r}, "
                f"a {type(part).__qualname__} and no tensor; register the kind itself"
            )
        handler = handler_of(part)
        ts, aux = handler.flatten(part)
        inner.append(Inner(name, handler, aux, len(ts)))
        local.extend(ts)
    size, stride = tuple(x.size()), tuple(x.stride())
    return local, Wrapper(type(x), tuple(inner), context, size, stride)
