"""Messages: small regions of leaves as bytes, for one rank from one rank.

Each region has an aligned place. The last word of a message tells whether the sender
had failed: what came with it is junk then. Messages that hold the same regions share
their bytes, and what several hold of a leaf is copied at once where it lies evenly.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter, sub
from typing import NamedTuple

import torch
from torch import Tensor

from sdtree.layout.schedule import Schedule, Slice, Transfer
from sdtree.tensors.remake import fill
from sdtree.tensors.storage import ALIGNMENT, dense_strides
from sdtree.typing import Path

_device = attrgetter("device")

# -- regions -----------------------------------------------------------------------


class Column:
    """The local tensors, one of each, of leaves that go one way.

    What all of them have in common is asked once, for all regions of them; ``size`` is
    theirs where it is known to be one.
    """

    __slots__ = ("_alike", "size", "tensors")

    def __init__(
        self, tensors: Sequence[Tensor], size: tuple[int, ...] | None = None
    ) -> None:
        self.tensors, self.size = tensors, size
        self._alike: set[Alike] | None = None

    def apart(self) -> list[Column]:
        """Return the column of each leaf by itself."""
        return [Column([t]) for t in self.tensors]

    def views(self, part: Chunk) -> Sequence[Tensor]:
        """Return what a part is of each tensor."""
        if part.times == 1 and part.size == self.size:
            return self.tensors
        if self._alike is None:
            self._alike = _common(self.tensors)
        if len(self._alike) > 1:
            return [view for one in self.apart() for view in one.views(part)]
        [(whole, strides, start)] = self._alike
        size = part.size
        if size == whole and part.times == 1:
            return self.tensors
        size, strides, further = part.within(strides)
        return [t.as_strided(size, strides, start + further) for t in self.tensors]

    def take(self, part: Chunk, own: Sequence[Tensor]) -> None:
        """Copy what this rank has of a part of each tensor into it."""
        copy(self.views(part), own)

    def receive(self, part: Chunk, come: Tensor) -> None:
        """Copy what has come of a part of each tensor, stacked, into it."""
        copy(self.views(part), come.unbind())


Alike = tuple[tuple[int, ...], tuple[int, ...], int]
"""The size of a tensor, its strides, and where it begins in its storage."""


def _common(ts: Sequence[Tensor]) -> set[Alike]:
    """Return what tensors are: one thing if they have all of it in common."""
    return {(t.size(), t.stride(), int(t.storage_offset())) for t in ts}


def _product(steps: Sequence[int], strides: Sequence[int]) -> int:
    return sum(map(int.__mul__, steps, strides))


def region(t: Tensor, offset: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
    """Return a region of a tensor, as a view."""
    [found] = Chunk(size, t.dtype, 1, Column([t]), offset).views()
    return found


class Chunk(NamedTuple):
    """The same region of so many ``leaves``, None in place of a column of junk.

    Or so many ``times``, each a ``step`` further.
    """

    size: tuple[int, ...]
    dtype: torch.dtype
    leaves: int
    column: Column | None
    offset: tuple[int, ...]
    times: int = 1
    step: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        """Return the bytes of one region."""
        return math.prod(self.size) * self.dtype.itemsize

    @property
    def room(self) -> int:
        """Return the bytes that each takes in it, so that the next is aligned."""
        return aligned(self.nbytes)

    def views(self) -> Sequence[Tensor]:
        """Return the region of each leaf; none if they are junk."""
        return () if self.column is None else self.column.views(self)

    def within(self, strides: Sequence[int]) -> Alike:
        """Return size, strides and start of the region in a tensor of some strides."""
        start = _product(self.offset, strides)
        if self.times == 1:
            return self.size, tuple(strides), start
        step = _product(self.step, strides)
        return (self.times, *self.size), (step, *strides), start

    def take(self, own: Sequence[Tensor]) -> None:
        """Have what is here of the region of each leaf go there, unless it is junk."""
        if self.column is not None:
            self.column.take(self, own)

    def receive(self, come: Tensor) -> None:
        """Have what has come of the region of each leaf go there, unless it is junk."""
        if self.column is not None:
            self.column.receive(self, come)

    def places(self, buffer: Tensor, start: int, step: int) -> Tensor:
        """Return where they lie in a buffer, the first at ``start``, the next behind.

        ``step`` is how many bytes further those of the next time lie.
        """
        width, rows = self.dtype.itemsize, dense_strides(self.size)
        flat = buffer.view(self.dtype)
        size, strides = (self.leaves, *self.size), (self.room // width, *rows)
        if self.times > 1:
            size = (self.leaves, self.times, *self.size)
            strides = (self.room // width, step // width, *rows)
        at = start // width + flat.storage_offset()
        return flat.as_strided(size, strides, at)


def aligned(nbytes: int) -> int:
    """Return the next multiple of what a region begins at."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each source into its target, lazy conjugates and negatives, too."""
    if any(t.is_conj() or t.is_neg() for t in targets):
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)
    elif targets:
        fill(targets, sources)


