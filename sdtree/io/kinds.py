"""The leaf kinds that a safetensors file holds, each over one dense tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdtree.io.dtypes import DTYPES, is_unpackable
from sdtree.leaf import handler_of
from sdtree.path import where
from sdtree.portable import Json
from sdtree.typing import Leaf, Path


class Kind(NamedTuple):
    """How the leaves of one type are told apart from their tensor, and made of it.

    ``misfit(leaf)`` is what keeps a leaf out of the format, and what to do about it;
    empty if nothing does. ``marks(leaf)`` is None if there is nothing to tell.
    """

    name: str
    misfit: Callable[[Leaf], str]
    marks: Callable[[Leaf], Json]
    make: Callable[[Json, Tensor], Leaf]


class Held(NamedTuple):
    """A leaf as the format holds it: a dense tensor, and its kind if not just that."""

    tensor: Tensor
    kind: Json


def held(leaf: Leaf, path: Path) -> Held | None:
    """Return a leaf as the format holds it, None if it is a plain value.

    Raise ``TypeError`` that names the leaf if the format has no room for it.
    """
    cls = type(leaf)
    kind = _KINDS.get(f"{cls.__module__}.{cls.__qualname__}")
    if kind is None and not handler_of(leaf).flatten(leaf)[0]:
        return None
    if kind is None:
        raise TypeError(
            f"{where(path)}: a safetensors file has no room for a {cls.__qualname__}; "
            "make tensors of it with sd.map, or drop it"
        )
    misfit = kind.misfit(leaf)
    if misfit:
        raise TypeError(
            f"{where(path)}: a safetensors file has no room for a {misfit}, or drop "
            "it, or save a .pt file"
        )
    (t,), _ = handler_of(leaf).flatten(leaf)
    marks = kind.marks(leaf)
    return Held(t.detach(), None if marks is None else {kind.name: marks})


def make(kind: Json, t: Tensor) -> Leaf:
    """Return the leaf of a kind, as ``held`` told it, over its tensor."""
    if kind is None:
        return t
    [(name, marks)] = kind.items()
    return _NAMED[name].make(marks, t)


# -- tensors -----------------------------------------------------------------------


def _misfit_of_tensor(x: Tensor) -> str:
    if x.layout is not torch.strided or x.is_nested:
        return f"tensor of layout {x.layout}; try .to_dense()"
    if x.dtype not in DTYPES:
        return f"tensor of dtype {x.dtype}; try .to(...) or .dequantize()"
    if is_unpackable(x):
        return f"tensor of dtype {x.dtype} with no dimension; try .reshape(1)"
    return ""


def _tensor_marks(x: Tensor) -> Json:
    return x.requires_grad or None


def _parameter_marks(x: Tensor) -> Json:
    return x.requires_grad


def _tensor(requires_grad: Json, t: Tensor) -> Tensor:
    return t.requires_grad_(requires_grad is True)


def _parameter(requires_grad: Json, t: Tensor) -> Tensor:
    return torch.nn.Parameter(t, requires_grad=requires_grad is True)


# -- arrays ------------------------------------------------------------------------


def _misfit_of_array(x: Any) -> str:
    """Return what is wrong with an array; a record has a dtype that no name tells."""
    import numpy as np

    (t,), _ = handler_of(x).flatten(x)
    if t.dtype in DTYPES and np.dtype(x.dtype.str) == x.dtype:
        return ""
    return f"numpy array of dtype {x.dtype}; try .astype(...)"


def _array_marks(x: Any) -> Json:
    form = handler_of(x).flatten(x)[1]
    name = None if form.dtype is None else form.dtype.str
    return [name, list(form.flipped), bool(x.flags.writeable)]


def _array(marks: Json, t: Tensor) -> Leaf:
    import numpy as np

    from sdtree.kinds.array import Form, unflatten

    name, flipped, is_writeable = marks
    dtype = None if name is None else np.dtype(str(name))
    array = unflatten(Form(dtype, tuple(flipped)), [t])
    if not is_writeable:
        array.flags.writeable = False
    return array


_KINDS = {
    "torch.Tensor": Kind("Tensor", _misfit_of_tensor, _tensor_marks, _tensor),
    "torch.nn.parameter.Parameter": Kind(
        "Parameter", _misfit_of_tensor, _parameter_marks, _parameter
    ),
    "numpy.ndarray": Kind("ndarray", _misfit_of_array, _array_marks, _array),
}
_NAMED = {kind.name: kind for kind in _KINDS.values()}
