"""How torch's functions are looked at beside those of sdtree."""

import pytest
import torch
from shards import fake
from torch.distributed.device_mesh import init_device_mesh

LOOKED_AT = torch.__version__.startswith("2.13.")


def shows(claim: object) -> None:
    """Assert what torch does, where it is the torch that was looked at."""
    assert claim or not LOOKED_AT


@pytest.fixture
def mesh():
    """Rank 0 of two, over a group that moves nothing."""
    with fake(2):
        yield init_device_mesh("cpu", (2,))
