"""What a window has to carry: its leaves as batches, each of those that go one way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from sdtree.exchange.columns import put_together
from sdtree.exchange.leaf_plan import LeafBuffers, finished
from sdtree.exchange.transfer_plan import Deal
from sdtree.exchange.windows import ExchangeWindow
from sdtree.layout.schedule import Transfer
from sdtree.typing import Leaf
from sdtree.wire.messages import TransferBatch


class Load(NamedTuple):
    """What a window has to carry on this rank, and what then makes its leaves."""

    batches: list[TransferBatch]
    finish: Callable[[], list[Leaf]]


def loaded(
    deal: Deal, window: ExchangeWindow, leaves: Sequence[Leaf], own: int
) -> Load:
    """Return the leaves of a window as they are to travel, by columns if they can.

    The leaves from ``own`` on are only sent, and are not made here.
    """
    found = None if window.columns is None else _by_columns(deal, window, leaves)
    if found is not None:
        return found
    buffers = deal.load(window.ids, leaves)
    mine = [x for i, x in zip(window.ids, buffers, strict=True) if i < own]
    return Load(batches_of(deal, window, buffers), partial(finished, mine))


def _by_columns(
    deal: Deal, window: ExchangeWindow, leaves: Sequence[Leaf]
) -> Load | None:
    columns = window.columns or ()
    parts = [deal.part_of(x, [leaves[k] for k in x.places]) for x in columns]
    found = [part for part in parts if part is not None]
    if len(found) < len(parts):
        return None
    batches = [x.batch(part) for x, part in zip(columns, found, strict=True)]
    return Load(batches, partial(put_together, columns, found))


def batches_of(
    deal: Deal,
    window: ExchangeWindow,
    buffers: Sequence[LeafBuffers] | None = None,
) -> list[TransferBatch]:
    """Return what a window has to carry, the leaves that go one way together.

    It is junk without buffers: then its columns tell it, if there are any.
    """
    if buffers is None and window.columns is not None:
        return [column.junk() for column in window.columns]
    me = deal.rank_group.me
    found: dict[Transfer, TransferBatch] = {}
    known: dict[int, TransferBatch] = {}
    for k, i in enumerate(window.ids):
        if i in deal.leaders:
            continue
        for n, transfer in enumerate(deal.leaf_plans[i].transfers):
            batch = known.get(id(transfer))
            if batch is None:
                batch = found.setdefault(
                    transfer, TransferBatch(transfer, transfer.schedule(me))
                )
                known[id(transfer)] = batch
            if buffers is None:
                batch.add(deal.paths[i])
            else:
                x = buffers[k]
                batch.add(deal.paths[i], x.sources[n], x.targets[n])
    return [*found.values()]


def buckets_of(
    window: ExchangeWindow, batches: list[TransferBatch], limit: int
) -> Iterator[list[TransferBatch]]:
    """Yield the batches of a window: at once, or slab by slab if it is too large.

    Then it is a single leaf, and each slab goes by itself, with those of parts that go
    the same way.
    """
    if window.nbytes <= limit:
        yield batches
        return
    for batch in batches:
        for region in batch.transfer.slabs(max(1, limit // len(batch.paths))):
            yield [replace(batch, schedule=batch.schedule.within(region))]
