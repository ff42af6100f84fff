"""Recursion that is bounded by memory, and not by the stack of Python.

A function calls itself by ``yield``: it is a generator, and what the inner call returns
comes back to it.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")

Deep: TypeAlias = Generator["Deep[Any]", Any, T]
"""A call that is yet to run; it yields the calls whose results it needs."""


def run(call: Deep[T]) -> T:
    """Return what a call comes to, however deep it goes.

    >>> def depth(x):
    ...     return 1 + (yield depth(x[0])) if x else 0
    >>> x = []
    >>> for _ in range(10_000): x = [x]
    >>> run(depth(x))
    10000
    """
    calls: list[Deep[Any]] = [call]
    result: Any = None
    while calls:
        try:
            calls.append(calls[-1].send(result))
            result = None
        except StopIteration as stop:
            calls.pop()
            result = stop.value
    return result
