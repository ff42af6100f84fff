"""Strategies for keys, paths, plain values and tensors."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from sdtree.testing.ndarrays import arrays
from sdtree.testing.samples import Color
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
    """Return tensors of every dtype, shape and stride, with random bits.

    0-dim, zero-size, transposed, sliced, expanded, conjugated, negated; Parameters and
    tensors that require grad; meta tensors unless ``meta`` is False.

    >>> import hypothesis
    >>> hypothesis.find(tensors(), lambda t: t.is_complex() and t.is_conj()).is_conj()
    True
    """
    shape = draw(st.lists(st.integers(0, max_side), max_size=max_dims))
    base = dense(shape, draw(st.sampled_from(dtypes)), draw(st.integers(0, 2**16)))
    changed = draw(st.sampled_from(VIEWS))(base)
    if meta and draw(st.integers(0, 9)) == 0:
        changed = changed.to("meta")
    return draw(st.sampled_from(MARKS))(changed)


def _every_second(t: Tensor) -> Tensor:
    return t[..., ::2] if t.dim() else t


def _expanded(t: Tensor) -> Tensor:
    return t.unsqueeze(0).expand(3, *t.shape)


def _far_apart(t: Tensor) -> Tensor:
    """Return a view that fills little of its span."""
    wide = torch.zeros(*t.shape, 7, dtype=torch.uint8).view(torch.uint8)
    return t if t.dim() == 0 else wide.select(-1, 3)


def _conjugated(t: Tensor) -> Tensor:
    return t.conj() if t.is_complex() else t


def _imaginary(t: Tensor) -> Tensor:
    """Return the imaginary part of a conjugate: a tensor whose negative bit is set."""
    return t.conj().imag if t.dtype in (torch.complex64, torch.complex128) else t


VIEWS: tuple[Callable[[Tensor], Tensor], ...] = (
    *(lambda t: t, lambda t: t, lambda t: t.mT if t.dim() > 1 else t),
    *(_every_second, _expanded, _far_apart, _conjugated, _imaginary),
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


@st.composite
def sparse_tensors(draw: DrawFn) -> Tensor:
    """Return sparse tensors, coordinates or compressed rows.

    >>> import hypothesis
    >>> hypothesis.find(sparse_tensors(), lambda t: t.layout is torch.sparse_csr).layout
    torch.sparse_csr
    """
    side = draw(st.integers(1, 4))
    values = dense((side, side), torch.float32, draw(st.integers(0, 9)))
    kept = torch.where(values.isfinite() & (values > 0), values, torch.zeros(()))
    return kept.to_sparse() if draw(st.booleans()) else kept.to_sparse_csr()


def leaves() -> SearchStrategy[Leaf]:
    """Return leaves of every kind that is built in.

    >>> import hypothesis
    >>> hypothesis.find(leaves(), lambda x: x is None)
    """
    return st.one_of(tensors(), tensors(), plain_values(), arrays(), sparse_tensors())
