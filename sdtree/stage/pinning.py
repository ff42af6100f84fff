"""Whether memory can be pinned here, and how such that is shared is."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import UntypedStorage

Pin = bool | Literal["required"]
"""Whether memory is to be pinned: not, where that can be, or else not at all."""


def pinned(pin: Pin, share: bool) -> bool:
    """Return whether memory will be pinned that is asked to be.

    Where it cannot be, ``True`` warns and goes on, ``"required"`` raises.
    """
    if pin not in (True, False, "required"):
        raise ValueError(f"pin={pin!r}: give True, False or 'required'")
    if not pin or not (reason := _hindrance(share)):
        return bool(pin)
    if pin == "required":
        raise RuntimeError(
            f"pin='required': {reason}; pin=True goes on without, or leave it out"
        )
    warnings.warn(
        f"pin=True: {reason}; what is staged is not pinned", RuntimeWarning, 3
    )
    return False


def _hindrance(share: bool) -> str:
    """Return why memory cannot be pinned here, empty if it can."""
    here = torch.accelerator.current_accelerator()
    if here is None or not torch.accelerator.is_available():
        return "there is no accelerator here to pin memory for"
    if share and here.type != "cuda":
        return f"shared memory cannot be pinned for {here.type}"
    return ""


def registered(owner: object, storages: Sequence[UntypedStorage]) -> None:
    """Pin the memory of shared storages as long as their owner lives."""
    runtime: Any = torch.cuda.cudart()
    for storage in storages:
        start = storage.data_ptr()
        torch.cuda.check_error(
            int(runtime.cudaHostRegister(start, storage.nbytes(), 0))
        )
        weakref.finalize(owner, _unregister, runtime, start, storage)


def _unregister(runtime: Any, start: int, _: UntypedStorage) -> None:
    """Unpin memory, whose storage was held until now."""
    runtime.cudaHostUnregister(start)
