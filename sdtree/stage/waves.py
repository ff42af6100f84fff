"""A snapshot in waves, where less memory is to be had than a tree takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sdtree.stage.buffers import Buffers, joined
from sdtree.stage.flight import Streams
from sdtree.tensors.counting import Count
from sdtree.tensors.forms import Forms
from sdtree.tensors.modes import making
from sdtree.tensors.remake import Allocator
from sdtree.transform.window import apart, cut
from sdtree.tree.spec import TreeSpec
from sdtree.typing import Leaf, Path


class Waves:
    """The leaves of a tree on their way, some at a time; they are read as they go.

    ``is_over``: all have been on the host, and the tree may change again.
    """

    def __init__(
        self,
        leaves: Sequence[Leaf],
        spec: TreeSpec,
        room: Allocator,
        limit: int,
        count: Count,
    ) -> None:
        self._leaves: Sequence[Leaf] = leaves
        self._spec = spec
        self._room = room
        self._limit = limit
        self._count = count
        self.is_over = False

    def drain(self, streams: Streams) -> Iterator[tuple[Path, Leaf]]:
        """Yield each (path, leaf); the memory of a wave goes before the next comes."""
        paths = self._spec.every_path
        every = range(len(self._leaves))
        for wave in cut(every, self._leaves, paths.__getitem__, self._limit):
            self.check_open()
            made = self._wave(wave, streams)[::-1]
            for i in wave:
                yield paths[i], made.pop()
        self.end()
        self._count.end()

    def _wave(self, wave: Sequence[int], streams: Streams) -> list[Leaf]:
        with making():
            parts = apart(
                [self._leaves[i] for i in wave],
                lambda k: self._spec.every_path[wave[k]],
            )
            buffers = Buffers(parts.tensors, Forms.of(parts.tensors), self._room)
            there, here = buffers.filled_by(parts.tensors)
            streams.copy(there, here, self._room.pin).wait()
            self._count.add(sum(t.nbytes for t in here))
            return joined(parts, buffers.tensors)

    def check_open(self) -> None:
        """Raise ``RuntimeError`` if all is over: nothing more can come."""
        if self.is_over:
            raise RuntimeError("the tree was staged in waves, which are over; stage it")

    def end(self) -> None:
        """Let the tree go."""
        self._leaves = ()
        self.is_over = True
