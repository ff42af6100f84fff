"""Wrapper subclasses, by what their ``__tensor_flatten__`` lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sdtree.errors import UnknownLeaf, text_of
from sdtree.kinds.forms import Form
from sdtree.kinds.handler import Handler, handler_of
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
    """A wrapper subclass: what its ``__tensor_flatten__`` says beside the tensors.

    ``follows``: it is on the device of its local tensors. Some contexts name that one.
    """

    cls: Any
    inner: tuple[Inner, ...]
    context: Any
    size: tuple[int, ...]
    stride: tuple[int, ...] = field(compare=False)
    follows: bool = field(compare=False)

    def join(self, ts: Sequence[Tensor]) -> Tensor:
        rest = iter(ts)
        tensors = {
            part.name: part.handler.unflatten(
                part.aux, [next(rest) for _ in range(part.count)]
            )
            for part in self.inner
        }
        made = self.cls.__tensor_unflatten__(
            tensors, self.context, torch.Size(self.size), self.stride
        )
        if self.follows and made.device != ts[0].device:
            made = made.to(ts[0].device)
        return made


def is_wrapper(cls: type) -> bool:
    """Return whether tensors of a class are over others, and list them."""
    return hasattr(cls, "__tensor_flatten__")


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
    follows = bool(local) and x.device == local[0].device
    return local, Wrapper(type(x), tuple(inner), context, size, stride, follows)


def cast(x: Any, dtype: torch.dtype) -> Tensor:
    """Return a wrapper in another dtype, as its own ``to`` makes it.

    What is not floating-point stays. If ``to`` keeps the dtype, or makes another type,
    there is no such cast. One that has no ``to`` follows its inner tensors.
    """
    if x.dtype == dtype or not x.dtype.is_floating_point:
        return x
    try:
        made = x.to(dtype)
    except NotImplementedError:
        made = with_inner(x, x, lambda t, _: _as_its_own(t, x.dtype, dtype))
    except Exception as error:
        told = f"raises {type(error).__name__} {text_of(error)}"
        raise _uncast(x, dtype, told) from error
    if type(made) is not type(x) or made.dtype != dtype:
        makes = f"returns {type(made).__name__} of {made.dtype}"
        raise _uncast(x, dtype, makes)
    return made


def _as_its_own(t: Tensor, old: torch.dtype, new: torch.dtype) -> Tensor:
    """Return an inner tensor in a new dtype if it has that of its wrapper."""
    if t.dtype != old:
        return t
    made = handler_of(t).cast(t, new)
    return t.to(new) if made is None else made


def _uncast(x: Any, dtype: torch.dtype, does: str) -> UnknownLeaf:
    """Return the error for a wrapper whose own ``to`` does something else."""
    name = type(x).__name__
    return UnknownLeaf(
        f"{name} of {x.dtype} is not cast to {dtype}, for its own to {does.rstrip()}; "
        f"leave it out with sd.where(~sd.selector({name}), ...), or make a tensor of "
        "it before with sd.map"
    )


def with_inner(made: Any, x: Any, change: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """Return a wrapper over what a function of its inner tensors and those of ``x`` is.

    It is what it was if ``x`` has other ones.
    """
    names, context = made.__tensor_flatten__()
    if names != x.__tensor_flatten__()[0]:
        return made
    inner = {name: change(getattr(made, name), getattr(x, name)) for name in names}
    size, stride = made.size(), made.stride()
    return type(made).__tensor_unflatten__(inner, context, size, stride)
