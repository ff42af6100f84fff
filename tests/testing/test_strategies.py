"""Strategies draw what they are asked for, and of that the odd ones, too."""

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdtree.testing import tensors
from sdtree.testing.strategies import DTYPES, VIEWS, dense


@given(st.data(), st.sets(st.sampled_from(DTYPES), min_size=1))
def test_tensors_have_one_of_the_dtypes_that_are_given(data, dtypes):
    """However they lie, and whatever marks they have."""
    assert data.draw(tensors(dtypes=sorted(dtypes, key=str))).dtype in dtypes


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_keeps_the_dtype(view, dtype):
    assert view(dense((2, 3), dtype, seed=0)).dtype == dtype


@pytest.mark.parametrize(
    "is_odd",
    [
        lambda t: t.is_neg(),
        lambda t: t.numel() and not t.is_contiguous() and t.stride(-1) == 7,
        lambda t: 0 in t.stride() and t.numel(),
    ],
    ids=["negated", "far apart", "expanded"],
)
def test_odd_tensors_are_drawn_of_one_dtype_as_well(is_odd):
    found = hypothesis.find(tensors(dtypes=(torch.float32,)), is_odd)
    assert found.dtype == torch.float32
