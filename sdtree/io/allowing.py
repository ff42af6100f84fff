"""What a file of torch may name beyond what torch allows, while it is read."""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

from torch.serialization import add_safe_globals, get_safe_globals, safe_globals

from sdtree.container import ABSENT, registered

HARMLESS: tuple[Any, ...] = (
    bytes,  # what torch calls to make empty ones
    io.BytesIO,
    (ABSENT, f"{type(ABSENT).__module__}.{ABSENT!r}"),
)


@cache
def _of_numpy() -> tuple[Any, ...]:
    """Return what pickled arrays and scalars of numpy name, under both its names."""
    if "numpy" not in sys.modules:
        return ()
    import numpy as np
    from numpy._core import multiarray

    makers = (multiarray._reconstruct, multiarray.scalar)
    aliases = ((f, f"numpy.core.multiarray.{f.__name__}") for f in makers)
    dtypes = {type(np.dtype(code)) for code in np.typecodes["All"]}
    return (np.ndarray, np.dtype, *makers, *aliases, *dtypes)


_LOCK = Lock()
_READERS: Counter[Any] = Counter()
"""How many are reading, in as many threads, for whom something was allowed."""


@contextmanager
def allowed() -> Generator[None]:
    """Let files name what is known to be harmless, and the registered containers."""
    with _LOCK:
        known = get_safe_globals()
        every: list[Any] = [*HARMLESS, *_of_numpy(), *registered()]
        ours = [x for x in every if _READERS[x] or x not in known]
        _READERS.update(ours)
        add_safe_globals(ours)
    try:
        yield
    finally:
        with _LOCK:
            _READERS.subtract(ours)
            with safe_globals([x for x in ours if not _READERS[x]]):
                pass  # what it adds it takes away in the end
