"""The law of leaves, for every kind that is built in."""

import numpy as np
import torch
from hypothesis import given

from sdtree.testing import (
    arrays,
    check_leaf,
    check_one_leaf,
    leaves,
    plain_values,
    sparse_tensors,
    tensors,
)


@given(leaves())
def test_leaf(leaf):
    """unflatten(aux, ts) = x with (ts, aux) = flatten(x), same type, no copy."""
    check_one_leaf(leaf)


def test_check_leaf_serves_every_kind():
    """check_leaf accepts the kinds that are built in."""
    check_leaf(torch.Tensor, tensors())
    check_leaf(torch.Tensor, sparse_tensors())
    check_leaf(object, plain_values())
    check_leaf((np.ndarray, np.generic), arrays())
