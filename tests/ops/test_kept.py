"""Nothing of a tree is alive when the last who used it has let go of it.

Not even until Python looks for cycles, as it seldom does among few objects: a model
that waits for that takes its memory twice. So here it never looks.
"""

import weakref
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from operations import OPERATIONS
from ranks import mesh
from shards import together
from torch.distributed.tensor import Shard, distribute_tensor

import sdtree as sd
from sdtree.tree.collecting import all_kept

TURN = sd.rule("a.w [x y]", "a.w [y x]")
TURNED = sd.rule("w [x y]", "w [y x]")


def tree():
    shared = torch.ones(8, 4)
    return {
        "a": {"w": shared[:4], "v": shared[4:].t()},
        "p": torch.nn.Parameter(torch.ones(2)),
        "l": [torch.ones(1)],
        "step": 3,
    }


def failing(t):
    raise ZeroDivisionError


def staged(t):
    with sd.Stager() as stager:
        stager.stage(t).wait()


def saved(suffix, **options):
    def run(t, folder):
        sd.save(t, folder / f"a{suffix}", **options)
        sd.load(folder / f"a{suffix}", like=t)

    return run


def converted(a, b):
    def run(t, folder):
        sd.save(t, folder / f"a{a}")
        sd.convert_file(folder / f"a{a}", folder / f"b{b}", sd.cast(dtype=torch.half))

    return run


LOCAL = {
    **{name: f for name, f in OPERATIONS.items() if f.__code__.co_argcount == 1},
    "map": lambda t: sd.map(torch.sin, sd.select(t, torch.Tensor)),
    "rename": lambda t: sd.rename(t, {"a.w": "b"}),
    "partition": lambda t: sd.combine(*sd.partition(t, "a.w")),
    "where": lambda t: sd.where("a.*", sd.copy() | sd.cast(dtype=torch.half))(t),
    "where by a function": lambda t: sd.where(lambda path, leaf: True, sd.copy())(t),
    "whole": lambda t: (sd.copy() | sd.whole(lambda x: x) | sd.copy())(t),
    "first of a stream": lambda t: next(iter((sd.copy() | sd.drop("step")).stream(t))),
    "select after": lambda t: (sd.copy() | sd.select(torch.nn.Parameter))(t),
    "convert": lambda t: sd.convert(t, TURN, rest="keep"),
    "html": lambda t: (
        sd.show(t)._repr_html_(),
        sd.explain(sd.copy(), t)._repr_html_(),
    ),
    "stage": staged,
    "an error of map": lambda t: sd.map(failing, t),
    "an error in where": lambda t: sd.where("a.*", sd.map(failing))(t),
    "an error in a stream": lambda t: list((sd.copy() | sd.map(failing)).stream(t)),
    "no match": lambda t: (sd.copy() | sd.select("b"))(t),
    "no match in where": lambda t: sd.where("b", sd.copy())(t),
    "no buffers": lambda t: sd.copy(t, into={}),
    "no rule": lambda t: sd.convert(t, sd.rule("b", "c")),
}

FILES = {
    "a .pt file": saved(".pt"),
    "a .safetensors file": saved(".safetensors"),
    "a directory of DCP": saved(""),
    "a folder of shards": saved("", shard_bytes=64),
    "no such format": saved(".xyz"),
    ".pt to .safetensors": converted(".pt", ".safetensors"),
    ".safetensors to DCP": converted(".safetensors", ""),
    "DCP to .pt": converted("", ".pt"),
}


def kept(run, make=tree):
    """Return the names of tensors that are alive when an operation has been run.

    The second time: what is made once, and kept for good, holds no leaf.
    """
    with all_kept():
        for _ in range(2):
            found = make()
            tensors = {
                name: weakref.ref(x)
                for name, x in zip(sd.names(found), sd.leaves(found), strict=True)
                if isinstance(x, torch.Tensor)
            }
            with suppress(Exception):
                run(found)
            del found
        return [name for name, tensor in tensors.items() if tensor() is not None]


@pytest.mark.parametrize("name", LOCAL)
def test_no_operation_keeps_a_leaf(name):
    assert not kept(LOCAL[name])


@pytest.mark.parametrize("name", FILES)
def test_no_file_keeps_a_leaf(name, tmp_path):
    count = iter(range(2))

    def run(t):
        folder = tmp_path / str(next(count))
        folder.mkdir()
        FILES[name](t, folder)

    assert not kept(run)


def test_what_keeps_a_leaf_is_seen():
    held = []
    assert kept(held.append) == ["a.w", "a.v", "p", "l.0"]
    assert kept(lambda t: (cycle := [t]).append(cycle)) == ["a.w", "a.v", "p", "l.0"]


# -- between ranks -----------------------------------------------------------------


def sharded():
    over = mesh((2,))
    return {
        "w": distribute_tensor(torch.ones(4, 4), over, [Shard(0)]),
        "v": distribute_tensor(torch.ones(4, 4), over, [Shard(1)]),
        "b": torch.ones(3),
    }


def through_files(t):
    with TemporaryDirectory() as own:
        folder = [own]
        torch.distributed.broadcast_object_list(folder, 0)
        sd.save(t, Path(folder[0]) / "dcp")
        sd.load(Path(folder[0]) / "dcp", like=t)
        torch.distributed.barrier()


BETWEEN = {
    "gather": lambda t: sd.gather(t),
    "gather to one": lambda t: (sd.gather(ranks=0) | sd.copy())(t),
    "gather in a stream": lambda t: list(sd.gather().stream(t)),
    "distribute": lambda t: sd.distribute(sd.gather(t), like=t),
    "broadcast": lambda t: sd.broadcast(sd.gather(t), into=t),
    "redistribute": lambda t: sd.redistribute(t, like=sd.spec(t)),
    "equal": lambda t: sd.equal(t, sd.copy(t)),
    "convert into views": lambda t: sd.convert(t, TURNED, rest="keep"),
    "convert": lambda t: sd.convert(t, TURNED, like=t, rest="keep"),
    "no such leaf": lambda t: sd.convert(t, TURNED, like={"w": t["w"]}),
    "a directory of DCP": through_files,
    "no match": lambda t: (sd.gather() | sd.select("x"))(t),
    "another tree": lambda t: sd.broadcast({"w": 1}, into=t),
}


def test_no_exchange_keeps_a_leaf():
    for found in together(each_kept, size=2):
        assert not any(found.values()), found


def each_kept():
    return {name: kept(run, sharded) for name, run in BETWEEN.items()}
