"""How a wrapper is cut, which only its class can tell: it is asked, on the meta device.

It is to gather two of it, as torch has a whole made, and else to be sliced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sdtree.errors import text_of
from sdtree.kinds.handler import handler_of
from sdtree.kinds.values import same_value
from sdtree.kinds.wrapper import Wrapper, is_wrapper
from sdtree.tensors.storage import dense_strides

Sizes = tuple[int, ...]


class Untold(Exception):
    """It cannot be told how a leaf is cut; the text says why."""


class Doubling(TorchDispatchMode):
    """Where a wrapper would gather its inner tensors from two ranks, they are twice."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        x, *_ = args
        if is_wrapper(type(x)):
            with self:
                return type(x).__torch_dispatch__(func, types, args, kwargs or {})
        if func is torch.ops._c10d_functional.all_gather_into_tensor.default:
            return torch.cat([x, x])
        return func(*args, **(kwargs or {}))


def _doubled(x: Any, dim: int) -> tuple[Any, int]:
    if dim:
        raise Untold("it gathers along dimension 0 alone")
    with Doubling(), torch._C.DisableTorchFunctionSubclass():
        return torch.ops._c10d_functional.all_gather_into_tensor.default(x, 2, ""), 2


def _halved(x: Any, dim: int) -> tuple[Any, Fraction]:
    rows = x.shape[dim] // 2
    return _slice(x, dim, 0, rows), Fraction(rows, x.shape[dim])


def _emptied(x: Any, dim: int) -> tuple[Any, int]:
    return _slice(x, dim, 0, 0), 0


def _slice(x: Any, dim: int, start: int, stop: int) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        return torch.ops.aten.slice.Tensor(x, dim, start, stop)


Way = Callable[[Any, int], tuple[Any, int | Fraction]]


Answer = tuple[tuple[bool, ...], bool]
"""Which inner tensors are cut, and whether what is beside them tells the size."""

MOST_KNOWN: Final = 4096
_KNOWN: Final[dict[Hashable, Answer]] = {}


def asked(local: Any, ts: Sequence[Tensor], aux: Any, dims: Sequence[int]) -> Answer:
    """Return which inner tensors are cut along all dimensions, and not along none.

    And whether what is beside them tells the size of the whole. Asked once of those
    that are alike, for it takes milliseconds.
    """
    held = tuple((t.size(), t.dtype) for t in ts)
    context = getattr(getattr(aux, "form", None), "context", None)
    key = type(local), local.size(), held, tuple(dims), repr(context)
    found = _KNOWN.get(key)
    if found is None:
        found = _answer(local, ts, aux, dims)
        if len(_KNOWN) >= MOST_KNOWN:
            _KNOWN.clear()  # in which another thread may be about to look
        _KNOWN[key] = found
    return found


def _answer(local: Any, ts: Sequence[Tensor], aux: Any, dims: Sequence[int]) -> Answer:
    form = getattr(aux, "form", None)
    if not isinstance(form, Wrapper) or any(part.count != 1 for part in form.inner):
        raise Untold("which is no wrapper over dense tensors")
    if not local.numel():
        raise Untold("of which this rank has an empty part, too little to tell by")
    meta = handler_of(local).unflatten(aux, [t.to("meta") for t in ts])
    found = {(*_along(meta, dim),) for dim in dims}
    if len({cut for cut, _ in found}) != 1:
        raise Untold("whose inner tensors are cut along one dimension, not the other")
    return next(iter(found))[0], any(has_size for _, has_size in found)


def _along(meta: Any, dim: int) -> Answer:
    """Return what is cut along a dimension, and whether the rest tells the size."""
    why: list[str] = []
    for ways in ((_doubled,), (_emptied, _halved), (_emptied,)):
        try:
            cut, has_size = _cut(meta, dim, ways[0]), _has_size(meta, dim, ways[-1])
            if ways[0] is _emptied:
                _check_joined(meta, dim, cut, has_size)
            return cut, has_size
        except Exception as error:
            told = "" if isinstance(error, Untold) else f"it raises {_named(error)}"
            why.append(told or str(error))
    told = ", ".join(dict.fromkeys(why))
    raise Untold(f"which does not tell how it is cut along dimension {dim}: {told}")


