"""The processes that are the ranks of the demo."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Final

import torch.distributed as dist

HOST: Final = "127.0.0.1"
PATIENCE: Final = timedelta(minutes=2)
"""How long a rank waits for another."""

Call = Callable[[], None]
_meet = partial(dist.init_process_group, "gloo", timeout=PATIENCE)


@contextmanager
def ranks(size: int, part: Call) -> Generator[tuple[int, Call]]:
    """Yield which rank this is, and what it calls to meet the others.

    If a launcher such as torchrun has started ranks, it is one of these. Else it is
    rank 0, and the others are started; they play ``part`` once all have met.
    """
    try:
        if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            yield int(os.environ["RANK"]), _meet
        else:
            with _started(size, part) as meet:
                yield 0, meet
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _started(size: int, part: Call) -> Generator[Call]:
    """Start all ranks but 0, and yield what that one calls to meet them."""
    store = dist.TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    spawn = multiprocessing.get_context("spawn")
    others = [
        spawn.Process(target=_play, args=(rank, size, store.port, part), daemon=True)
        for rank in range(1, size)
    ]
    for other in others:
        other.start()
    try:
        yield partial(_meet, store=store, rank=0, world_size=size)
        for other in others:
            other.join()
    finally:
        for other in others:
            other.kill()


def _play(rank: int, size: int, port: int, part: Call) -> None:
    """Be a rank, in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 ends this process then
    store = dist.TCPStore(HOST, port, is_master=False)
    _meet(store=store, rank=rank, world_size=size)
    part()
    dist.destroy_process_group()
