"""A strategy for views of one storage, of every sort there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from torch import Tensor

from sdtree.testing.strategies import dense

POOL_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.int32, torch.uint8)


@st.composite
def views(
    draw: DrawFn, *, dtypes: Sequence[torch.dtype] = POOL_DTYPES, max_views: int = 5
) -> dict[str, Tensor]:
    """Return tensors of one storage by name: the same, nested, crossing and apart.

    Chunks of every dimension, transposed, expanded, with gaps, of any strides and of
    several dtypes, and exact aliases.

    >>> import hypothesis
    >>> found = hypothesis.find(views(), lambda tree: sd.ties(tree))
    >>> sd.ties(found)
    [[('view0',), ('view1',)]]
    """
    pool = dense((32,), torch.float64, draw(st.integers(0, 9)))
    found: dict[str, Tensor] = {}
    for i in range(draw(st.integers(1, max_views))):
        like = draw(st.sampled_from([None, None, None, *found]))
        flat = pool.view(draw(st.sampled_from(dtypes)))
        fresh = draw(_grids() | _parts()) if like is None else torch.Tensor.detach
        found[f"view{i}"] = fresh(flat if like is None else found[like])
    return found


@st.composite
def _grids(draw: DrawFn) -> Callable[[Tensor], Tensor]:
    """Return makers of views with any strides, which may lie on each other."""
    size = draw(st.lists(st.integers(1, 3), max_size=3))
    strides = st.lists(st.integers(0, 4), min_size=len(size), max_size=len(size))
    stride, offset = draw(strides), draw(st.integers(0, 7))
    return lambda flat: flat.as_strided(size, stride, offset)


@st.composite
def _parts(draw: DrawFn) -> Callable[[Tensor], Tensor]:
    """Return makers of the views that programs make: chunks, rows, transposes."""
    shape = draw(st.sampled_from([(24,), (4, 6), (6, 4), (2, 3, 4), (4, 3, 2)]))
    makers = draw(st.lists(st.sampled_from(STEPS), max_size=3))
    dim, place = draw(st.integers(0, 2)), draw(st.integers(0, 2))

    def make(flat: Tensor) -> Tensor:
        t = flat[:24].view(shape)
        for step in makers if t.dim() else ():
            t = step(t, dim % t.dim(), place) if t.dim() else t
        return t

    return make


def _chunk(t: Tensor, dim: int, place: int) -> Tensor:
    chunks = t.chunk(3, dim)
    return chunks[place % len(chunks)]


def _row(t: Tensor, dim: int, place: int) -> Tensor:
    return t.select(dim, place % t.shape[dim]) if t.shape[dim] else t


def _pairs(t: Tensor, dim: int, place: int) -> Tensor:
    size = t.shape[dim]
    if size % 2 or not size:
        return t
    return t.view(*t.shape[:dim], size // 2, 2, *t.shape[dim + 1 :])


STEPS: tuple[Callable[[Tensor, int, int], Tensor], ...] = (
    *(_chunk, _chunk, _row, _pairs),
    lambda t, dim, _: t.transpose(0, dim),
    lambda t, dim, place: t.narrow(dim, 0, t.shape[dim] - place % (t.shape[dim] or 1)),
    lambda t, dim, _: t.unsqueeze(dim).expand(*t.shape[:dim], 2, *t.shape[dim:]),
    lambda t, dim, place: t[(slice(None),) * dim + (slice(place, None, 2),)],
)
