"""Tensors and parameters, dense, sparse or quantized, and wrapper subclasses.

A dense tensor is its own local tensor. A sparse one has its indices and values, a
quantized one its integers over the same storage, and a wrapper subclass what its
``__tensor_flatten__`` lists: so whatever works on dense tensors works on all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from sdtree.errors import UnknownLeaf
from sdtree.leaf import Handler, Match, add_handler, handler_of
from sdtree.typing import Aux

STRIDED = torch.strided


class Form(Protocol):
    """How the data of a tensor is held, beside its local tensors."""

    def join(self, ts: Sequence[Tensor]) -> Tensor:
        """Return a new tensor over the local tensors."""
        ...


@dataclass(frozen=True, slots=True)
class Outer:
    """What a tensor is beside its data: type, form, and marks that do not compare."""

    cls: type[Tensor]
    form: Form
    requires_grad: bool = field(compare=False)
    attributes: Mapping[str, Any] = field(compare=False, repr=False)

    def dress(self, ts: Sequence[Tensor]) -> Tensor:
        """Return the tensor of this type and these marks over the local tensors."""
        bare = self.form.join(ts)
        grad = self.requires_grad and (bare.is_floating_point() or bare.is_complex())
        if type(bare) is self.cls:
            dressed = bare.requires_grad_(grad)
        else:
            dressed = Tensor._make_subclass(self.cls, bare, grad)
        for name, value in self.attributes.items():
            vars(dressed).setdefault(name, value)
        return dressed


def flatten(x: Tensor) -> tuple[Sequence[Tensor], Aux]:
    """Return the local tensors of any tensor; a bare dense one is its own."""
    if (
        type(x) is Tensor
        and x.layout is torch.strided
        and not x.requires_grad
        and not x.__dict__
        and not x.is_quantized
    ):
        return (x,), BARE
    ts, form = _split(x)
    return ts, Outer(type(x), form, x.requires_grad, dict(x.__dict__))


def are_bare(xs: Sequence[Tensor]) -> bool:
    """Return whether each tensor is its own local tensor; all are of one type.

    One loop: what is asked of a tensor while it is at hand costs half as much.
    """
    if type(xs[0]) is not Tensor:
        return False
    for x in xs:
        if x.layout is not STRIDED or x.requires_grad or x.__dict__ or x.is_quantized:
            return False
    return True


def are_alike(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> bool:
    """Return whether dense tensors of one type agree in shape and dtype, one by one.

    Of other tensors, and of wrappers, it knows nothing and says no.
    """
    if hasattr(type(xs[0]), "__tensor_flatten__"):
        return False
    for x, y in zip(xs, ys, strict=True):
        if x.shape != y.shape or x.dtype is not y.dtype or x.is_quantized:
            return False
        if x.layout is not STRIDED or y.layout is not STRIDED:
            return False
    return True


def match(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Match | None:
    """Return where pairs lie that agree in shape and dtype, dense and with data."""
    if type(xs[0]) not in (Tensor, Parameter):
        return None
    found = Match([], [], [])
    here, there, sizes = found
    for x, y in zip(xs, ys, strict=True):
        if x.shape != y.shape or x.dtype is not y.dtype or x.is_quantized:
            return None
        if x.layout is not STRIDED or y.layout is not STRIDED:
            return None
        if not (x.is_contiguous() and y.is_contiguous()):
            return None
        size = x.nbytes
        if size:
            here.append(x.data_ptr())
            there.append(y.data_ptr())
            sizes.append(size)
    return None if 0 in here or 0 in there else found


def unflatten(aux: Aux, ts: Sequence[Tensor]) -> Tensor:
    """Return the tensor over these local tensors."""
    return ts[0] if aux is BARE else aux.dress(ts)


def _split(x: Tensor) -> tuple[Sequence[Tensor], Form]:
    if hasattr(type(x), "__tensor_flatten__"):
        return _split_wrapper(x)
    with torch._C.DisableTorchFunctionSubclass():
        bare = x.detach()
        if type(bare) is not Tensor:
            bare = bare.as_subclass(Tensor)
    if bare.layout is torch.strided:
        return _split_quantized(bare) if bare.is_quantized else ((bare,), Dense())
    if bare.layout is torch.sparse_coo:
        size, done = tuple(bare.shape), bare.is_coalesced()
        return (bare._indices(), bare._values()), Coordinates(size, done)
    if bare.layout in _COMPRESSED:
        pointers, places = _COMPRESSED[bare.layout]
        ts = (getattr(bare, pointers)(), getattr(bare, places)(), bare.values())
        return ts, Compressed(tuple(bare.shape), bare.layout)
    raise UnknownLeaf(
        f"a tensor of layout {bare.layout} does not come apart; convert it first, "
        "with .to_dense() say"
    )


@dataclass(frozen=True, slots=True)
class Dense:
    """The tensor is its one local tensor."""

    def join(self, ts: Sequence[Tensor]) -> Tensor:
        return ts[0].detach()


BARE = Outer(Tensor, Dense(), False, {})
"""What a dense tensor without marks is beside its data: nothing."""


@dataclass(frozen=True, slots=True)
class Coordinates:
    """Sparse COO: the local tensors are indices and values."""

    size: tuple[int, ...]
    is_coalesced: bool

    def join(self, ts: Sequence[Tensor]) -> Tensor:
        return torch.sparse_coo_tensor(
            ts[0],
            ts[1],
            self.size,
            check_invariants=False,
            is_coalesced=self.is_coalesced,
        )


@dataclass(frozen=True, slots=True)
class Compressed:
    """Sparse CSR, CSC, BSR, BSC: the local tensors are pointers, indices, values."""

    size: tuple[int, ...]
    layout: torch.layout

    def join(self, ts: Sequence[Tensor]) -> Tensor:
        pointers, places, values = ts
        return torch.sparse_compressed_tensor(
            pointers,
            places,
            values,
            self.size,
            layout=self.layout,
            check_invariants=False,
        )


_COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices"),
    torch.sparse_bsr: ("crow_indices", "col_indices"),
    torch.sparse_csc: ("ccol_indices", "row_indices"),
    torch.sparse_bsc: ("ccol_indices", "row_indices"),
}


@dataclass(frozen=True, slots=True)
class Quantized:
    """A quantized tensor: the local tensor holds its integers, the scheme stands here.

    ``scale`` and ``zero_point`` are numbers, or one number per slice of ``axis``.
    """

    dtype: torch.dtype
    scale: Any
    zero_point: Any
    axis: int | None

    def join(self, ts: Sequence[Tensor]) -> Tensor:
        [raw] = ts
        place: Any = {"dtype": self.dtype, "device": raw.device}
        if self.axis is None:
            empty = torch._empty_affine_quantized(
                raw.size(), scale=self.scale, zero_point=self.zero_point, **place
            )
        else:
            empty = torch._empty_per_channel_affine_quantized(
                raw.size(),
                scales=torch.tensor(self.scale, dtype=torch.float64),
                zero_points=torch.tensor(self.zero_point),
                axis=self.axis,
                **place,
            )
        storage, offset = raw.untyped_storage(), raw.storage_offset()
        return empty.set_(storage, offset, raw.size(), raw.stride())


_INTEGERS = {
    torch.qint8: torch.int8,
    torch.quint8: torch.uint8,
    torch.qint32: torch.int32,
}


def _split_quantized(x: Tensor) -> tuple[Sequence[Tensor], Form]:
    if x.dtype not in _INTEGERS:
        raise UnknownLeaf(f"a tensor of dtype {x.dtype} does not come apart")
    raw = torch.empty(0, dtype=_INTEGERS[x.dtype], device=x.device).set_(
        x.untyped_storage(), x.storage_offset(), x.size(), x.stride()
    )
    if x.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return (raw,), Quantized(x.dtype, x.q_scale(), x.q_zero_point(), None)
    scales = tuple(x.q_per_channel_scales().tolist())
    zero_points = tuple(x.q_per_channel_zero_points().tolist())
    axis = x.q_per_channel_axis()
    return (raw,), Quantized(x.dtype, scales, zero_points, axis)


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
    stride: tuple[int, ...]

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


def _split_wrapper(x: Any) -> tuple[Sequence[Tensor], Form]:
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


add_handler(
    Handler(
        Tensor,
        flatten,
        unflatten,
        are_bare=are_bare,
        are_alike=are_alike,
        match=match,
    )
)
