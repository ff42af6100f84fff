"""Columns: the leaves of a window that go one way are handled as one.

What is made of them anew is made when all has come, by calls that allocate in torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, NamedTuple

from torch import Tensor

from sdtree.layout.schedule import Schedule, Transfer
from sdtree.path import with_place
from sdtree.typing import Leaf, Path
from sdtree.wire.fresh import Fresh
from sdtree.wire.messages import Column, TransferBatch
from sdtree.wire.transport import goes_alone

is_on_host = attrgetter("is_cpu")


@dataclass(frozen=True, slots=True)
class LeafColumn:
    """Leaves of a window that have one plan, with one local tensor each.

    ``ids`` are their positions, ``places`` those in the window.
    """

    ids: Sequence[int]
    places: Sequence[int]
    paths: list[Path]
    transfer: Transfer
    schedule: Schedule

    def batch(self, part: Part) -> TransferBatch:
        """Return what is to be carried of the leaves, from where and to where."""
        columns = {(False, 0): part.target}
        if part.sources:
            columns[True, 0] = Column(part.sources, common_size(part.sources))
        return TransferBatch(self.transfer, self.schedule, self.paths, columns=columns)

    def junk(self) -> TransferBatch:
        """Return what takes the place of leaves that there are not."""
        return TransferBatch(self.transfer, self.schedule, self.paths)

    @property
    def comes_together(self) -> bool:
        """Return whether what comes may wait until all of it is there.

        Nothing is passed on, and nothing so large that it goes straight to its place.
        """
        width = self.transfer.dtype.itemsize
        return not self.schedule.forwards and not any(
            goes_alone(cut.numel * width) for cut in self.schedule.recvs
        )

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


def columns_of(
    ids: Sequence[int],
    paths: Sequence[Path],
    transfers: Callable[[int], Sequence[Transfer]],
    same: Sequence[object],
    me: int,
) -> list[LeafColumn] | None:
    """Return the columns of a window, None if its leaves do not all stand in some.

    Leaves of which the ``same`` object tells what becomes of them are a column, if it
    has one transfer, and is alone in having it: order on the wire is that of leaves.
    """
    groups: dict[int, list[int]] = {}
    for k, i in enumerate(ids):
        groups.setdefault(id(same[i]), []).append(k)
    found: list[LeafColumn] = []
    for places in groups.values():
        own = [ids[k] for k in places]
        ways = transfers(own[0])
        if len(ways) != 1:
            return None
        schedule = ways[0].schedule(me)
        names = [paths[i] for i in own]
        found.append(LeafColumn(own, places, names, ways[0], schedule))
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
    made = fresh.made()
    for t, wants in zip(made, grads, strict=False):
        t.requires_grad_(wants and (t.is_floating_point() or t.is_complex()))
    return made
