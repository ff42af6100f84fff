"""Tensors made of what a pickle says of them, which is checked.

torch takes what it is told: a size beyond the storage makes the storage larger, the
indices of a sparse tensor are believed. A file can lie, so here nothing is. What is not
of a kind that is known is ``NotImplemented``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch._utils import set_tensor_metadata
from torch.nn import Parameter

from sdtree.errors import FileError, UnknownLeaf
from sdtree.io.pickles.foreign import Foreign
from sdtree.io.pickles.machine import Room
from sdtree.io.pickles.stored import Stored, as_numbers, check_lies, lying
from sdtree.kinds.forms import Coordinates, split
from sdtree.text.short import full_name
from sdtree.tree.attributes import with_attributes

Make = Callable[..., Any]
TYPES: Final = {"torch.Tensor": Tensor, "torch.nn.parameter.Parameter": Parameter}


def _bare(stored: Any, offset: Any, size: Any, stride: Any) -> Any:
    if not isinstance(stored, Stored):
        return NotImplemented
    return lying(stored.empty(stored.dtype), stored, offset, size, stride)


def _tensor(stored: Any, offset: Any, size: Any, stride: Any, *marks: Any) -> Any:
    requires_grad, _, *more = marks
    made = _bare(stored, offset, size, stride)
    return _marked(made, requires_grad, *more)


def _marked(t: Any, requires_grad: Any, marks: Any = None) -> Any:
    """Return a tensor that requires grad, is conjugated or negated, or is not."""
    if t is NotImplemented:
        return t
    if marks:
        is_odd = type(marks) is not dict or (marks.get("conj") and not t.is_complex())
        if is_odd or not {"conj", "neg"}.issuperset(marks):
            raise FileError(f"a {t.dtype} with the marks {marks!r:.40}")
        set_tensor_metadata(t, marks)
    return t.requires_grad_() if requires_grad is True else t


def _parameter(data: Any, requires_grad: Any = True, *_: Any) -> Any:
    if not isinstance(data, Tensor):
        return NotImplemented
    return Parameter(data, requires_grad is True)


def _attributed(data: Any, requires_grad: Any, _: Any, state: Any) -> Any:
    made = _parameter(data, requires_grad)
    return made if made is NotImplemented else with_attributes(made, state)


def _on_meta(dtype: Any, size: Any, stride: Any, requires_grad: Any) -> Tensor:
    size, stride = as_numbers(size, stride)
    t = torch.empty_strided(size, stride, dtype=dtype, device="meta")
    return _marked(t, requires_grad)


def _quantized(
    stored: Any, offset: Any, size: Any, stride: Any, scheme: Any, *marks: Any
) -> Any:
    if not isinstance(stored, Stored):
        return NotImplemented
    empty = _empty_quantized(stored, scheme, size)
    return _marked(lying(empty, stored, offset, size, stride), marks[0])


def _empty_quantized(stored: Stored, scheme: Sequence[Any], size: Any) -> Tensor:
    """Return a quantized tensor of no elements, or of as many as it has scales."""
    place: Any = {"dtype": stored.dtype, "device": stored.storage.device}
    kind, scale, zero_point, *axes = scheme
    if kind is torch.per_tensor_affine:
        affine: Any = {"scale": scale, "zero_point": zero_point}
        return torch._empty_affine_quantized([0], **affine, **place)
    [axis] = axes
    count = len(scale)
    if not 0 <= axis < len(size) or not count == len(zero_point) == size[axis]:
        raise FileError(f"{count} scales along {axis} of a tensor of shape {size}")
    few = [count if k == axis else 0 for k in range(len(size))]
    affine = {
        "scales": torch.as_tensor(scale),  # torch has them on the device
        "zero_points": torch.as_tensor(zero_point),
    }
    try:
        return torch._empty_per_channel_affine_quantized(
            few, axis=axis, **affine, **place
        )
    except NotImplementedError as error:
        raise UnknownLeaf(
            f"torch has no {place['device'].type} tensor that is quantized by channel, "
            f"as one of shape {tuple(size)} in this file is; load it on 'cpu', where "
            "mmap=True reads no data before it is asked for"
        ) from error


class Rebuilder:
    """Makes the tensors of one file, on one device.

    ``call`` makes what a pickle calls for. Where ``has_data`` is false, the data of the
    storages comes later. If ``is_swapped``, storages that do not tell their dtype have
    their bytes in the other order; ``swapped`` are those that no longer do.
    """

    def __init__(
        self, room: Room, device: torch.device, call: Callable[..., Any], has_data: bool
    ) -> None:
        self.room = room
        self.device = device
        self.call = call
        self.has_data = has_data
        self.unseen: list[Tensor] = []
        self.is_swapped = False
        self.swapped: dict[torch.UntypedStorage, int] = {}

    def makers(self) -> dict[str, Make]:
        """Return what makes the tensors, under the names that torch has for it."""
        own = {
            "_rebuild_tensor_v3": self.of_dtype,
            "_rebuild_sparse_tensor": self.sparse,
            "_rebuild_nested_tensor": self.nested,
            "_rebuild_wrapper_subclass": self.wrapper,
            "_rebuild_device_tensor_from_numpy": self.moved,
            "_rebuild_device_tensor_from_cpu_tensor": self.moved,
        }
        found = {f"torch._utils.{name}": make for name, make in (own | _MAKERS).items()}
        found["torch._tensor._rebuild_from_type_v2"] = self.of_type
        found["torch.nn.parameter.Parameter"] = _parameter
        return found

    def of_dtype(
        self, stored: Any, offset: Any, size: Any, stride: Any, *marks: Any
    ) -> Any:
        requires_grad, _, dtype, *more = marks
        if not isinstance(stored, Stored) or not isinstance(dtype, torch.dtype):
            return NotImplemented
        if self.is_swapped and stored.storage.device.type != "meta":
            self._swap(stored.storage, dtype)
        made = lying(stored.empty(dtype), stored, offset, size, stride)
        return _marked(made, requires_grad, *more)

    def _swap(self, storage: torch.UntypedStorage, dtype: torch.dtype) -> None:
        """Have the numbers of a storage as they are here, which are of one size."""
        if storage not in self.swapped:
            self.swapped[storage] = dtype.itemsize
            if dtype.itemsize > 1:
                storage.byteswap(dtype)
        if self.swapped[storage] != dtype.itemsize:
            raise FileError("numbers of several sizes in one storage, to be swapped")

    def sparse(self, layout: Any, data: Sequence[Any]) -> Any:
        """Return a sparse tensor, whose indices are still to be looked at."""
        place: Any = {"device": self.device, "check_invariants": False}
        if layout is torch.sparse_coo:
            indices, values, size, *more = data
            place["is_coalesced"] = more[0] if more else None
            made = torch.sparse_coo_tensor(indices, values, size, **place)
        else:
            pointers, indices, values, size = data
            made = torch.sparse_compressed_tensor(
                pointers, indices, values, size, layout=layout, **place
            )
        self.unseen.append(made)
        return made

    def check_unseen(self) -> None:
        """Raise unless the indices of sparse tensors lie in what they index."""
        for t in self.unseen:
            if t.is_meta:
                continue
            ts, form = split(t.detach())
            self.room.spend_on_data(sum(part.nbytes for part in ts))
            place: Any = {"device": t.device, "check_invariants": True}
            if isinstance(form, Coordinates):
                place["is_coalesced"] = form.is_coalesced
                torch.sparse_coo_tensor(ts[0], ts[1], form.size, **place)
            else:
                torch.sparse_compressed_tensor(
                    ts[0], ts[1], ts[2], t.size(), layout=t.layout, **place
                )

    def nested(self, buffer: Tensor, sizes: Any, strides: Any, offsets: Any) -> Any:
        if not self.has_data:
            return NotImplemented
        self.room.spend_on_data(offsets.nbytes + sizes.nbytes + strides.nbytes)
        parts = (offsets.tolist(), sizes.tolist(), strides.tolist())
        for offset, size, stride in zip(*parts, strict=True):
            as_numbers([offset], size, stride)
            check_lies(offset, size, stride, buffer.numel())
        return torch._nested_view_from_buffer(buffer, sizes, strides, offsets)

    def wrapper(self, cls: Any, dtype: Any, size: Any, stride: Any, *more: Any) -> Any:
        """Return a wrapper of a class that the user allows, without what is inside."""
        if isinstance(cls, Foreign):
            return NotImplemented
        offset, layout, _, requires_grad = more
        size, stride = as_numbers(size, stride)
        form: Any = {"dtype": dtype, "storage_offset": offset, "layout": layout}
        place: Any = {"device": self.device, "requires_grad": requires_grad is True}
        return Tensor._make_wrapper_subclass(cls, size, strides=stride, **form, **place)

    def moved(self, data: Any, dtype: Any, _: Any, requires_grad: Any) -> Any:
        """Return a tensor whose data the pickle holds itself."""
        self.room.spend_on_data(data.nbytes)
        t = data if isinstance(data, Tensor) else torch.from_numpy(data)
        return _marked(t.to(dtype=dtype, device=self.device), requires_grad)

    def of_type(self, make: Any, cls: Any, args: Any, state: Any) -> Any:
        """Return a tensor of a type, with its attributes."""
        made = self.call(make, args)
        known: Any = TYPES.get(cls.name) if isinstance(cls, Foreign) else cls
        if known is None or not isinstance(made, Tensor):
            foreign = Foreign(full_name(cls) if known else cls.name, (made,))
            foreign.state = state
            return foreign
        if type(made) is not known:
            made = made.as_subclass(known)
        if known.__setstate__ is Tensor.__setstate__:
            return with_attributes(made, state)
        known.__setstate__(made, state)
        return made


_MAKERS: Final[dict[str, Make]] = {
    "_rebuild_tensor": _bare,
    "_rebuild_tensor_v2": _tensor,
    "_rebuild_parameter": _parameter,
    "_rebuild_parameter_with_state": _attributed,
    "_rebuild_qtensor": _quantized,
    "_rebuild_meta_tensor_no_storage": _on_meta,
}
