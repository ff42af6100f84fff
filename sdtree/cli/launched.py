"""The ranks that a launcher, such as torchrun, has started for one command."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Final

PATIENCE: Final = timedelta(days=1)
"""How long a rank waits for another, which may have much to write."""


_ALONE: Final = ContextVar("alone", default=False)


@contextmanager
def alone() -> Generator[None]:
    """Have commands be those of this process, whatever others were started with it."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def is_first() -> bool:
    """Return whether this process tells what happens: the others do as much."""
    return _ALONE.get() or os.environ.get("RANK", "0") == "0"


@contextmanager
def launched() -> Generator[Any]:
    """Yield the process group of the ranks that were started, None if none were."""
    is_one = "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1"
    if is_one or _ALONE.get():
        yield None
        return
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()
