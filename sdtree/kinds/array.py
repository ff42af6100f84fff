"""numpy arrays, over tensors that share their memory, and numpy scalars."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdtree.errors import UnknownLeaf
from sdtree.kinds import opaque
from sdtree.leaf import register_leaf
from sdtree.typing import Aux

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Form:
    """How an array differs from the tensor that shares its memory.

    ``dtype`` is set where torch has no such type and the tensor holds bytes;
    ``flipped`` are the axes that run backwards, which tensors cannot.
    """

    dtype: np.dtype[Any] | None
    flipped: tuple[int, ...]
    is_writeable: bool = field(compare=False)


def flatten(x: Array) -> tuple[Sequence[Tensor], Aux]:
    """Return the tensor over the memory of an array."""
    if x.dtype.hasobject:
        raise UnknownLeaf("a numpy array of Python objects does not come apart")
    flipped = tuple(axis for axis, step in enumerate(x.strides) if step < 0)
    forward = np.flip(x, flipped)
    form = Form(None if _is_known(x.dtype) else x.dtype, flipped, x.flags.writeable)
    if form.dtype is not None:
        forward = forward[..., None].view(np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the tensor is never written
        return (torch.from_numpy(forward),), form


def unflatten(aux: Aux, ts: Sequence[Tensor]) -> Array:
    """Return the array over the memory of a tensor."""
    array = _array(ts[0])
    if aux.dtype is not None:
        array = array.view(aux.dtype)[..., 0]
    array = np.flip(array, aux.flipped)
    if not aux.is_writeable:
        array.flags.writeable = False
    return array


def _array(t: Tensor) -> Array:
    if t.dtype is torch.bfloat16 or t.is_meta:
        raise TypeError(f"numpy has no array for {t.dtype} on {t.device}")
    return t.numpy()


def _is_known(dtype: np.dtype[Any]) -> bool:
    try:
        torch.from_numpy(np.empty(0, dtype))
    except (TypeError, ValueError):  # a type of its own, or foreign byte order
        return False
    return True


register_leaf(np.ndarray, flatten=flatten, unflatten=unflatten)
opaque.add_plain(np.generic)
