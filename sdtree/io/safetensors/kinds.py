"""The leaf kinds that a safetensors file holds, each over one dense tensor."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdtree.errors import one_of
from sdtree.io.safetensors.dtypes import DTYPES, is_unpackable
from sdtree.kinds.handler import handler_of, served_by
from sdtree.path import where
from sdtree.tree.attributes import takes_attribute
from sdtree.tree.plain_json import Json, dump, expect, load, shortly
from sdtree.tree.scalars import is_plain, plain_dtype
from sdtree.typing import Leaf, Path


class Kind(NamedTuple):
    """How the leaves of one type are told apart from their tensor, and made of it.

    ``misfit(leaf)`` is what keeps a leaf out of the format, and what to do about it;
    empty if nothing does. ``marks(leaf, path)`` is None if there is nothing to tell.
    """

    name: str
    misfit: Callable[[Leaf], str]
    marks: Callable[[Leaf, Path], Json]
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
        is_shared = served_by(leaf).layout is not None
        way = "make tensors of it with sd.map"
        if is_shared:
            way = "sd.gather it first, save to a directory, which all ranks write"
        raise TypeError(
            f"{where(path)}: a safetensors file has no room for {one_of(cls)}; {way}, "
            "or drop it"
        )
    misfit = kind.misfit(leaf)
    if misfit:
        raise TypeError(
            f"{where(path)}: a safetensors file has no room for a {misfit}, or drop it"
        )
    return _held(kind, leaf, path)


def marked(leaf: Leaf, path: Path) -> Held:
    """Return a tensor with its marks, whether or not the format has room for it."""
    return _held(
        _KINDS[f"{type(leaf).__module__}.{type(leaf).__qualname__}"], leaf, path
    )


def _held(kind: Kind, leaf: Leaf, path: Path) -> Held:
    (t,), _ = handler_of(leaf).flatten(leaf)
    marks = kind.marks(leaf, path)
    return Held(t.detach(), None if marks is None else {kind.name: marks})


def make(kind: Json, t: Tensor) -> Leaf:
    """Return the leaf of a kind, as ``held`` told it, over its tensor."""
    if kind is None:
        return t
    [(name, marks)] = expect(kind, dict).items()
    return _NAMED[name].make(marks, t)


# -- tensors -----------------------------------------------------------------------


def _misfit_of_tensor(x: Tensor) -> str:
    if x.layout is not torch.strided:
        return f"tensor of layout {x.layout}; save a .pt file, try .to_dense()"
    if x.is_quantized:
        return f"tensor of dtype {x.dtype}; save a .pt file, try .dequantize()"
    if x.dtype not in DTYPES:
        way = "save a .pt file, try .to(...)" if is_in_pt(x.dtype) else "try .view(...)"
        return f"tensor of dtype {x.dtype}; {way}"
    if is_unpackable(x):
        return f"tensor of dtype {x.dtype} with no dimension; try .reshape(1)"
    return ""


@cache
def is_in_pt(dtype: torch.dtype) -> bool:
    """Return whether torch writes tensors of a dtype."""
    try:
        torch.save(torch.empty(0, dtype=dtype), io.BytesIO())
    except Exception:  # torch has no error of its own for it
        return False
    return True


def _tensor_marks(x: Tensor, path: Path) -> Json:
    attributes = _attributes(x, path)
    return [x.requires_grad, attributes] if attributes else x.requires_grad or None


def _parameter_marks(x: Tensor, path: Path) -> Json:
    attributes = _attributes(x, path)
    return [x.requires_grad, attributes] if attributes else x.requires_grad


def _attributes(x: Tensor, path: Path) -> Json:
    """Return the Python attributes of a tensor as JSON, which are plain values."""
    return {name: dump(value, (*path, name)) for name, value in vars(x).items()}


def _tensor(marks: Json, t: Tensor) -> Tensor:
    requires_grad, attributes = marks if isinstance(marks, list) else (marks, {})
    return _with_attributes(t.requires_grad_(requires_grad is True), attributes)


def _parameter(marks: Json, t: Tensor) -> Tensor:
    requires_grad, attributes = marks if isinstance(marks, list) else (marks, {})
    made = torch.nn.Parameter(t, requires_grad=requires_grad is True)
    return _with_attributes(made, attributes)


def _with_attributes(t: Tensor, attributes: Json) -> Tensor:
    for name, value in expect(attributes, dict).items():
        if not takes_attribute(type(t), name):
            raise ValueError(f"a tensor takes no attribute {shortly(name)}")
        vars(t)[name] = load(value)
    return t


# -- arrays ------------------------------------------------------------------------


def _misfit_of_array(x: Any) -> str:
    """Return what is wrong with an array; a record has a dtype that no name tells."""
    from sdtree.kinds.array import KNOWN

    (t,), _ = handler_of(x).flatten(x)
    if KNOWN.get(x.dtype, t.dtype) in DTYPES and is_plain(x.dtype):
        return ""  # wherever it lies: one that is not aligned is held as bytes
    way = (
        "save a .pt file, try .astype(...)" if is_plain(x.dtype) else "try .astype(...)"
    )
    return f"numpy array of dtype {x.dtype}; {way}"


def _array_marks(x: Any, path: Path = ()) -> Json:
    form = handler_of(x).flatten(x)[1]
    name = None if form.dtype is None else form.dtype.str
    return [name, list(form.flipped), bool(x.flags.writeable)]


def _array(marks: Json, t: Tensor) -> Leaf:
    from sdtree.kinds.array import Form, unflatten

    name, flipped, is_writeable = marks
    dtype = None if name is None else plain_dtype(name)
    array = unflatten(Form(dtype, tuple(flipped)), [t])
    if not is_writeable:
        array.flags.writeable = False
    return array


# -- arrays that lie in memory otherwise than in a file ----------------------------


class Lie(NamedTuple):
    """How an array lies over its tensor: backwards, or as bytes of a dtype of torch."""

    flipped: tuple[int, ...]
    dtype: torch.dtype | None

    def in_file(self, t: Tensor) -> Tensor:
        """Return the tensor that a file has of the array over a tensor."""
        dense = self._flipped(t)
        if self.dtype is None:
            return dense
        if not dense.numel():  # numpy gives it steps that torch views nothing by
            return dense.new_empty(dense.shape[:-1], dtype=self.dtype)
        return dense.view(self.dtype)[..., 0]

    def in_memory(self, t: Tensor) -> Tensor:
        """Return the tensor that the array lies over so, with the data of a file."""
        return self._flipped(
            t if self.dtype is None else t[..., None].view(torch.uint8)
        )

    def _flipped(self, t: Tensor) -> Tensor:
        """Return a dense copy: of numpy, for torch flips not all of its dtypes."""
        import numpy as np

        return torch.from_numpy(np.flip(t.numpy(), self.flipped).copy())


def lie_of(kind: Json) -> Lie | None:
    """Return how an array lies in memory, None for leaves that lie as in a file."""
    name, flipped, _ = kind["ndarray"] if kind and "ndarray" in kind else (None, (), 0)
    dtype = None if name is None else _known(name)
    return Lie(tuple(flipped), dtype) if flipped or dtype else None


def kind_in_file(kind: Json) -> Json:
    """Return the kind of a leaf that lies as a file has it."""
    lie = lie_of(kind)
    if lie is None:
        return kind
    name, _, is_writeable = kind["ndarray"]
    return {"ndarray": [name if lie.dtype is None else None, [], is_writeable]}


def as_in_file(leaf: Any) -> Leaf:
    """Return a leaf that lies as a file has it: an array may have to be copied."""
    if f"{type(leaf).__module__}.{type(leaf).__name__}" != "numpy.ndarray":
        return leaf
    from sdtree.kinds.array import KNOWN

    form = handler_of(leaf).flatten(leaf)[1]
    return leaf.copy() if form.flipped or form.dtype in KNOWN else leaf


def _known(name: str) -> torch.dtype | None:
    """Return the dtype of torch and of the format for one of numpy, if there is one."""
    from sdtree.kinds.array import KNOWN

    found = KNOWN.get(plain_dtype(name))
    return found if found in DTYPES else None


_KINDS = {
    "torch.Tensor": Kind("Tensor", _misfit_of_tensor, _tensor_marks, _tensor),
    "torch.nn.parameter.Parameter": Kind(
        "Parameter", _misfit_of_tensor, _parameter_marks, _parameter
    ),
    "numpy.ndarray": Kind("ndarray", _misfit_of_array, _array_marks, _array),
}
_NAMED = {kind.name: kind for kind in _KINDS.values()}