def _named(error: Exception) -> str:
    return f"{type(error).__name__} {text_of(error)}".partition("\n")[0]


def _cut(meta: Any, dim: int, way: Way) -> tuple[bool, ...]:
    made, factor = _made(meta, dim, way)
    before, after = (handler_of(x).flatten(x)[0] for x in (meta, made))
    cut = tuple(a.size() != b.size() for a, b in zip(before, after, strict=True))
    for is_cut, a, b in zip(cut, before, after, strict=True):
        if is_cut and b.numel() != a.numel() * factor:
            raise Untold(f"of {tuple(a.size())} it makes {tuple(b.size())}")
    if not any(cut):
        raise Untold("nothing in it is cut")
    return cut


def _check_joined(meta: Any, dim: int, cut: Sequence[bool], has_size: bool) -> None:
    """Raise unless two of a wrapper, joined as ranks would, are sliced to be these.

    It may be in blocks, and hold but a part of one.
    """
    handler, size = handler_of(meta), [*meta.shape]
    rows, size[dim] = size[dim], 2 * size[dim]
    ts, aux = handler.flatten(meta)
    twice = [
        torch.cat([t, t], dim if t.ndim == meta.ndim else 0) if is_cut else t
        for t, is_cut in zip(ts, cut, strict=True)
    ]
    joined = handler.unflatten(resized(aux, has_size, meta.shape, size), twice)
    for start, stop, wanted in (
        (0, rows, ts),
        (rows, 2 * rows, ts),
        (0, 2 * rows, twice),
    ):
        made = _slice(joined, dim, start, stop)
        found = [t.size() for t in handler.flatten(made)[0]]
        if found != [t.size() for t in wanted]:
            raise Untold("two of it, joined, are not sliced to be these again")


def resized(aux: Any, has_size: bool, old: Sizes, new: Sequence[int]) -> Any:
    """Return what a wrapper of another size is beside its tensors."""
    size, context = torch.Size(new), aux.form.context
    if has_size:
        context = _sized(context, old, size)
    strides = dense_strides(size)
    form = replace(aux.form, context=context, size=tuple(size), stride=strides)
    return replace(aux, form=form)


def _made(meta: Any, dim: int, way: Way) -> tuple[Any, int | Fraction]:
    made, factor = way(meta, dim)
    size = [*meta.shape]
    size[dim] = int(size[dim] * factor)
    if type(made) is not type(meta) or [*made.shape] != size:
        raise Untold(f"it becomes {type(made).__name__} {tuple(made.shape)}")
    return made, factor


def _has_size(meta: Any, dim: int, way: Way) -> bool:
    """Return whether a wrapper tells its size beside its tensors, and nothing like it.

    What else depends on the size could not be told of the whole.
    """
    made, _ = _made(meta, dim, way)
    here, there = (x.__tensor_flatten__()[1] for x in (meta, made))
    if same_value(_loose(here), _loose(there)):
        return False
    if same_value(_loose(_sized(here, meta.shape, made.shape)), _loose(there)):
        return True
    raise Untold("what it is beside its tensors would be another of the whole")


def _loose(context: Any) -> Any:
    """Return a context without what has nothing to do with sizes."""
    return _changed(context, lambda x: None if isinstance(x, FREE) else x)


FREE = (torch.dtype, torch.device)


def _sized(context: Any, old: Sizes, new: Sizes) -> Any:
    """Return a context in which tuples that tell one size tell another."""

    def change(x: Any) -> Any:
        return type(x)(new) if isinstance(x, tuple) and x == tuple(old) else x

    return _changed(context, change)


def _changed(x: Any, change: Callable[[Any], Any]) -> Any:
    made = change(x)
    if made is not x or isinstance(x, torch.Size):
        return made
    if type(x) in (list, tuple):
        return type(x)(_changed(part, change) for part in x)
    if type(x) is dict:
        return {key: _changed(part, change) for key, part in x.items()}
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        fields: Any = {f.name: getattr(x, f.name) for f in dataclasses.fields(x)}
        fields = {name: _changed(part, change) for name, part in fields.items()}
        return replace(x, **fields)
    return x
