"""How the data of a tensor is held: dense, sparse, packed or quantized.

A dense tensor is its own local tensor. A sparse one has its indices and values, a
packed one its bytes, a quantized one its integers, over the same storage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from sdtree.errors import UnknownLeaf
from sdtree.tensors.storage import PACKED, QUANTIZED


class Form(Protocol):
    """How the data of a tensor is held, beside its local tensors."""

    def join(self, ts: Sequence[Tensor]) -> Tensor:
        """Return a new tensor over the local tensors."""
        ...


def split(bare: Tensor) -> tuple[Sequence[Tensor], Form]:
    """Return the local tensors of a tensor of no subclass, and its form."""
    if bare.layout is torch.strided:
        if bare.dtype in PACKED:
            raw = torch.uint8 if bare.itemsize == 1 else torch.int16
            return (bare.view(raw),), Packed(bare.dtype)
        if bare.dtype in QUANTIZED:
            return _split_quantized(bare)
        return (bare,), DENSE
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


DENSE: Final = Dense()
"""What all dense tensors have in common: to compare it with itself is quick."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Elements that torch cannot copy as such: the local tensor has their bytes."""

    dtype: torch.dtype

    def join(self, ts: Sequence[Tensor]) -> Tensor:
        return ts[0].view(self.dtype)


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
            device=ts[1].device,
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
            device=values.device,
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

    ``scale`` and ``zero_point`` are numbers, or one number per slice of ``axis``, and
    then the zero points have a dtype, which tells apart what they stand for.
    """

    dtype: torch.dtype
    scale: Any
    zero_point: Any
    axis: int | None
    zeros: torch.dtype | None = None

    def join(self, ts: Sequence[Tensor]) -> Tensor:
        [raw] = ts
        if raw.is_meta:
            raise UnknownLeaf(
                f"torch has no meta tensor of dtype {self.dtype}; drop it, or convert "
                "it first, with .dequantize()"
            )
        place: Any = {"dtype": self.dtype, "device": raw.device}
        if self.axis is None:
            empty = torch._empty_affine_quantized(
                raw.size(), scale=self.scale, zero_point=self.zero_point, **place
            )
        else:
            empty = torch._empty_per_channel_affine_quantized(
                raw.size(),
                scales=torch.tensor(self.scale, dtype=torch.float64, device="cpu"),
                zero_points=torch.tensor(
                    self.zero_point, dtype=self.zeros, device="cpu"
                ),
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
    has_scale = _has_scale(x)
    if x.dtype not in _INTEGERS or not has_scale:
        bare = f".view({_INTEGERS.get(x.dtype, torch.uint8)})"
        raise UnknownLeaf(
            f"a tensor of dtype {x.dtype} does not come apart; convert it first, with "
            f"{'.dequantize()' if has_scale else bare}"
        )
    raw = torch.empty(0, dtype=_INTEGERS[x.dtype], device=x.device).set_(
        x.untyped_storage(), x.storage_offset(), x.size(), x.stride()
    )
    if x.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return (raw,), Quantized(x.dtype, x.q_scale(), x.q_zero_point(), None)
    scales, zeros = x.q_per_channel_scales(), x.q_per_channel_zero_points()
    numbers = tuple(scales.tolist()), tuple(zeros.tolist())
    axis = x.q_per_channel_axis()
    return (raw,), Quantized(x.dtype, *numbers, axis, zeros.dtype)


def _has_scale(x: Tensor) -> bool:
    """Return whether a quantized tensor is one, and not a view of integers as such."""
    try:
        x.qscheme()
    except RuntimeError:
        return False
    return True
