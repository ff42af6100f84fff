"""What is registered, and what was found out by it, which never contradict.

Threads register kinds and meet types at any time. What one finds out while another
registers may be wrong by then; it is used that once and not kept. Nothing is imported
under the lock, nor is any code of users run: neither could wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import RLock
from typing import Final


@dataclass(slots=True)
class Era:
    """The number of changes to what is registered."""

    number: int = 0


_NOW: Final = Era()
_LOCK: Final = RLock()  # a signal may come, and its handler meet another type
_ON_CHANGE: Final[list[Callable[[], None]]] = []


def on_change(forget: Callable[[], None]) -> None:
    """Have ``forget`` called whenever something is registered."""
    _ON_CHANGE.append(forget)


def change(register: Callable[[], object]) -> None:
    """Register something, and have all forgotten that was found out without it."""
    with _LOCK:
        register()
        _NOW.number += 1
        for forget in _ON_CHANGE:
            forget()


def era() -> int:
    """Return what to tell ``keep``: ask before anything is found out."""
    return _NOW.number


def keep(since: int, note: Callable[[], object]) -> None:
    """Note what was found out, unless something was registered since it was begun."""
    with _LOCK:
        if _NOW.number == since:
            note()
