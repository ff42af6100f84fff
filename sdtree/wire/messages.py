"""Messages: small regions of leaves as bytes, for one rank from one rank.

Each region has an aligned place. The last word of a message tells whether the sender
had failed: what came with it is junk then. Messages that hold the same regions share
their bytes, and what several hold of a leaf is copied at once where it lies evenly.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter, sub
from typing import Final, NamedTuple, TypeVar

import torch
from torch import Tensor

from sdtree.tensors.remake import fill
from sdtree.tensors.storage import ALIGNMENT, dense_strides
from sdtree.typing import Path

_device = attrgetter("device")

End = tuple[int, int]
"""A rank at the other end of a way, and in which hop."""

LARGE: Final = 128 * 2**10
"""From how many bytes on a region goes alone."""


# -- regions -----------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Column:
    """The local tensors, one of each, of leaves that go one way.

    What all of them have in common is asked once, for all regions of them; ``size`` is
    theirs where it is known to be one. Of one that ``lasts`` regions are found once.
    """

    tensors: Sequence[Tensor]
    size: tuple[int, ...] | None = None
    lasts: bool = field(kw_only=True, default=False)
    _kept: dict[Place, Sequence[Tensor]] = field(
        init=False, default_factory=dict["Place", Sequence[Tensor]]
    )
    _alike: set[Alike] | None = field(init=False, default=None)

    def each(self) -> Sequence[Column]:
        """Return the column of each leaf by itself."""
        return [Column([t]) for t in self.tensors]

    def views(self, part: Chunk) -> Sequence[Tensor]:
        """Return what a part is of each tensor."""
        if part.times == 1 and part.size == self.size:
            return self.tensors
        if not self.lasts:
            return self._views(part)
        key = part.size, part.offset, part.times, part.step
        if key not in self._kept:
            self._kept[key] = self._views(part)
        return self._kept[key]

    def _views(self, part: Chunk) -> Sequence[Tensor]:
        if self._alike is None:
            self._alike = _common(self.tensors)
        if len(self._alike) > 1:
            return [view for one in self.each() for view in one.views(part)]
        [(whole, strides, start)] = self._alike
        size = part.size
        if size == whole and part.times == 1:
            return self.tensors
        size, strides, further = part.within(strides)
        return [t.as_strided(size, strides, start + further) for t in self.tensors]

    def give(self, part: Chunk, places: Tensor) -> None:
        """Copy a part of each tensor to its place, of which there is one for each.

        What lies evenly is cut out at once, but where that is done only once.
        """
        if self.lasts and part.times > 1:
            for k, one in enumerate(part.each_time()):
                self.give(one, places.select(1, k))
            return
        views = self.views(part)
        if places.dtype is not torch.bool and {*map(_device, views)} == {places.device}:
            torch.stack([*views], out=places)
        else:
            fill(places.unbind(), views)

    def take(self, part: Chunk, own: Sequence[Tensor]) -> None:
        """Copy what this rank has of a part of each tensor into it."""
        fill(self.views(part), own)

    def receive(self, part: Chunk, come: Tensor) -> None:
        """Copy what has come of a part of each tensor, stacked, into it."""
        fill(self.views(part), come.unbind())


Place = tuple[tuple[int, ...], tuple[int, ...], int, tuple[int, ...]]
"""The size of a region, where it begins, how often there is one, how far from each."""

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
    def goes_alone(self) -> bool:
        """Return whether the region of a leaf is so large that it goes alone."""
        return self.nbytes >= LARGE

    @property
    def room(self) -> int:
        """Return the bytes that each takes in it, so that the next is aligned."""
        return aligned(self.nbytes)

    def each_time(self) -> Iterator[Chunk]:
        """Yield the region of each time by itself."""
        if self.times == 1:
            yield self
            return
        for k in range(self.times):
            steps = (k * step for step in self.step)
            offset = tuple(map(int.__add__, self.offset, steps))
            yield self._replace(offset=offset, times=1, step=())

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


N = TypeVar("N", int, Tensor)


def aligned(nbytes: N) -> N:
    """Return the next multiple of what a region begins at, or those of several."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


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
        is_open = self.lies is None and self._is_bare
        for view in self.parts[0].views() if is_open else ():
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
    sizes: Sequence[int]
    nbytes: int
    awaited: int
    buffer: Tensor | None = None

    @classmethod
    def of(cls, messages: Sequence[Message], *, share: bool = False) -> Bucket:
        """Return the bucket of some messages; if they may ``share``, those alike do."""
        starts, sizes, end = list[int](), [x.nbytes() for x in messages], 0
        found: dict[Hashable, int] = {}
        for k, message in enumerate(messages):
            key = (*message.parts, message.has_word) if share else k
            if key not in found:
                found[key] = end
                end += aligned(sizes[k])
            starts.append(found[key])
        return cls(messages, starts, sizes, end, len(messages))

    def open(self, device: torch.device) -> Tensor:
        """Return the buffer, made when it is first asked for."""
        if self.buffer is None:
            self.buffer = torch.empty(self.nbytes, dtype=torch.uint8, device=device)
        return self.buffer

    def slot(self, k: int, device: torch.device) -> Tensor:
        """Return the bytes of a message in the buffer."""
        start, buffer = self.starts[k], self.open(device)
        return buffer[start : start + self.sizes[k]]

    def pack(self, device: torch.device, word: int) -> Tensor:
        """Write regions and word of each message, and return the buffer."""
        buffer = self.open(device)
        for part, places in self._places(buffer):
            if part.column is not None:
                part.column.give(part, places)
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
        rows = zip(self.starts, self.sizes, self.messages, strict=True)
        for start, size, message in rows:
            if message.has_word:
                end = start + size
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


class Placed(NamedTuple):
    """A message for an end, and its place in a bucket.

    One that travels from where it lies has no bucket.
    """

    end: End
    message: Message
    bucket: Bucket | None = None
    place: int = 0


def placed(
    messages: Mapping[End, Message], device: torch.device, room: int, *, share: bool
) -> list[Placed]:
    """Return the messages in the order of what they hold, each with its bucket.

    They lie in one if it is not too large for the ``room``. Where one travels from
    where it lies none is to wait for it.
    """
    rows = sorted(messages.items(), key=_offset_of)
    others = [x for _, x in rows if x.direct(device) is None]
    bucket, found, k = Bucket.of(others, share=share), list[Placed](), 0
    for end, message in rows:
        if message.lies is not None:
            found.append(Placed(end, message))
        elif bucket.nbytes <= room:
            found.append(Placed(end, message, bucket, k))
            k += 1
        else:
            found.append(Placed(end, message, Bucket.of([message])))
    return found


def _offset_of(row: tuple[End, Message]) -> tuple[int, ...]:
    """Return where in its leaf the first region of a message lies."""
    parts = row[1].parts
    return parts[0].offset if parts else ()


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
