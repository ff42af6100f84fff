"""Trees whose bools have other bytes than 0 and 1: what reads as True is kept as it is.

torch's copies make 1 of any byte but 0, and a view of the bytes tells them apart.
"""

import oracle
import torch

from sdtree.testing import trees


def with_odd_bools(tree):
    """Return a tree, after any True in it was given another byte."""
    for _, x in oracle.items(tree):
        for t in oracle.data_of(x):
            if isinstance(t, torch.Tensor) and t.dtype is torch.bool:
                storage = t.untyped_storage()
                torch.empty(0, dtype=torch.uint8).set_(storage).mul_(171)
    return tree


def odd_trees(*args, **options):
    """Return trees as ``trees`` does, with such bools."""
    return trees(*args, **options).map(with_odd_bools)
