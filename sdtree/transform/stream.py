"""Streams: what a transform makes of a tree, leaf by leaf."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from inspect import GEN_CLOSED, GEN_CREATED, getgeneratorstate
from types import TracebackType

from sdtree.tensors.modes import uncompiled
from sdtree.transform.run import Run
from sdtree.transform.stages import Communication, Stage
from sdtree.typing import Leaf, Path, Tree

Source = tuple[Tree, Sequence[Stage]]
"""A tree, and the stages that it is to pass."""


def pairs_of(run: Run, limit: int | None = None) -> Generator[tuple[Path, Leaf]]:
    """Yield each (path, leaf) that results of a run, holding none that was yielded."""
    paths = run.paths()
    for ids, leaves in run.windows(limit):
        left = leaves[::-1]
        del leaves
        for i in ids:
            yield paths[i], left.pop()


class Stream(Iterator[tuple[Path, Leaf]]):
    """An iterator over (path, leaf), and a context manager.

    ``close()``, leaving the block and being forgotten end it; if ranks exchange leaves,
    this rank then does what is left of its part, so that no other waits. What is asked
    of a stream that was closed before its end is a ``ValueError``.
    """

    def __init__(
        self,
        pairs: Generator[tuple[Path, Leaf]],
        drain: Callable[[], None] = lambda: None,
        source: Source | None = None,
    ) -> None:
        self._pairs, self._drain, self._source = pairs, drain, source
        self._is_cut_off = False

    @classmethod
    def across(cls, exchange: Communication) -> Stream:
        """Return the stream of an exchange, which is open until it has ended."""
        exchange.hold_open()
        return cls(exchange.stream(), exchange.drain)

    def begin(self) -> Source:
        """Return the tree and the stages that are to pass, and end the stream.

        >>> sd.identity.stream({"w": 1}).begin()
        ({'w': 1}, ())
        """
        if getgeneratorstate(self._pairs) != GEN_CREATED:
            raise ValueError(
                "the stream has begun, and what was taken of it is gone; make another "
                "by transform.stream(tree)"
            )
        if self._source is None:
            raise TypeError(
                "in this stream ranks exchange leaves, which not all of them have in "
                "the end; write sd.save(transform(tree), target) where they are"
            )
        self.close()
        return self._source

    @uncompiled
    def __next__(self) -> tuple[Path, Leaf]:
        if self._is_cut_off:
            raise ValueError(
                "the stream was closed before its end; iterate inside its with block, "
                "or make another by transform.stream(tree)"
            )
        return next(self._pairs)

    @uncompiled
    def close(self) -> None:
        """End the stream; nothing is left to be done twice."""
        self._is_cut_off |= getgeneratorstate(self._pairs) != GEN_CLOSED
        self._pairs.close()
        self._drain()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.close()
