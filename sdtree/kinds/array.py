"""numpy arrays and records, over tensors that share their memory, and numpy scalars."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, UntypedStorage

from sdtree.errors import UnknownLeaf
from sdtree.kinds import plain
from sdtree.kinds.elements import Array, Part, gap_between_parts, told_alone
from sdtree.kinds.handler import Handler, add_handler
from sdtree.tensors.bits import NO_NUMBERS, Gap, Tolerance
from sdtree.tensors.storage import storage_over
from sdtree.typing import Aux, Dtype

KNOWN = {
    np.dtype(name): getattr(torch, name)
    for name in (
        *("bool", "int8", "int16", "int32", "int64"),
        *("uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
    )
}
"""The dtypes of numpy that torch has."""

OF_OTHERS: Final = 2
"""What numpy says of a dtype that another package brings, as bfloat16 of ml_dtypes."""


@dataclass(frozen=True, slots=True)
class Form:
    """How an array differs from the tensor over its memory; marks do not compare.

    ``dtype`` is set where torch has no such type, or could not lay it out like that,
    and the tensor holds bytes; ``flipped`` are the axes that run backwards, which
    tensors cannot. ``inner`` is how the attributes came apart that are arrays in their
    turn. ``fixed`` is where the memory begins that is not to be written, 0 if it may
    be: what is made over other memory is free.
    """

    dtype: np.dtype[Any] | None = None
    flipped: tuple[int, ...] = ()
    cls: type[Array] = np.ndarray
    inner: tuple[tuple[str, Form], ...] = ()
    fixed: int = field(default=0, compare=False)
    attributes: Mapping[str, Any] = field(default_factory=dict, compare=False)


def flatten(x: Array) -> tuple[Sequence[Tensor], Form]:
    """Return the tensor over the memory of an array, and its attributes' tensors."""
    if x.dtype.hasobject:
        raise UnknownLeaf(
            "a numpy array of Python objects does not come apart; give it a dtype, or "
            "make it a list with .tolist()"
        )
    bare = np.ndarray.view(x, np.ndarray)
    t, dtype = _tensor(bare)
    arrays, attributes = _attributes(x)
    inner = {name: flatten(array) for name, array in arrays.items()}
    form = Form(
        dtype,
        _backwards(bare),
        type(x),
        tuple((name, form) for name, (_, form) in inner.items()),
        0 if bare.flags.writeable else t.untyped_storage().data_ptr(),
        attributes,
    )
    return [t, *(t for ts, _ in inner.values() for t in ts)], form


def unflatten(aux: Form, ts: Sequence[Tensor]) -> Array:
    """Return the array over the memory of a tensor."""
    return _join(aux, iter(ts))


def _join(form: Form, ts: Any) -> Array:
    t = next(ts)
    array = _forward(t, form.dtype)
    if form.flipped:
        steps = [-1 if k in form.flipped else 1 for k in range(array.ndim)]
        array = array[(*(slice(None, None, step) for step in steps),)]
    if form.fixed and t.untyped_storage().data_ptr() == form.fixed:
        array.flags.writeable = False
    if form.cls is not np.ndarray:
        array = array.view(form.cls)
        inner = {name: _join(part, ts) for name, part in form.inner}
        if beside := {**form.attributes, **inner}:
            vars(array).update(beside)
    return array


def _forward(t: Tensor, dtype: np.dtype[Any] | None) -> Array:
    """Return the array over a tensor, of a dtype if the tensor holds its bytes."""
    if t.device.type != "cpu" or t.dtype not in KNOWN.values():
        raise UnknownLeaf(
            f"numpy has no array for {t.dtype} on {t.device}; make tensors of arrays "
            "before, by sd.where(numpy.ndarray, sd.map(torch.from_numpy))"
        )
    if dtype is None:
        return t.numpy()
    if not dtype.itemsize:
        return np.empty(tuple(t.shape[:-1]), dtype)
    return t.numpy().view(dtype)[..., 0]


def _backwards(x: Array) -> tuple[int, ...]:
    """Return the axes along which the elements lie backwards."""
    axes = enumerate(zip(x.shape, x.strides, strict=True))
    return tuple(k for k, (n, step) in axes if n > 1 and step < 0) if x.size else ()


