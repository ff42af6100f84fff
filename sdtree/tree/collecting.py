"""Python's search for garbage, left alone while many objects are made that stay."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def all_kept() -> Generator[None]:
    """Have Python look for no garbage among many new objects, which takes long.

    >>> import gc
    >>> with all_kept():
    ...     print(gc.isenabled())
    False
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
