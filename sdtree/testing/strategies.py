"""Strategies for keys, paths, plain values and tensors."""

from __future__ import annotations

import datetime
import io
import math
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import PurePosixPath

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from sdtree.testing.ndarrays import arrays
from sdtree.testing.samples import Both, Color, Named
from sdtree.testing.sharding import shards_of
from sdtree.typing import Key, Leaf, Path


@cache
def keys(*, portable: bool = True) -> SearchStrategy[Key]:
    """Return keys of mappings: str (dotted, empty), int, bool, None, bytes, tuples.

    Without ``portable`` also those that JSON cannot say.

    >>> import hypothesis
    >>> hypothesis.find(keys(), lambda key: isinstance(key, int) and key > 2)
    3
    """
    words = st.sampled_from(["w", "0", "1", "a.b", "", "step", "é", "module"])
    portable_keys: list[SearchStrategy[Key]] = [
        words,
        st.text(st.characters(codec="utf-8"), max_size=4),
        st.integers(-1, 3),
        st.booleans(),
        st.none(),
        st.floats(allow_nan=False),
        st.binary(max_size=2),
        st.tuples(st.integers(0, 2), words),
    ]
    others: list[SearchStrategy[Key]] = [
        st.sampled_from(Color),
        st.frozensets(st.integers(0, 2)),
    ]
    return st.one_of(*portable_keys, *(others if not portable else ()))


def paths() -> SearchStrategy[Path]:
    """Return paths: tuples of keys.

    >>> import hypothesis
    >>> len(hypothesis.find(paths(), lambda path: len(path) > 1))
    2
    """
    return st.lists(keys(), max_size=4).map(tuple)


def plain_values() -> SearchStrategy[Leaf]:
    """Return plain Python values as leaves, bits of floats and all.

    >>> import hypothesis
    >>> hypothesis.find(plain_values(), lambda x: isinstance(x, float) and x != x)
    nan
    """
    return st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.complex_numbers(),
        st.text(max_size=5),
        st.binary(max_size=5),
        st.sampled_from([torch.float32, torch.int8, torch.Size([2, 3])]),
        st.just(torch.device("cpu")),
        st.builds(_buffer, st.binary(max_size=5), st.integers(0, 5)),
    )


def odd_values() -> SearchStrategy[Leaf]:
    """Return plain values that most files do not hold: sets, moments, paths.

    >>> import hypothesis
    >>> hypothesis.find(odd_values(), lambda x: isinstance(x, set) and x)
    {0}
    """
    offset = datetime.timezone(datetime.timedelta(hours=2))
    moment = datetime.datetime(2024, 2, 29, 12)
    elements = st.integers(0, 2) | st.text(max_size=1) | st.floats()
    return st.one_of(
        st.sets(elements, max_size=3),
        st.frozensets(st.tuples(elements), max_size=3),
        st.binary(max_size=5).map(bytearray),
        st.sampled_from([moment, moment.replace(tzinfo=offset), moment.date()]),
        st.sampled_from([moment.time(), datetime.timedelta(1, 2, 3), offset]),
        st.text("ab/.", max_size=4).map(PurePosixPath),
    )


def _buffer(data: bytes, position: int) -> io.BytesIO:
    buffer = io.BytesIO(data)
    buffer.seek(position)
    return buffer


# -- tensors -----------------------------------------------------------------------

FLOATING = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu),
)
INTEGRAL = (
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
)
COMPLEX = (torch.complex32, torch.complex64, torch.complex128)
DTYPES = (*FLOATING, *INTEGRAL, *COMPLEX)


def dense(shape: Sequence[int], dtype: torch.dtype, seed: int) -> Tensor:
    """Return a contiguous tensor of that dtype with random bits.

    >>> dense((2, 3), torch.bfloat16, seed=0).shape
    torch.Size([2, 3])
    """
    count = math.prod(shape) * dtype.itemsize
    generator = torch.Generator().manual_seed(seed)
    if dtype is torch.bool:
        return torch.randint(0, 2, tuple(shape), generator=generator).bool()
    raw = torch.randint(0, 256, (count,), generator=generator, dtype=torch.uint8)
    return raw.view(dtype).view(tuple(shape))


