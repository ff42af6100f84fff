"""Runs scripts for ranks one after the other, and prints what each has printed.

``torchrun`` starts it, ``pages.py`` tells it the scripts. Each has a process
group of its own, as if it were alone; what ranks print stands rank by rank.
"""

import io
import json
import os
import runpy
import sys
from contextlib import redirect_stdout
from functools import partial

import torch.distributed as dist


def play(store: dist.Store, name: str, folder: str) -> str:
    """Return what a script prints on this rank."""
    begin = partial(init, store=store, rank=RANK, world_size=SIZE)
    dist.init_process_group = begin
    os.chdir(folder)
    with redirect_stdout(io.StringIO()) as out:
        runpy.run_path(name, run_name="__main__")
    assert not dist.is_initialized(), f"{name} leaves its process group behind"
    return out.getvalue()


def main() -> None:
    """Run the scripts that the first argument lists, and print what they print."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    shared = dist.TCPStore(address, port, SIZE, is_master=False)
    for number, (name, folder) in enumerate(json.loads(sys.argv[1])):
        own = dist.PrefixStore(f"script {number}", shared)
        shared.set(f"printed {number} {RANK}", play(own, name, folder))
    if RANK == 0:
        count = len(json.loads(sys.argv[1]))
        keys = [[f"printed {k} {rank}" for rank in range(SIZE)] for k in range(count)]
        json.dump(
            [b"".join(map(shared.get, each)).decode() for each in keys], sys.stdout
        )
    # The store lives as long as rank 0 asks it.
    shared.set(f"done {RANK}", "")
    shared.wait([f"done {rank}" for rank in range(SIZE)])


if __name__ == "__main__":
    init = dist.init_process_group
    RANK, SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    main()
