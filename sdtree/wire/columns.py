"""Batches and columns: the leaves of a window that go one way are handled as one.

What is made of them anew is made when all has come, by calls that allocate in torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from operator import attrgetter
from typing import Final, NamedTuple, Protocol

import torch
from torch import Tensor

from sdtree.layout.schedule import Schedule, Slice, Transfer
from sdtree.path import with_place
from sdtree.tensors.slab import rows_of
from sdtree.tensors.storage import dense_strides, raw
from sdtree.typing import Leaf, Path
from sdtree.wire import messages
from sdtree.wire.messages import Chunk, Column, Message
from sdtree.wire.patches import PatchedColumn, Patchwork, Sent

_apart: Callable[[Tensor], Sequence[Tensor]] = torch.unbind_copy  # pyright: ignore[reportAssignmentType]

BLOCK: Final = 2**20
"""About how many bytes are put together at a time: no more than stay at hand."""

is_on_host = attrgetter("is_cpu")

# -- new tensors ---------------------------------------------------------------------


Come = tuple[Chunk, Callable[[slice], Tensor]]
"""A part, and what has come of it, of as many tensors as are asked for."""


@dataclass(slots=True, eq=False)
class Fresh(Column):
    """So many tensors of one form that are not there until all parts of them have come.

    Law: each has a storage of its own, and the parts that came where they belong. To
    put some together and have torch copy them apart takes half as long as to make each,
    and to copy part by part into it.

    >>> fresh = Fresh((), (2,), count=2, dtype=torch.float32)
    >>> part = Chunk((1,), torch.float32, 2, fresh, (1,))
    >>> part.receive(torch.ones(2, 1))
    >>> fresh.take(part._replace(offset=(0,)), [torch.zeros(1), torch.ones(1)])
    >>> fresh.made()
    [tensor([0., 1.]), tensor([1., 1.])]
    """

    count: int = field(kw_only=True)
    dtype: torch.dtype = field(kw_only=True)
    _come: list[Come] = field(init=False, default_factory=list[Come])

    def take(self, part: Chunk, own: Sequence[Tensor]) -> None:
        """Note what is here of a part; it must stay as it is until all are made."""
        own = [*map(raw, own)] if self.dtype is torch.bool else own
        self._come.append((part, lambda rows: torch.stack([*own[rows]])))

    def receive(self, part: Chunk, come: Tensor) -> None:
        """Note what has come of a part; it must stay as it is until all are made."""
        self._come.append((part, come.__getitem__))

    def made(self) -> list[Tensor]:
        """Return the tensors; what had come is let go of."""
        come, self._come = self._come, []
        size, found = self.size or (), list[Tensor]()
        step = max(1, BLOCK // max(1, prod(size) * self.dtype.itemsize))
        shape = min(step, self.count), *size
        as_bits = torch.uint8 if self.dtype is torch.bool else self.dtype
        room = torch.empty(shape, dtype=as_bits, device="cpu")
        for start in range(0, self.count, step):
            block = room[: self.count - start]
            for part, data in come:
                rows = data(slice(start, start + step))
                _places(block, part).copy_(rows.view(as_bits))
            found += _apart(block)
        return found if as_bits is self.dtype else [t.view(self.dtype) for t in found]


@dataclass(slots=True, eq=False)
class Rows(Column):
    """Tensors of one form, one behind the other, that are filled again and again.

    Law: each has a storage of its own. What has come of all of them is put there by one
    call, and is in its place then.

    >>> rows = Rows.like(Fresh((), (2,), count=2, dtype=torch.float32))
    >>> part = Chunk((1,), torch.float32, 2, rows, (1,))
    >>> part.receive(torch.ones(2, 1))
    >>> rows.take(part._replace(offset=(0,)), [torch.zeros(1), torch.ones(1)])
    >>> rows.tensors
    [tensor([0., 1.]), tensor([1., 1.])]
    """

    whole: Tensor = field(kw_only=True)

    @classmethod
    def like(cls, fresh: Fresh) -> Rows:
        """Return as many tensors, which hold nothing yet."""
        whole, rows = rows_of(fresh.count, fresh.size or (), fresh.dtype)
        return cls(rows, fresh.size, lasts=True, whole=whole)

    def receive(self, part: Chunk, come: Tensor) -> None:
        """Copy what has come of a part of each tensor, stacked, into it."""
        _places(raw(self.whole), part).copy_(raw(come))


def _places(block: Tensor, part: Chunk) -> Tensor:
    """Return where a part of each of some tensors belongs in a block of them."""
    size, strides, start = part.within(dense_strides(block.shape[1:]))
    size, strides = (len(block), *size), (block.stride(0), *strides)
    return block.as_strided(size, strides, start)


# -- what is carried -----------------------------------------------------------------


@dataclass(slots=True)
class TransferBatch:
    """Leaves, or slabs of them, that go one way: without tensors they are junk.

    ``sources`` and ``targets`` have the local tensors of each, or ``columns`` those of
    all, by whether they are sources and which of a leaf's they are.
    """

    transfer: Transfer
    schedule: Schedule
    paths: list[Path] = field(default_factory=list[Path])
    sources: list[Sequence[Sent]] = field(default_factory=list[Sequence[Sent]])
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
        source: Sequence[Sent] | None = None,
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

    def parts(self, way: str) -> list[tuple[Slice, Chunk]]:
        """Return each cut of a way, and what it is of all leaves."""
        cuts: Sequence[Slice] = getattr(self.schedule, way)
        return [(cut, self.part(cut, of_sources=way == "sends")) for cut in cuts]

    def messages(self, part: Chunk) -> Sequence[Message]:
        """Return a message for each leaf, whoever it is for."""
        if part not in self.alone:
            junk = [None] * part.leaves
            columns = junk if part.column is None else part.column.each()
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
            every = [ts[tensor] for ts in side]
            ts = [x for x in every if not isinstance(x, Patchwork)]
            is_plain = len(ts) == len(every)
            self.columns[key] = Column(ts) if is_plain else PatchedColumn.of(every)
        return self.columns.get(key)


def keep(batches: Sequence[TransferBatch]) -> None:
    """Copy what this rank has of its own."""
    for batch in batches:
        for here, there in batch.schedule.copies:
            own = batch.part(here, of_sources=True)
            part = batch.part(there, of_sources=False)
            if isinstance(own.column, PatchedColumn):
                own.column.write(own, part.views())
            elif part.column is not None:
                part.column.take(part, own.views())


# -- leaves that go one way ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LeafColumn:
    """Leaves of a window that have one plan, with one local tensor each.

    ``ids`` are their positions, ``places`` those in the window. It ``comes_together``
    if what comes may wait until all of it is there: nothing is passed on, and nothing
    so large that it goes straight to its place.
    """

    ids: Sequence[int]
    places: Sequence[int]
    paths: list[Path]
    transfer: Transfer
    schedule: Schedule
    comes_together: bool

    def batch(self, part: Part, kept: dict[int, Column] | None = None) -> TransferBatch:
        """Return what is to be carried of the leaves, from where and to where.

        What it is sent from is found among what is ``kept``, or is kept there.
        """
        columns = {(False, 0): part.target}
        if part.sources:
            first, known = self.ids[0], {} if kept is None else kept
            if first not in known:
                known[first] = column_of(part.sources, lasts=kept is not None)
            columns[True, 0] = known[first]
        return TransferBatch(self.transfer, self.schedule, self.paths, columns=columns)

    def junk(self) -> TransferBatch:
        """Return what takes the place of leaves that there are not."""
        return TransferBatch(self.transfer, self.schedule, self.paths)

    def can_be_fresh(self, old: Sequence[Tensor]) -> bool:
        """Return whether tensors like some can be made when all of them has come."""
        dense = all(t.is_cpu and t.is_contiguous() for t in old)
        return dense and common_size(old) is not None and self.comes_together


class Part(NamedTuple):
    """What this rank has to do with a column.

    From which local tensors it is sent, if there are any, where goes what comes, and
    what then makes the leaves.
    """

    sources: Sequence[Tensor]
    target: Column
    make: Callable[[], Sequence[Leaf]]


NOWHERE: Final = Column(())
"""Where what comes goes if nothing does."""


def common_size(ts: Sequence[Tensor]) -> tuple[int, ...] | None:
    """Return the size that tensors have, None if they have several."""
    sizes = {*map(Tensor.size, ts)}
    return sizes.pop() if len(sizes) == 1 else None


def column_of(ts: Sequence[Tensor], *, lasts: bool = False) -> Column:
    """Return the column of tensors; where they have one size, it is known."""
    return Column(ts, common_size(ts), lasts=lasts)


@lru_cache(maxsize=4096)
def may_wait(me: int, transfer: Transfer, least: int) -> bool:
    """Return whether what comes to a rank may wait until all of it is there.

    Nothing is passed on then, and nothing of ``least`` bytes goes alone to its place.
    """
    schedule = transfer.schedule(me)
    sizes = (cut.numel * transfer.dtype.itemsize for cut in schedule.recvs)
    return not schedule.forwards and max(sizes, default=0) < least


class Planned(Protocol):
    """What is to become of a leaf, as far as columns need it."""

    @property
    def transfers(self) -> Sequence[Transfer]:
        """Return the ways of its local tensors."""
        ...


def columns_of(
    ids: Sequence[int], paths: Sequence[Path], plans: Sequence[Planned], me: int
) -> list[LeafColumn] | None:
    """Return the columns of a window, None if its leaves do not all stand in some.

    Leaves of one and the same plan are a column, if that has one transfer, and is alone
    in having it: order on the wire is that of leaves.
    """
    groups: dict[int, list[int]] = {}
    for k, i in enumerate(ids):
        groups.setdefault(id(plans[i]), []).append(k)
    found: list[LeafColumn] = []
    for places in groups.values():
        own = [ids[k] for k in places]
        ways = plans[own[0]].transfers
        if len(ways) != 1:
            return None
        schedule = ways[0].schedule(me)
        names = [paths[i] for i in own]
        waits = may_wait(me, ways[0], messages.LARGE)
        found.append(LeafColumn(own, places, names, ways[0], schedule, waits))
    return found if len({x.transfer for x in found}) == len(found) else None


def put_together(columns: Sequence[LeafColumn], parts: list[Part]) -> list[Leaf]:
    """Return the leaves of a window, as each column is made; it is let go of then.

    An error tells where the first leaf of the column stands.
    """
    found: list[Leaf] = [None] * sum(len(column.places) for column in columns)
    for column in columns:
        try:
            made = parts.pop(0).make()
        except BaseException as error:
            raise with_place(error, column.paths[0]) from None
        for k, leaf in zip(column.places, made, strict=True):
            found[k] = leaf
    return found


def grads_of(leaves: Sequence[Leaf]) -> list[bool]:
    """Return of which leaves gradients are required, nothing if of none."""
    found = [getattr(leaf, "requires_grad", False) for leaf in leaves]
    return found if any(found) else []


def made_of(fresh: Fresh, grads: Sequence[bool]) -> Sequence[Leaf]:
    """Return tensors that are fresh, with these marks."""
    return with_grads(fresh.made(), grads)


def with_grads(made: Sequence[Tensor], grads: Sequence[bool]) -> Sequence[Tensor]:
    """Return tensors that were made, some of which are to require gradients."""
    for t, wants in zip(made, grads, strict=False):
        t.requires_grad_(wants and (t.is_floating_point() or t.is_complex()))
    return made


Join = Callable[[Sequence[Tensor]], Leaf]
"""What makes a leaf of its local tensors."""


def joined(fresh: Fresh, joins: Sequence[Join]) -> Sequence[Leaf]:
    """Return leaves, each over a tensor that is fresh."""
    return [join([t]) for join, t in zip(joins, fresh.made(), strict=True)]


Over = Callable[[Sequence[Leaf], Sequence[Tensor]], Sequence[Leaf]]
"""What makes leaves as some are, each over another local tensor."""


def remade(fresh: Fresh, over: Over, likes: Sequence[Leaf]) -> Sequence[Leaf]:
    """Return leaves as some are, each over a tensor that is fresh."""
    return over(likes, fresh.made())


class Coming(Protocol):
    """A leaf on its way: made before its data has come, unless ``finish`` makes it."""

    @property
    def leaf(self) -> Leaf: ...

    @property
    def finish(self) -> Callable[[], Leaf] | None: ...


def finished(every: Sequence[Coming]) -> list[Leaf]:
    """Return the leaves, now that their data has come."""
    return [x.finish() if x.finish else x.leaf for x in every]
