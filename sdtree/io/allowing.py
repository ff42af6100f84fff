"""What a file of torch may name beyond what torch allows, while it is read."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from torch.serialization import add_safe_globals, get_safe_globals, safe_globals

from sdtree.container import ABSENT, registered
from sdtree.io.arrays import stand_ins

HARMLESS: tuple[Any, ...] = (
    bytes,  # what torch calls to make empty ones
    io.BytesIO,
    (ABSENT, f"{type(ABSENT).__module__}.{ABSENT!r}"),
)

_LOCK = Lock()
_READERS: Counter[Any] = Counter()
"""How many are reading, in as many threads, for whom something was allowed."""


@contextmanager
def allowed() -> Generator[None]:
    """Let files name what is known to be harmless, and the registered containers."""
    with _LOCK:
        known = get_safe_globals()
        # What the caller allowed counts: the two cannot read one array together.
        arrays = () if any(map(_is_of_numpy, known)) else stand_ins()
        every: list[Any] = [*HARMLESS, *arrays, *registered()]
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


def _is_of_numpy(known: Any) -> bool:
    """Return whether something was allowed that numpy names, and not by us."""
    name = known[1] if isinstance(known, tuple) else known.__module__
    return name.partition(".")[0] == "numpy" and known not in stand_ins()
