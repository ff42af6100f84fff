"""The rows of loading a folder into a sharded tree: what each rank reads.

That is a folder of shards with an index, or one that is a directory of DCP.

Each of four ranks maps a copy of its own, as on a machine of its own, of which nothing
is cached, and takes its rows of every tensor. What it reads is what the kernel says
that the disk has given for it, what it holds the kernel's high-water mark. Where files
lie in memory nothing is read.
"""

import json
import os
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
import torch.distributed as dist
from ranks import Pool, pool
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

import sdtree as sd
from benchmarks.memory import RESET, WINDOW, bytes_in, give_back, resident
from benchmarks.race import Figure, Row, Work
from benchmarks.world import PATIENCE

IO = Path("/proc/self/io")
TARGET = 1.1


class Loaded(NamedTuple):
    """How many bytes a rank has of a folder, read for it, and held beside it."""

    shards: int
    read: int
    beside: int


# -- on a rank ---------------------------------------------------------------------


def load(rows: int, columns: int, count: int, is_dcp: bool) -> Loaded:
    """Load a folder of so many tensors, and return what it took."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    with TemporaryDirectory() as folder:
        write = _write_dcp if is_dcp else _write
        write(Path(folder), rows, columns, count)
        part = torch.empty(rows // mesh.size(), columns, device="meta")
        like = {
            f"w{k}": DTensor.from_local(part, mesh, [Shard(0)]) for k in range(count)
        }
        _forget(Path(folder))
        dist.barrier()
        give_back()
        RESET.write_text("5")
        before, read = resident("VmHWM"), _read()
        loaded = sd.load(folder, like=like)
        size = sd.nbytes(loaded)
        return Loaded(size, _read() - read, resident("VmHWM") - before - size)


def _write(folder: Path, rows: int, columns: int, count: int) -> None:
    """Write a folder with a shard for each tensor."""
    places = {
        f"w{k}": f"model-{k + 1:05}-of-{count:05}.safetensors" for k in range(count)
    }
    for name, file in places.items():
        sd.save({name: torch.ones(rows, columns)}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))


def _write_dcp(folder: Path, rows: int, columns: int, count: int) -> None:
    """Write a directory of DCP of as many tensors, each one chunk."""
    sd.save({f"w{k}": torch.ones(rows, columns) for k in range(count)}, folder)


def _forget(folder: Path) -> None:
    """Have the system keep nothing of the files of a folder."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read() -> int:
    [line] = [line for line in IO.read_text().splitlines() if "read_bytes" in line]
    return int(line.split()[1])


# -- the rows ----------------------------------------------------------------------


def row(what: str, is_dcp: bool, tiny: bool) -> Row:
    """Return the row of what a rank reads, over its shards, or holds beside them."""
    if not (RESET.exists() and IO.exists()):
        return Row(bytes_in(0), {"needs Linux": bytes_in(0)})
    found = _found(is_dcp, tiny)
    shards = max(each.shards for each in found)
    if what == "read":
        most = max(each.read for each in found)
        return _row(bytes_in(most), shards, "its shards", most / shards, TARGET)
    most = max(each.beside for each in found)
    return _row(bytes_in(most), WINDOW, "one bucket", most / WINDOW, 1.0)


def _row(ours: Figure, raw: int, name: str, ratio: float, target: float) -> Row:
    limit = {name: bytes_in(raw)}
    return Row(ours, limit, ratio=ratio, target=target, at_least=False)


def _found(is_dcp: bool, tiny: bool) -> list[Loaded]:
    if tiny:
        return pool(2).run(load, 8, 64, 2, is_dcp)
    fresh = Pool(4)
    try:
        return fresh.run(load, 4096, 2048, 16, is_dcp, timeout=PATIENCE)
    finally:
        fresh.stop()


WORKS = {
    "read by load of a folder, 4 ranks": Work(partial(row, "read", False), "memory"),
    "peak of load of a folder, 4 ranks": Work(partial(row, "peak", False), "memory"),
    "read by load of a DCP directory, 4 ranks": Work(
        partial(row, "read", True), "memory"
    ),
    "peak of load of a DCP directory, 4 ranks": Work(
        partial(row, "peak", True), "memory"
    ),
}