# -- messages -----------------------------------------------------------------------


@dataclass(slots=True)
class Message:
    """Regions of one rank for another, and a word if it is to end with one."""

    parts: list[Chunk] = field(default_factory=list[Chunk])
    path: Path = ()
    has_word: bool = False
    lies: Tensor | None = field(init=False, default=None)

    def add(self, part: Chunk, path: Path) -> None:
        """Add regions; the path of the first ones stands for all."""
        self.path = self.path or path
        self.parts.append(part)

    @property
    def offset(self) -> tuple[int, ...]:
        """Return where in its leaf the first region lies."""
        return self.parts[0].offset if self.parts else ()

    def nbytes(self) -> int:
        """Return the length of its bytes."""
        if self._is_bare:
            return self.parts[0].nbytes
        body = sum(part.room * part.leaves for part in self.parts)
        return body + (ALIGNMENT if self.has_word else 0)

    @property
    def _is_bare(self) -> bool:
        """Return whether it is but one region, which takes no more than its bytes."""
        return not self.has_word and [part.leaves for part in self.parts] == [1]

    def direct(self, device: torch.device) -> Tensor | None:
        """Return the bytes of its one region as they lie, if they can travel so."""
        if self.lies is None and self._is_bare and self.parts[0].column is not None:
            [view] = self.parts[0].views()
            is_lazy = view.is_conj() or view.is_neg()
            if view.device == device and view.is_contiguous() and not is_lazy:
                # Of one element, a view keeps a stride that no bytes have.
                flat = view.as_strided((view.numel(),), (1,))
                self.lies = flat.view(torch.uint8)
        return self.lies


@dataclass(slots=True)
class Bucket:
    """Messages that lie in one buffer, each at its start; how many are ``awaited``."""

    messages: Sequence[Message]
    starts: Sequence[int]
    nbytes: int
    awaited: int
    buffer: Tensor | None = None

    @classmethod
    def of(cls, messages: Sequence[Message], *, share: bool = False) -> Bucket:
        """Return the bucket of some messages; if they may ``share``, those alike do."""
        starts: list[int] = []
        found: dict[Hashable, int] = {}
        end = 0
        for k, message in enumerate(messages):
            key = (*message.parts, message.has_word) if share else k
            if key not in found:
                found[key] = end
                end += aligned(message.nbytes())
            starts.append(found[key])
        return cls(messages, starts, end, len(messages))

    def open(self, device: torch.device) -> Tensor:
        """Return the buffer, made when it is first asked for."""
        if self.buffer is None:
            self.buffer = torch.empty(self.nbytes, dtype=torch.uint8, device=device)
        return self.buffer

    def slot(self, k: int, device: torch.device) -> Tensor:
        """Return the bytes of a message in the buffer."""
        start, buffer = self.starts[k], self.open(device)
        return buffer[start : start + self.messages[k].nbytes()]

    def pack(self, device: torch.device, word: int) -> Tensor:
        """Write regions and word of each message, and return the buffer."""
        buffer = self.open(device)
        for part, places in self._places(buffer):
            views = part.views()
            if {*map(_device, views)} == {places.device}:
                torch.stack([*views], out=places)
            else:
                fill(places.unbind(), views)
        for slot in self._words(buffer):
            slot[0] = word
        return buffer

    def unpack(self) -> int:
        """Copy the regions home, and return the greatest of the words."""
        assert self.buffer is not None, "it was made for what has come"
        buffer, self.buffer = self.buffer, None
        for part, places in self._places(buffer):
            part.receive(places)
        return max((int(slot[0]) for slot in self._words(buffer)), default=0)

    def _words(self, buffer: Tensor) -> Iterator[Tensor]:
        for start, message in zip(self.starts, self.messages, strict=True):
            if message.has_word:
                end = start + message.nbytes()
                yield buffer[end - ALIGNMENT : end].view(torch.int64)

    def _places(self, buffer: Tensor) -> Iterator[tuple[Chunk, Tensor]]:
        """Yield the regions that are no junk, and where they lie in the buffer."""
        for run in self._runs(joins=buffer.is_cpu):
            (start, parts), times = run[0], len(run)
            gap = gap_between(*run[:2]) if times > 1 else Gap(0, [()] * len(parts))
            for part, step in zip(parts, gap.offsets, strict=True):
                if part.column is not None:
                    every = part._replace(times=times, step=step)
                    yield every, every.places(buffer, start, gap.start)
                start += part.room * part.leaves

    def _runs(self, *, joins: bool) -> Iterator[list[Row]]:
        """Yield the distinct messages, those together that lie evenly if it ``joins``.

        An accelerator copies dense regions of many leaves at once, and others singly.
        """
        found: dict[Hashable, list[list[Row]]] = {}
        for start, message in dict(
            zip(self.starts, self.messages, strict=True)
        ).items():
            row = start, message.parts
            forms = tuple([part._replace(offset=()) for part in message.parts])
            runs = found.setdefault(forms, [])
            if joins and runs and goes_on_evenly(runs[-1], row):
                runs[-1].append(row)
            else:
                runs.append([row])
        for runs in found.values():
            yield from runs


