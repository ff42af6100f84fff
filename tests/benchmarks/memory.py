"""The rows of peak memory: a chain of five maps over 400 MB, streamed and called.

Each runs in a process of its own and reads the kernel's own high-water mark of
resident memory, reset just before: it misses no peak, as sampling does, and counts
all that is alive at once, tensors, temporaries inside kernels and Python's objects,
as a count of torch's allocations would not. What was freed before and kept by the
allocator would hide a peak, so nothing large is freed before the mark is reset. And
what is freed goes back at once: glibc's malloc would keep some of it by chance, as
holes between aligned blocks, which doubles the peak of a plain loop in torch as well.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import trees
from race import Row

import sdtree as sd

MIB = 2**20
WINDOW = 32 * MIB
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def extra_bytes(mode: str, leaf_bytes: int, total_bytes: int) -> int:
    """Return how many bytes more than the input this process holds at its peak."""
    five = sd.chain(*[sd.map(_plus_one)] * 5)
    for run in RUNS.values():
        run(five, trees.large_tensors(4, 64))
    tree = trees.large_tensors(total_bytes // leaf_bytes, leaf_bytes // 4)
    RESET.write_text("5")
    before = resident("VmHWM")
    RUNS[mode](five, tree)
    return resident("VmHWM") - before


def _plus_one(t: torch.Tensor) -> torch.Tensor:
    return t + 1


def _stream(transform: sd.Transform, tree: trees.Tree) -> None:
    for _ in transform.stream(tree):
        pass


RUNS: dict[str, Callable[[sd.Transform, trees.Tree], object]] = {
    "streamed": _stream,
    "called": lambda transform, tree: transform(tree),
}


def resident(mark: str) -> int:
    """Return a figure of resident memory from the kernel, in bytes."""
    lines = STATUS.read_text().splitlines()
    [line] = [line for line in lines if line.startswith(mark)]
    return 1024 * int(line.split()[1])


def peak(mode: str, leaf_bytes: int, tiny: bool) -> Row:
    """Return the row of a peak in windows, over those that are allowed."""
    if not RESET.exists():
        return Row("-", "needs Linux", 0.0, 0.0)
    total = 4 * leaf_bytes if tiny else 400 * 10**6
    extra = (extra_bytes if tiny else _apart)(mode, leaf_bytes, total)
    result = total // leaf_bytes * leaf_bytes if mode == "called" else 0
    windows = (extra - result) / WINDOW
    shown = f"{extra / MIB:.0f} MiB"
    raw = {"result": f"{result / MIB:.0f} MiB"} if result else {}
    return Row("-", shown, windows, 2.0, at_least=False, raw=raw)


def _apart(*arguments: object) -> int:
    """Return ``extra_bytes`` as a fresh process finds it."""
    command = [sys.executable, __file__, *map(str, arguments)]
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, check=True, capture_output=True, env=env)
    return int(done.stdout)


SMALL, LARGE = 16 * 2**10, 16 * MIB
WORKS: dict[str, Callable[[bool], Row]] = {
    "peak streamed, 16 KiB leaves": lambda tiny: peak("streamed", SMALL, tiny),
    "peak streamed, 16 MiB leaves": lambda tiny: peak("streamed", LARGE, tiny),
    "peak called, 16 KiB leaves": lambda tiny: peak("called", SMALL, tiny),
    "peak called, 16 MiB leaves": lambda tiny: peak("called", LARGE, tiny),
}

if __name__ == "__main__":
    print(extra_bytes(sys.argv[1], *map(int, sys.argv[2:])))
