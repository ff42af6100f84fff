"""Who takes part, as one rank knows of it by itself."""

from types import SimpleNamespace

import torch
import torch.distributed as dist
from shards import fake

from sdtree.exchange.gather import Gathering
from sdtree.wire.collectives import RankGroup


def on(kind):
    return SimpleNamespace(device=torch.device(kind))


def test_a_leaf_travels_from_where_it_lies_if_its_group_takes_it_there():
    """Else from the first kind of device, as do those that lie nowhere."""
    both = RankGroup(None, (0, 1), 0, kinds=("cpu", "cuda"))
    leaves = [on("cuda"), on("cpu"), on("meta"), 3]
    assert both.wires(leaves) == ["cuda", "cpu", "cpu", "cpu"]
    assert RankGroup(None, (0, 1), 0).wires(leaves) == ["cpu"] * 4


def test_a_leaf_of_a_device_that_is_not_here_is_made_on_the_cpu(monkeypatch):
    """It comes from a set of other ranks, which may have accelerators and this none."""
    plan = SimpleNamespace(goals=SimpleNamespace(strange={0: SimpleNamespace()}))
    for home in ("cpu", "cuda", "meta"):
        plan.goals.strange[0].home = home
        for own in (None, torch.device("cuda"), torch.device("xpu")):
            accelerator = torch.accelerator
            monkeypatch.setattr(accelerator, "current_accelerator", lambda own=own: own)
            monkeypatch.setattr(accelerator, "is_available", lambda: False)
            assert Gathering._device(plan, 0) == torch.device("cpu")


def test_a_group_that_some_ranks_make_counts_for_none(monkeypatch):
    """From torch 2.14 on it is counted where it is made; others make the next, too."""
    made = dist.new_group

    def counted(*args, **options):
        dist.distributed_c10d._world.group_count += 1
        return made(*args, **options)

    monkeypatch.setattr(dist, "new_group", counted)
    with fake(4) as group:
        before = dist.distributed_c10d._world.group_count
        some = RankGroup.of(group).of_ranks((0, 2))
        assert some.ranks == (0, 2)
        assert dist.get_process_group_ranks(some.group) == [0, 2]
        assert dist.distributed_c10d._world.group_count == before
