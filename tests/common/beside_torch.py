"""How torch's functions are looked at beside those of sdtree."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

LOOKED_AT = torch.__version__.startswith("2.13.")


def shows(claim: object) -> None:
    """Assert what torch does, where it is the torch that was looked at."""
    assert claim or not LOOKED_AT


@pytest.fixture
def mesh():
    """Rank 0 of two, over a group that moves nothing."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()
