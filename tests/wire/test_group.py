"""Who takes part, as one rank knows of it by itself."""

from functools import partial
from types import SimpleNamespace
from weakref import ref

import pytest
import torch
import torch.distributed as dist
from shards import fake
from torch.distributed.tensor import DTensor

import sdtree as sd
from sdtree.exchange.gather import Gathering
from sdtree.exchange.leaf_plan import blank_parts
from sdtree.kinds.abstract import Local
from sdtree.layout.layout import Layout, Parts, whole
from sdtree.wire import collectives
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


def test_a_group_of_some_ranks_is_made_once_however_many_there_are():
    """Ranks that made it anew would wait for those that have kept it."""
    with fake(600) as group:
        every = RankGroup.of(group)
        first = every.of_ranks((0, 1)).group
        for other in range(2, 300):
            every.of_ranks((0, other))
        assert every.of_ranks((0, 1)).group is first


def test_a_group_that_is_destroyed_goes_and_those_made_of_it_go_too():
    """A world that is made anew is another one, which has other groups."""
    gone = []
    for _ in range(2):
        with fake(4) as group:
            some = RankGroup.of(group).of_ranks((0, 2)).group
            assert dist.distributed_c10d._world.pg_map[some]
            gone += [ref(group), ref(some)]
        del group, some
        assert not [found for found in gone if found()]


class Taken(Exception):
    """A backend was given tensors on these devices."""


def taken(*given, **_):
    raise Taken({t.device.type for t in given if isinstance(t, torch.Tensor)})


def test_what_ranks_tell_each_other_lies_where_their_group_takes_it(monkeypatch):
    """For each collective, on whoever gives and whoever is given."""
    monkeypatch.setattr(RankGroup, "device", lambda *_: torch.device("meta"))
    for name in ("broadcast", "all_reduce"):
        monkeypatch.setattr(dist, name, taken)
    monkeypatch.setattr(collectives, "_gather", taken)
    group = RankGroup(None, (0, 1), 0)
    words = partial(collectives.gather_words, group, [1, 2])
    data = partial(collectives.gather_bytes, group, b"abc")
    for call in (
        partial(collectives.broadcast_bytes, group, b"abc", 3, 0),
        partial(collectives.broadcast_bytes, group, None, 3, 0),
        partial(collectives.greatest, group, [1]),
        words,
        data,
    ):
        if call is data:
            monkeypatch.setattr(collectives, "gather_words", lambda *_: [[3], [3]])
        with pytest.raises(Taken) as told:
            call()
        assert told.value.args == ({"meta"},)


def test_parts_of_a_whole_are_made_where_those_of_its_shards_lie():
    layouts = (whole((2, 3), (0,)), whole((2,), (0,)))
    layout = Layout((2, 3), {0: ()}, parts=Parts(torch.Tensor, layouts))
    held = [torch.empty(1, 3), torch.empty(1, dtype=torch.int8, device="meta")]
    form = sd.Abstract(DTensor, (2, 3), torch.float32, [*map(Local.of, held)], layout)
    made = blank_parts(form, held)
    assert [t.shape for t in made] == [(2, 3), (2,)]
    assert [t.dtype for t in made] == [torch.float32, torch.int8]
    assert [t.device.type for t in made] == ["cpu", "meta"]