@st.composite
def tensors(
    draw: DrawFn,
    *,
    dtypes: Sequence[torch.dtype] = DTYPES,
    max_dims: int = 3,
    max_side: int = 3,
    meta: bool = True,
) -> Tensor:
    """Return tensors of these dtypes, of every shape and stride, with random bits.

    0-dim, zero-size, transposed, sliced, padded, channels last, conjugated, negated;
    parts of a larger storage; expanded along any dimension, and lying anyhow, so that
    elements repeat with gaps between or overlap; Parameters, tensors of inference
    mode and such as require grad; meta tensors unless ``meta`` is False.

    >>> import hypothesis
    >>> hypothesis.find(tensors(), lambda t: t.is_complex() and t.is_conj()).is_conj()
    True
    """
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(st.lists(st.integers(0, max_side), max_size=max_dims))
    base = dense(shape, dtype, draw(st.integers(0, 2**16)))
    if draw(st.integers(0, 5)) == 0:
        changed = draw(_lying_anyhow(dense([20], dtype, 0), shape))
    else:
        changed = draw(st.sampled_from(VIEWS))(base)
    if meta and draw(st.integers(0, 9)) == 0:
        changed = changed.to("meta")
    mark = draw(st.sampled_from(MARKS))
    if draw(st.integers(0, 9)) == 0:
        return _in_inference(mark, changed)
    return mark(changed)


@st.composite
def _lying_anyhow(draw: DrawFn, base: Tensor, size: Sequence[int]) -> Tensor:
    """Return a view of any strides and offset that the storage has room for."""
    steps = [draw(st.integers(0, 4)) for _ in size]
    reach = sum((n - 1) * step for n, step in zip(size, steps, strict=True))
    room = len(base) - 1 - max(reach, 0)
    if room < 0:
        return base[:0]
    return base.as_strided(size, steps, draw(st.integers(0, room)))


def _every_second(t: Tensor) -> Tensor:
    return t[..., ::2] if t.dim() else t


def _expanded(t: Tensor) -> Tensor:
    return t.unsqueeze(0).expand(3, *t.shape)


def _expanded_inside(t: Tensor) -> Tensor:
    return t.unsqueeze(1).expand(-1, 2, *t.shape[1:]) if t.dim() else t


def _far_apart(t: Tensor) -> Tensor:
    """Return it as a view that fills little of its span."""
    return t if t.dim() == 0 else _zeros(t.dtype, *t.shape, 7).select(-1, 3).copy_(t)


def _zeros(dtype: torch.dtype, *shape: int) -> Tensor:
    """Return zeros of any dtype, those that torch does not fill among them."""
    size = math.prod(shape) * dtype.itemsize
    return torch.zeros(size, dtype=torch.uint8).view(dtype).view(shape)


def _padded(t: Tensor) -> Tensor:
    """Return it as rows that have room behind them, in a larger storage."""
    if not t.dim():
        return t
    wide = _zeros(t.dtype, *t.shape[:-1], t.shape[-1] + 3)
    return wide[..., 1:-2].copy_(t)


def _channels_last(t: Tensor) -> Tensor:
    while t.dim() < 4:
        t = t.unsqueeze(0)
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t


def _at_the_end(t: Tensor) -> Tensor:
    """Return it behind other things in a large storage."""
    wide = _zeros(t.dtype, 1000 + t.numel())
    return wide[1000:].view(t.shape).copy_(t)


def _conjugated(t: Tensor) -> Tensor:
    return t.conj() if t.is_complex() else t


def _imaginary(t: Tensor) -> Tensor:
    """Return it as the imaginary part of a conjugate, whose negative bit is set."""
    is_part = t.dtype in (torch.float32, torch.float64)
    return torch.complex(t, -t).conj().imag if is_part else t


VIEWS: tuple[Callable[[Tensor], Tensor], ...] = (
    *(lambda t: t, lambda t: t, lambda t: t.mT if t.dim() > 1 else t),
    *(_every_second, _expanded, _expanded_inside, _far_apart, _padded),
    *(_channels_last, _at_the_end, _conjugated, _imaginary),
)


def _parameter(t: Tensor) -> Tensor:
    return torch.nn.Parameter(t, requires_grad=t.is_floating_point())


def _with_attribute(t: Tensor) -> Tensor:
    t = t.detach()
    t.note = "kept"  # type: ignore[attr-defined]
    return t


def _requiring_grad(t: Tensor) -> Tensor:
    t = t.detach()
    return t.requires_grad_() if t.is_floating_point() or t.is_complex() else t


MARKS: tuple[Callable[[Tensor], Tensor], ...] = (
    *(lambda t: t, lambda t: t, lambda t: t),
    *(_parameter, _requiring_grad, _with_attribute),
)