Row = tuple[int, Sequence[Chunk]]
"""Where a message starts in its bucket, and its parts."""


class Gap(NamedTuple):
    """How far a message starts behind another, and each of its parts in its leaves."""

    start: int
    offsets: Sequence[tuple[int, ...]]


def gap_between(a: Row, b: Row) -> Gap:
    """Return how far one message lies from another of the same forms."""
    pairs = zip(a[1], b[1], strict=True)
    return Gap(b[0] - a[0], [tuple(map(sub, y.offset, x.offset)) for x, y in pairs])


def goes_on_evenly(run: Sequence[Row], row: Row) -> bool:
    """Return whether a message lies as far from the last as that from the one before.

    It must lie behind: a view cannot go back.
    """
    gap = gap_between(run[-1], row)
    if min((step for offset in gap.offsets for step in offset), default=0) < 0:
        return False
    return len(run) == 1 or gap == gap_between(run[-2], run[-1])


# -- the leaves of a window -----------------------------------------------------------


@dataclass(slots=True)
class TransferBatch:
    """Leaves, or slabs of them, that go one way: without tensors they are junk.

    ``sources`` and ``targets`` have the local tensors of each, or ``columns`` those of
    all, by whether they are sources and which of a leaf's they are.
    """

    transfer: Transfer
    schedule: Schedule
    paths: list[Path] = field(default_factory=list[Path])
    sources: list[Sequence[Tensor]] = field(default_factory=list[Sequence[Tensor]])
    targets: list[Sequence[Tensor]] = field(default_factory=list[Sequence[Tensor]])
    columns: dict[tuple[bool, int], Column] = field(
        default_factory=dict[tuple[bool, int], Column]
    )
    alone: dict[Chunk, list[Message]] = field(
        init=False, default_factory=dict[Chunk, list[Message]]
    )

    def add(
        self,
        path: Path,
        source: Sequence[Tensor] | None = None,
        target: Sequence[Tensor] | None = None,
    ) -> None:
        """Add a leaf, or the junk that stands for it."""
        self.paths.append(path)
        if source is not None and target is not None:
            self.sources.append(source)
            self.targets.append(target)

    def part(self, cut: Slice, *, of_sources: bool) -> Chunk:
        """Return what a cut of the schedule is of all the leaves."""
        column = self._column(cut.tensor, of_sources)
        return Chunk(cut.size, self.transfer.dtype, len(self.paths), column, cut.offset)

    def messages(self, part: Chunk) -> Sequence[Message]:
        """Return a message for each leaf, whoever it is for."""
        if part not in self.alone:
            ts = [None] * part.leaves if part.column is None else part.column.tensors
            columns = (None if t is None else Column([t]) for t in ts)
            parts = (part._replace(leaves=1, column=column) for column in columns)
            found = [
                Message([p], path) for p, path in zip(parts, self.paths, strict=True)
            ]
            self.alone[part] = found
        return self.alone[part]

    def _column(self, tensor: int, of_sources: bool) -> Column | None:
        key = of_sources, tensor
        side = self.sources if of_sources else self.targets
        if side and key not in self.columns:
            self.columns[key] = Column([ts[tensor] for ts in side])
        return self.columns.get(key)


def keep(batches: Sequence[TransferBatch]) -> None:
    """Copy what this rank has of its own."""
    for batch in batches:
        for here, there in batch.schedule.copies:
            own = batch.part(here, of_sources=True).views()
            batch.part(there, of_sources=False).take(own)
