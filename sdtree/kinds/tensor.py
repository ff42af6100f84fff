"""Tensors and parameters, whatever holds their data.

A dense tensor is its own local tensor; how others come apart, their forms tell. So
whatever works on dense tensors works on all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn import Parameter

from sdtree.errors import UnknownLeaf
from sdtree.kinds import wrapper
from sdtree.kinds.forms import DENSE, Dense, Form, split
from sdtree.kinds.handler import Handler, Match, add_handler, handler_of
from sdtree.tensors.storage import BESIDE, STRIDED, are_bare, bare, check_held
from sdtree.typing import Aux

DOES_NOT = "does not come apart"


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
        if grad and bare.is_inference():
            with torch.inference_mode():  # nowhere else may it require a gradient
                dressed = self._marked(bare, grad)
        else:
            dressed = self._marked(bare, grad)
        for name, value in self.attributes.items():
            vars(dressed).setdefault(name, value)
        return dressed

    def _marked(self, bare: Tensor, grad: bool) -> Tensor:
        if type(bare) is self.cls:  # a subclass of it would be over other inner tensors
            return bare if bare.requires_grad == grad else bare.requires_grad_(grad)
        return Tensor._make_subclass(self.cls, bare, grad)


def flatten(x: Tensor) -> tuple[Sequence[Tensor], Aux]:
    """Return the local tensors of any tensor; a bare dense one is its own."""
    if (
        type(x) is Tensor
        and x.layout is torch.strided
        and not x.requires_grad
        and not x.__dict__
        and x.dtype not in BESIDE
    ):
        check_memory(x)
        return (x,), BARE
    ts, form = _split(x)
    return ts, Outer(type(x), form, x.requires_grad, _beside(x, form))


def _beside(x: Tensor, form: Form) -> Mapping[str, Any]:
    """Return the attributes of a tensor, but for the inner tensors of a wrapper."""
    if not isinstance(form, wrapper.Wrapper):
        return dict(x.__dict__)
    inner = {part.name for part in form.inner}
    return {name: value for name, value in x.__dict__.items() if name not in inner}


def are_alike(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> bool:
    """Return whether dense tensors of one type agree in shape and dtype, one by one.

    Of other tensors, and of wrappers, it knows nothing and says no.
    """
    if wrapper.is_wrapper(type(xs[0])):
        return False
    for x, y in zip(xs, ys, strict=True):
        if x.shape != y.shape or (dtype := x.dtype) is not y.dtype or dtype in BESIDE:
            return False
        if x.layout is not STRIDED or y.layout is not STRIDED:
            return False
    return True


def match(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Match | None:
    """Return where pairs lie that agree in shape and dtype, dense and with data."""
    if type(xs[0]) not in (Tensor, Parameter):
        return None
    try:
        return _match(xs, ys)
    except RuntimeError:  # some are of a layout without a storage
        return None


def _match(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Match | None:
    found = Match([], [], [])
    here, there, sizes = found
    for x, y in zip(xs, ys, strict=True):
        if x.shape != y.shape or (dtype := x.dtype) is not y.dtype or dtype in BESIDE:
            return None
        if not (x.is_contiguous() and y.is_contiguous()):
            return None
        size = x.nbytes
        if size:
            if x.is_meta or y.is_meta:  # whose address is how far in they begin
                return None
            step = dtype.itemsize
            if len(x.untyped_storage()) < size + x.storage_offset() * step:
                return None
            if len(y.untyped_storage()) < size + y.storage_offset() * step:
                return None
            here.append(x.data_ptr())
            there.append(y.data_ptr())
            sizes.append(size)
    return None if 0 in here or 0 in there else found


def unflatten(aux: Aux, ts: Sequence[Tensor]) -> Tensor:
    """Return the tensor over these local tensors."""
    return ts[0] if aux is BARE else aux.dress(ts)


def _split(x: Tensor) -> tuple[Sequence[Tensor], Form]:
    if wrapper.is_wrapper(type(x)):
        return wrapper.split_wrapper(x)
    with torch._C.DisableTorchFunctionSubclass():
        check_memory(x)  # what is detached from a level of torch.func is not in it
        bare = x.detach()
        if type(bare) is not Tensor:
            bare = bare.as_subclass(Tensor)
    return split(bare)


def cast(x: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Return a wrapper in another dtype; other tensors are their local tensors."""
    if not wrapper.is_wrapper(type(x)):
        return None
    made = wrapper.cast(x, dtype)
    return x if made is x else _dressed(made, x)


def _dressed(made: Tensor, x: Tensor) -> Tensor:
    """Return what was made of ``x`` with the type and marks of that, inside too."""
    if handler_of(x).flatten is not flatten:  # a kind of its own
        return made
    if wrapper.is_wrapper(type(made)) and wrapper.is_wrapper(type(x)):
        made = wrapper.with_inner(made, x, _dressed)
    ts, form = _split(made)
    return Outer(type(x), form, x.requires_grad, _beside(x, form)).dress(ts)


def is_dense(aux: Aux) -> bool:
    """Return whether a tensor of this aux is its one local tensor."""
    return isinstance(aux.form, Dense)


def check_memory(x: Tensor) -> None:
    """Raise ``UnknownLeaf`` for a tensor that has not the memory of what it shows.

    Its storage was freed, or it only stands for tensors inside ``torch.func``. What has
    an address is none of these, unless it is nested.
    """
    try:
        is_there = x.data_ptr() and not x.is_nested
        if is_there:
            check_held(x, x.untyped_storage().nbytes())
            return
    except RuntimeError:  # it has no storage
        pass
    if x.is_nested:
        raise UnknownLeaf(f"a nested tensor {DOES_NOT}; take its parts, x.unbind()")
    if is_functorch_wrapped_tensor(x):
        raise UnknownLeaf(
            f"a tensor inside torch.func, such as of vmap or grad, {DOES_NOT}; call "
            "this outside, or map over such leaves with sd.map"
        )
    if torch._is_functional_tensor(x):
        raise UnknownLeaf(f"a functional tensor {DOES_NOT}; take what it stands for")
    if x.layout is STRIDED:
        check_held(x, x.untyped_storage().nbytes())


BARE = Outer(Tensor, DENSE, False, {})
"""What a dense tensor without marks is beside its data: nothing."""


HANDLER = Handler(
    Tensor,
    flatten,
    unflatten,
    are_bare=are_bare,
    are_alike=are_alike,
    match=match,
    locals=bare,
    over=lambda _, ts: ts,
    dtype=attrgetter("dtype"),
    cast=cast,
    is_dense=is_dense,
)
add_handler(HANDLER)
