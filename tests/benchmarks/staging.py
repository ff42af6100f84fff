"""The rows of staging: a snapshot taken again, and what it takes to share one."""

import os
from pathlib import Path

import torch
from torch.distributed import _state_dict_utils as incumbent
from torch.distributed.checkpoint._state_dict_stager import StateDictStager

import sdtree as sd
from benchmarks import trees
from benchmarks.race import Figure, Row, Runners, Work
from benchmarks.speed import beside_torch, with_collector

OPEN = Path("/proc/self/fd")


def _staged(stager: sd.Stager, tree: trees.Tree) -> None:
    stager.stage(tree).release()


def _first(tree: trees.Tree) -> trees.Tree:
    with sd.Stager() as stager:
        return stager.stage(tree).wait()


def warm(tiny: bool) -> Runners:
    tree = trees.tiny_tensors(30 if tiny else 30_000, 1)
    stager, theirs, buffers = sd.Stager(), StateDictStager(), sd.empty_like(tree)
    targets, sources = sd.leaves(buffers), sd.leaves(tree)
    return {
        "_foreach_copy_": lambda: torch._foreach_copy_(targets, sources),
        "torch": lambda: incumbent._copy_state_dict(tree, buffers),
        "ours": lambda: _staged(stager, tree),
        "StateDictStager": lambda: theirs.stage(tree),
    }


def large(tiny: bool) -> Runners:
    count, elements = (3, 2**10) if tiny else (96, 2**22)
    tree, stager = trees.large_tensors(count, elements), sd.Stager()
    flat, room = torch.ones(count * elements), torch.ones(count * elements)
    return {
        "flat copy": lambda: room.copy_(flat),
        "ours": lambda: _staged(stager, tree),
    }


def first(tiny: bool) -> Runners:
    tree = trees.tiny_tensors(30 if tiny else 30_000, 1)
    made = sd.empty_like(tree)
    targets, sources = sd.leaves(made), sd.leaves(tree)

    def theirs() -> trees.Tree:
        return incumbent._copy_state_dict(tree, incumbent._create_cpu_state_dict(tree))

    return {
        "_foreach_copy_": lambda: torch._foreach_copy_(targets, sources),
        "torch": theirs,
        "ours": lambda: _first(tree),
    }


def descriptors(tiny: bool) -> Row:
    """Count the descriptors that a shared snapshot of 10,000 leaves takes."""
    tree = trees.tiny_tensors(30 if tiny else 10_000, 1)
    before = len(os.listdir(OPEN))
    with sd.Stager(share=True) as stager:
        held = stager.stage(tree)
        count = float(len(os.listdir(OPEN)) - before)
        held.release()
    limit = Figure.of([1.0], "B")
    return Row(Figure.of([count], "B"), {"one": limit}, None, count, 4.0, False)


WORKS: dict[str, Work] = {
    "stage again, 30,000 tiny": beside_torch(warm, 3.0),
    "stage again, 30,000 tiny, over DCP's": beside_torch(
        warm, 8.0, over="StateDictStager"
    ),
    "stage again, 96 of 16 MiB": beside_torch(large, 0.9, over="flat copy"),
    "stage first, 30,000 tiny": beside_torch(first, 2.0),
    "stage again, collector on": with_collector(warm, 3.0),
    "stage first, collector on": with_collector(first, 2.0),
    "descriptors of 10,000 shared": Work(descriptors, "speed"),
}
