"""The rows of peak memory: a chain of five maps over 400 MB, streamed and called.

The raw limit is a plain loop in torch, one leaf after the other through all five; where
the result is kept it is the size of that, and the loop stands beside.

Each runs in a process of its own and reads the kernel's own high-water mark of
resident memory, reset just before: it misses no peak, as sampling does, and counts
all that is alive at once, tensors, temporaries inside kernels and Python's objects,
as a count of torch's allocations would not. What was freed before and kept by the
allocator would hide a peak, so nothing large is freed before the mark is reset. And
what is freed goes back at once: glibc's malloc would keep some of it by chance, as
holes between aligned blocks, which doubles the peak of a plain loop in torch as well.
"""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import sdtree as sd
from benchmarks import trees
from benchmarks.race import Figure, Row, Work

MIB = 2**20
WINDOW = 32 * MIB
M_MMAP_THRESHOLD = -3
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


def give_back() -> None:
    """Have ``malloc`` give what is freed back to the system, now and from now on.

    Else what a run takes may lie in what was freed before, and is not seen.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 65536)
    libc.malloc_trim(0)


def _plus_one(t: torch.Tensor) -> torch.Tensor:
    return t + 1


def _stream(transform: sd.Transform, tree: trees.Tree) -> None:
    for _ in transform.stream(tree):
        pass


def _call(transform: sd.Transform, tree: trees.Tree) -> trees.Tree:
    return transform(tree)


def _loop(_: sd.Transform, tree: trees.Tree) -> None:
    for t in tree.values():
        _plus_five(t)


def _loop_kept(_: sd.Transform, tree: trees.Tree) -> trees.Tree:
    return {name: _plus_five(t) for name, t in tree.items()}


def _plus_five(t: torch.Tensor) -> torch.Tensor:
    for _ in range(5):
        t = _plus_one(t)
    return t


RUNS: dict[str, Callable[[sd.Transform, trees.Tree], object]] = {
    "streamed": _stream,
    "called": _call,
    "loop streamed": _loop,
    "loop called": _loop_kept,
}


def resident(mark: str) -> int:
    """Return a figure of resident memory from the kernel, in bytes."""
    lines = STATUS.read_text().splitlines()
    [line] = [line for line in lines if line.startswith(mark)]
    return 1024 * int(line.split()[1])


def bytes_in(*found: float) -> Figure:
    """Return the figure of so many bytes."""
    return Figure.of(found, "B")


def peak(mode: str, leaf_bytes: int, tiny: bool) -> Row:
    """Return the row of a peak in windows, over those that are allowed."""
    if not RESET.exists():
        return Row(bytes_in(0), {"needs Linux": bytes_in(0)})
    total = 4 * leaf_bytes if tiny else 400 * 10**6
    extra, loop = (
        _extra_apart(name, leaf_bytes, total, tiny) for name in (mode, f"loop {mode}")
    )
    result = total // leaf_bytes * leaf_bytes if mode == "called" else 0
    windows = (extra.median - result) / WINDOW
    raw = ({"result": bytes_in(result)} if result else {}) | {"plain loop": loop}
    return Row(extra, raw, ratio=windows, target=2.0, at_least=False)


def _extra_apart(mode: str, leaf_bytes: int, total: int, tiny: bool) -> Figure:
    """Return the figure of ``extra_bytes``, as fresh processes find it."""
    if tiny:
        return bytes_in(extra_bytes(mode, leaf_bytes, total))
    arguments = map(str, (mode, leaf_bytes, total))
    command = [sys.executable, "-m", "benchmarks.memory", *arguments]
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    run = partial(subprocess.run, command, check=True, capture_output=True, env=env)
    return bytes_in(*(float(run(cwd=TESTS).stdout) for _ in range(3)))


TESTS = Path(__file__).parents[1]
SIZES = {"16 KiB": 16 * 2**10, "16 MiB": 16 * MIB}
WORKS = {
    f"peak {mode}, {size} leaves": Work(partial(peak, mode, leaf_bytes), "memory")
    for mode in ("streamed", "called")
    for size, leaf_bytes in SIZES.items()
}

if __name__ == "__main__":
    print(extra_bytes(sys.argv[1], *map(int, sys.argv[2:])))
