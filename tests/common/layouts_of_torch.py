"""Layouts in which torch lays leaves out, and how ranks come to a call."""

import warnings

import torch.distributed as dist
from beside_torch import LOOKED_AT
from torch.distributed import _functional_collectives as functional

COLUMNS = [((0, k), (8, 1), k) for k in range(4)]
TWO_EACH = [((k, 0), (1, 4), k % 4) for k in range(8)]
UNEVEN = [((0, 0), (1, 4), 0), ((1, 0), (3, 4), 1), ((4, 0), (4, 4), 3)]


def arriving(mine):
    """Return what all ranks give, while it is on its way."""
    older = functional.all_gather_tensor
    given = older if LOOKED_AT else getattr(functional, "all_gather_single", older)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return given(mine, 0, dist.group.WORLD)