def _attributes(x: Array) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return what an array of a subclass has beside its data: arrays, and the rest.

    What a memmap has tells of its file, and a copy is in none. The fill value of a
    masked array is an array once it was asked for, and no data for that.
    """
    if type(x) is np.ndarray or isinstance(x, np.memmap):
        return {}, {}
    every = getattr(x, "__dict__", {})
    names = sorted(every.keys() - {"_fill_value"})
    arrays = {name: every[name] for name in names if _is_array(every[name])}
    return arrays, {name: v for name, v in every.items() if name not in arrays}


def _is_array(x: object) -> bool:
    return isinstance(x, np.ndarray)


# -- the memory of an array --------------------------------------------------------


class Memory(NamedTuple):
    """The storage that an array lies in, and where it begins."""

    storage: UntypedStorage
    start: int


def _tensor(x: Array) -> tuple[Tensor, np.dtype[Any] | None]:
    """Return the tensor over the memory of an array, and its dtype if it holds bytes.

    Views of one array lie in one storage, as views of one tensor do.
    """
    low, high = _bounds(x)
    memory = _memory(x, low, high)
    offset, steps = low - memory.start, [abs(step) for step in x.strides]
    known, size = KNOWN.get(x.dtype), x.itemsize
    if known is None or _is_over_bytes(x) or _is_odd(x, (low, offset, *steps)):
        empty = torch.empty(0, dtype=torch.uint8, device="cpu")
        place = offset, (*x.shape, size), (*steps, 1)
        return empty.set_(memory.storage, *place), x.dtype
    empty = torch.empty(0, dtype=known, device="cpu")
    strides = [step // size for step in steps]
    return empty.set_(memory.storage, offset // size, x.shape, strides), None


def _is_odd(x: Array, steps: Sequence[int]) -> bool:
    """Return whether an array lies where no tensor of its dtype can, as some fields.

    To numpy a complex128 is aligned at half its size, where torch's kernels may crash.
    """
    return any(step % x.itemsize for step in steps if x.size)


def _is_over_bytes(x: Array) -> bool:
    """Return whether an array was made over a tensor of its bytes.

    It is held as they are again, even if it could be laid out otherwise by now: else a
    copy and its source would come apart in different ways.
    """
    base: Any = x.base
    return (
        x.itemsize > 1
        and isinstance(base, np.ndarray)
        and isinstance(base.base, Tensor)
        and base.base.shape == (*x.shape, x.itemsize)
    )


def _memory(x: Array, low: int, high: int) -> Memory:
    """Return the memory of the array or tensor that an array is a view of."""
    owner, start, stop, base = x, low, high, x.base
    while base is not None and not isinstance(base, Tensor):
        if isinstance(base, np.ndarray):
            first, last = _bounds(base)
            if first <= low and high <= last:
                owner, start, stop = base, first, last
        base = getattr(base, "base", None)
    if base is not None:
        storage = base.untyped_storage()
        first = storage.data_ptr()
        if first <= low and high <= first + storage.nbytes():
            return Memory(storage, first)
    return Memory(storage_over(start, stop - start, owner), start)


def _bounds(x: Array) -> tuple[int, int]:
    """Return the addresses between which an array lies, as [low, high)."""
    start: int = x.__array_interface__["data"][0]
    if x.flags.c_contiguous or not x.nbytes:
        return start, start + x.nbytes
    ends = [(n - 1) * step for n, step in zip(x.shape, x.strides, strict=True)]
    low = start + sum(end for end in ends if end < 0)
    return low, start + sum(end for end in ends if end > 0) + x.itemsize


# -- what is asked of arrays beside ------------------------------------------------


def _compared(x: Array) -> Array:
    """Return the array laid out as most are: the data alone is to be compared."""
    form = flatten(x)[1]
    is_plain = form.dtype is None or form.dtype not in KNOWN
    is_laid_out = is_plain and not form.flipped
    return told_alone(x if is_laid_out else np.array(x, order="C", subok=True))


def _gap(x: Array, y: Array, tolerance: Tolerance | None) -> Gap:
    return gap_between_parts([*_parts(x)], [*_parts(y)], tolerance)


def _parts(x: Array) -> Iterator[Part]:
    """Yield an array and those among its attributes, each with its tensor."""
    yield x, flatten(x)[0][0]
    for array in _attributes(x)[0].values():
        yield from _parts(array)


def _dtype(x: Array) -> Dtype:
    """Return the dtype of torch, or that of numpy if torch has none such."""
    return KNOWN.get(x.dtype, x.dtype)


def _is_floating(dtype: np.dtype[Any]) -> bool:
    is_of_others = dtype.isbuiltin == OF_OTHERS
    return dtype.kind == "f" or (is_of_others and not np.can_cast(dtype, np.int64))


def _cast(x: Array, dtype: torch.dtype) -> None:
    """Leave arrays to their tensors; raise where these hold bytes of numbers."""
    if _is_floating(x.dtype) and flatten(x)[1].dtype is not None:
        raise UnknownLeaf(
            f"a numpy array of dtype {str(x.dtype)!r} that is laid out as no tensor is "
            "not cast; convert it before with sd.map(lambda x: x.astype('f4'))"
        )


def _unfit(x: Array) -> str:
    return "" if x.flags.writeable else "the array in the buffer is read-only"


# -- records and scalars -----------------------------------------------------------


def _flatten_record(x: Any) -> tuple[Sequence[Tensor], Aux]:
    """Return the tensor over the bytes of a record; a void without fields has none."""
    return flatten(np.asarray(x)) if x.dtype.names else ((), x)


def _compared_record(x: Any) -> Any:
    return _compared(np.asarray(x))[()] if x.dtype.names else x


def _unflatten_record(aux: Aux, ts: Sequence[Tensor]) -> Any:
    return unflatten(aux, ts)[()] if ts else aux


def _gap_of_scalars(x: Any, y: Any, tolerance: Tolerance | None) -> Gap:
    """Return how far two scalars are apart that are numbers, integers exactly."""
    if x.dtype != y.dtype or x.dtype.kind not in "iufc":
        return NO_NUMBERS
    return _gap(np.asarray(x), np.asarray(y), tolerance)._replace(differing=1)


add_handler(
    Handler(
        np.ndarray,
        flatten,
        unflatten,
        compared=_compared,
        gap=_gap,
        unfit=_unfit,
        dtype=_dtype,
        cast=_cast,
    )
)
add_handler(
    Handler(
        np.void,
        _flatten_record,
        _unflatten_record,
        compared=_compared_record,
        gap=lambda x, y, far: _gap(np.asarray(x), np.asarray(y), far),
        dtype=lambda x: x.dtype if x.dtype.names else None,
    )
)
plain.add_plain(np.generic, _gap_of_scalars)
plain.add_plain(np.dtype)