def _in_inference(mark: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """Return it as a tensor of inference mode, marked there."""
    with torch.inference_mode():
        return mark(t.clone())


@st.composite
def sparse_tensors(draw: DrawFn) -> Tensor:
    """Return sparse tensors: coordinates, and rows or columns, compressed, in blocks.

    With none but zeros, with indices that stand there twice, with dense dimensions.

    >>> import hypothesis
    >>> hypothesis.find(sparse_tensors(), lambda t: t.layout is torch.sparse_bsc).layout
    torch.sparse_bsc
    """
    layout = draw(st.sampled_from(SPARSE))
    dtype = draw(st.sampled_from((torch.float32, torch.bfloat16, torch.int64)))
    count, seed = draw(st.integers(0, 3)), draw(st.integers(0, 9))
    if layout is torch.sparse_coo:
        places = torch.arange(2 * count).view(2, count) * seed % 3
        values = dense([count, *draw(st.sampled_from(([], [2])))], dtype, seed)
        size = (3, 3, *values.shape[1:])
        return torch.sparse_coo_tensor(places, values, size, check_invariants=False)
    rows = torch.zeros(2, 4, dtype=dtype)
    rows.view(-1)[seed % 4 :][:count] = 1
    block = (1, 2) if layout in (torch.sparse_bsr, torch.sparse_bsc) else None
    return rows.to_sparse(layout=layout, blocksize=block)


SPARSE = (
    *(torch.sparse_coo, torch.sparse_coo, torch.sparse_csr),
    *(torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc),
)


@st.composite
def quantized_tensors(draw: DrawFn) -> Tensor:
    """Return quantized tensors: of one scale or one a row, whole or in part.

    >>> import hypothesis
    >>> hypothesis.find(quantized_tensors(), lambda t: t.stride() == (1, 3)).shape
    torch.Size([3, 2])
    """
    how = draw(st.sampled_from("trf"))
    dtypes = (torch.int8, torch.uint8, torch.int32)[: 2 if how == "f" else 3]
    ints = dense([2, 3], draw(st.sampled_from(dtypes)), draw(st.integers(0, 9)))
    scale, zero = draw(st.sampled_from((0.1, 2.0))), draw(st.integers(0, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch is to drop them
        if how == "t":
            whole = torch._make_per_tensor_quantized_tensor(ints, scale, zero)
            return draw(st.sampled_from((lambda t: t, Tensor.t, _every_second)))(whole)
        zeros = torch.tensor([zero, 1]) if how == "r" else torch.tensor([0.1, zero])
        return torch._make_per_channel_quantized_tensor(
            ints, torch.tensor([scale, 0.3]), zeros, 0
        )


def packed_tensors() -> SearchStrategy[Tensor]:
    """Return tensors of dtypes that torch can hold and cannot show or calculate with.

    >>> import hypothesis
    >>> names = packed_tensors().map(lambda t: str(t.dtype))
    >>> hypothesis.find(names, lambda name: name == "torch.uint4")
    'torch.uint4'
    """
    bare = tensors(dtypes=(torch.uint8,), meta=False).map(Tensor.detach)
    return st.builds(Tensor.view, bare, st.sampled_from(PACKED))


_SMALL = "uint1 uint2 uint4 uint7 int2 int4 bits8 bits2x4"
PACKED: tuple[torch.dtype, ...] = (
    *(getattr(torch, name) for name in _SMALL.split()),
    *(torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
)


def subclass_tensors() -> SearchStrategy[Tensor]:
    """Return tensors of subclasses: of one that is but a name, and wrappers of two.

    >>> import hypothesis
    >>> from sdtree.testing import Both
    >>> hypothesis.find(subclass_tensors(), lambda t: type(t) is Both).first.dtype
    torch.float16
    """
    bare = tensors(meta=False).map(Tensor.detach)
    return st.one_of(
        bare.map(lambda t: t.as_subclass(Named)),
        bare.map(lambda t: Both(t, t.clone())),
    )


def leaves() -> SearchStrategy[Leaf]:
    """Return leaves of every kind that is built in.

    >>> import hypothesis
    >>> hypothesis.find(leaves(), lambda x: x is None)
    """
    return st.one_of(
        *(tensors(), tensors(), tensors(), plain_values() | odd_values(), arrays()),
        *(sparse_tensors(), quantized_tensors(), packed_tensors(), subclass_tensors()),
        shards_of(tensors()),
    )
