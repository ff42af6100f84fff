"""What all ranks together send each other for a window, counted and not sent.

The ways between ranks follow from layouts alone, as ``schedule`` has them for one rank.
Here they are columns of numbers, one row a cut, so that a thousand ranks are counted in
the time of a few. The count is that of ``wire``, message by message.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from sdtree.layout.layout import Layout, Region
from sdtree.layout.schedule import Transfer, holders_of, place_of, spread
from sdtree.tensors.storage import ALIGNMENT
from sdtree.wire.messages import aligned

Ranks = tuple[int, ...]


class SliceTable(NamedTuple):
    """Cuts on their way, a row each: from which rank, to which, in which hop, and what.

    ``at`` and ``stop`` bound the region in the global tensor. Ranks are told by their
    place among those of the group.
    """

    sender: Tensor
    receiver: Tensor
    hop: Tensor
    at: Tensor
    stop: Tensor


class MessageTable(NamedTuple):
    """Messages of a window, a row each: from whom, to whom, how often, of what bytes.

    ``packed`` is what a message takes beside the leaves where it is sent, nothing if
    another has the same bytes; ``scratch`` what it takes where it is received.
    """

    sender: Tensor
    receiver: Tensor
    times: Tensor
    nbytes: Tensor
    packed: Tensor
    scratch: Tensor


class Share(NamedTuple):
    """Leaves of one transfer in a window: how many, all alike."""

    transfer: Transfer
    times: int


@dataclass(slots=True)
class RankTraffic:
    """For each kind of message how many each rank has a part in, and their bytes."""

    size: int
    messages: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    nbytes: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def add(self, kind: str, messages: Tensor, nbytes: Tensor) -> None:
        """Add so many messages, and bytes, of each rank."""
        for table, found in ((self.messages, messages), (self.nbytes, nbytes)):
            table[kind] = table.get(kind, self.nothing()) + found

    def meet(self, kind: str, nbytes: int, members: Tensor | None = None) -> None:
        """Add a collective of some ranks, or of all, to which each gives so much."""
        ones = self.nothing() + 1 if members is None else self.at(members)
        self.add(kind, ones, ones * nbytes)

    def nothing(self) -> Tensor:
        """Return nought for each rank."""
        return torch.zeros(self.size, dtype=torch.int64)

    def at(self, ranks: Tensor) -> Tensor:
        """Return one for some ranks, nought for the others."""
        return self.nothing().index_fill(0, ranks, 1)


# -- ways --------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def ways(transfer: Transfer, ranks: Ranks) -> SliceTable:
    """Return what goes from rank to rank on a transfer, in a group of these ranks."""
    if transfer.src is not None:
        return _relayed(transfer.src, transfer.target, ranks)
    return _direct(transfer.source, transfer.target, ranks)


def _direct(source: Layout, target: Layout, ranks: Ranks) -> SliceTable:
    held, holding = _sources(source, ranks)
    receiver, wanted = _boxes(target, ranks)
    at = torch.maximum(wanted[:, None, 0], held[None, :, 0])
    stop = torch.minimum(wanted[:, None, 1], held[None, :, 1])
    t, s = (stop > at).all(-1).nonzero(as_tuple=True)
    sender = holding.supplier(s, receiver[t])
    moves = sender != receiver[t]
    t, s, sender = t[moves], s[moves], sender[moves]
    return SliceTable(sender, receiver[t], torch.zeros_like(t), at[t, s], stop[t, s])


class Holding(NamedTuple):
    """Who holds each region: how many, the first ones, and where each rank stands."""

    counts: Tensor
    holders: Tensor
    holds: Tensor
    places: Tensor

    def supplier(self, region: Tensor, receiver: Tensor) -> Tensor:
        """Return who gives each region to a receiver; see ``Transfer.schedule``."""
        turn = self.places[receiver] % self.counts[region]
        given = self.holders[region, turn]
        return torch.where(self.holds[region, receiver], receiver, given)


@lru_cache(maxsize=1024)
def _sources(layout: Layout, ranks: Ranks) -> tuple[Tensor, Holding]:
    """Return the regions of a layout, and who holds them."""
    place = places_of(ranks)
    held = holders_of(layout)
    most = max(map(len, held.values()), default=1)
    counts = torch.tensor([len(found) for found in held.values()], dtype=torch.int64)
    holders = torch.zeros(len(held), most, dtype=torch.int64)
    holds = torch.zeros(len(held), len(ranks), dtype=torch.bool)
    for k, found in enumerate(held.values()):
        mine = torch.tensor([place[rank] for rank in found])
        holders[k, : len(found)] = mine
        holds[k, mine] = True
    turns = torch.tensor([place_of(layout, rank) for rank in ranks])
    return _columns([*held], len(layout.shape)), Holding(counts, holders, holds, turns)


@lru_cache(maxsize=1024)
def _boxes(layout: Layout, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Return the boxes of a layout that hold something, and on which ranks they are."""
    place = places_of(ranks)
    found = [
        (place[rank], (box.offset, box.size))
        for rank in layout.ranks
        for box in layout.boxes[rank]
        if box.numel
    ]
    owners = torch.tensor([rank for rank, _ in found], dtype=torch.int64)
    return owners, _columns([region for _, region in found], len(layout.shape))


def _relayed(src: int, target: Layout, ranks: Ranks) -> SliceTable:
    place = places_of(ranks)
    takes = [(me, cut) for me in target.ranks for cut in spread(src, target, me).recvs]
    regions = _columns([(cut.at, cut.size) for _, cut in takes], len(target.shape))
    rows = [(place[cut.peer], place[me], cut.hop) for me, cut in takes]
    ends = torch.tensor(rows, dtype=torch.int64).view(-1, 3)
    return SliceTable(ends[:, 0], ends[:, 1], ends[:, 2], regions[:, 0], regions[:, 1])


def _columns(regions: Sequence[Region], dims: int) -> Tensor:
    """Return where regions begin and stop: (regions, 2, dims)."""
    found = torch.tensor(regions, dtype=torch.int64).view(len(regions), 2, dims)
    return torch.stack([found[:, 0], found.sum(1)], 1)


@lru_cache(maxsize=64)
def places_of(ranks: Ranks) -> dict[int, int]:
    """Return the place of each rank among those of the group."""
    return {rank: k for k, rank in enumerate(ranks)}


# -- messages ----------------------------------------------------------------------


class ChunkTable(NamedTuple):
    """What of the ways of a transfer is in each bucket, a row each.

    ``end`` numbers the pair of ranks and the hop; ``nbytes`` are those of a leaf, of
    which there are so many ``times``; ``what`` is a number for the region, and another
    for any other region.
    """

    bucket: Tensor
    end: Tensor
    nbytes: Tensor
    times: Tensor
    what: Tensor


def pieces_of(
    shares: Sequence[Share], ranks: Ranks, limit: int, nbytes: int
) -> tuple[ChunkTable, int]:
    """Return what a window has to carry, and in how many buckets.

    One has it all, but of a leaf that is larger than a bucket each slab has its own.
    """
    found: list[ChunkTable] = []
    buckets = 0
    for k, share in enumerate(shares):
        regions = None
        if nbytes > limit:
            regions = _slabs(share.transfer, max(1, limit // share.times))
        found.append(_pieces(share, ranks, regions, buckets, k))
        buckets += 0 if regions is None else len(regions)
    columns = [torch.cat(column) for column in zip(*found, strict=True)]
    return ChunkTable(*columns), max(1, buckets)


@lru_cache(maxsize=4096)
def _slabs(transfer: Transfer, limit: int) -> Tensor:
    return _columns([*transfer.slabs(limit)], len(transfer.target.shape))


def _pieces(
    share: Share, ranks: Ranks, regions: Tensor | None, first: int, number: int
) -> ChunkTable:
    found, size = ways(share.transfer, ranks), share.transfer.dtype.itemsize
    count = len(ranks)
    end = (found.hop * count + found.sender) * count + found.receiver
    bounds = (*found.at.unbind(1), *found.stop.unbind(1))
    what = _mixed(torch.full_like(end, number), *bounds)
    if regions is None:
        numel = (found.stop - found.at).prod(-1)
        many = torch.full_like(end, share.times)
        return ChunkTable(torch.full_like(end, first), end, numel * size, many, what)
    at = torch.maximum(found.at[:, None], regions[None, :, 0])
    stop = torch.minimum(found.stop[:, None], regions[None, :, 1])
    numel = (stop - at).clamp(min=0).prod(-1)
    way, slab = numel.nonzero(as_tuple=True)
    many = torch.full_like(way, share.times)
    return ChunkTable(slab + first, end[way], numel[way, slab] * size, many, what[way])


def _mixed(*columns: Tensor) -> Tensor:
    """Return a number for each row, and another for any other row, but for chance."""
    found = torch.zeros_like(columns[0])
    for column in columns:
        found = (found ^ (found >> 29)) * -4658895280553007687 + column + 1
    return (found ^ (found >> 32)) * -7723592293110705685


def pairs(pieces: ChunkTable, buckets: int, ranks: Ranks, least: int) -> MessageTable:
    """Return the messages between pairs; see ``P2PTransport``.

    Pieces of at least ``least`` bytes go alone. In the last bucket each end of a way
    gets a message with a word, in the others where there is something small for it.
    """
    large = pieces.nbytes >= least
    alone = ChunkTable(*(column[large] for column in pieces))
    small = ChunkTable(*(column[~large] for column in pieces))
    ends, count = pieces.end.unique(), len(ranks)
    step = (int(ends[-1]) // count + 1) * count if len(ends) else count
    words = (buckets - 1) * step + ends
    keys = torch.cat([small.bucket * step + small.end, words])
    none = torch.zeros_like(ends)
    messages, place = keys.unique(return_inverse=True)
    times = torch.cat([small.times, none])
    body = torch.cat([small.nbytes, none])
    total = summed(len(messages), place, times * aligned(body))
    is_one = summed(len(messages), place, times) == 1
    bare = summed(len(messages), place, times * body)
    has_word = messages >= (buckets - 1) * step
    nbytes = torch.where(is_one, bare, total)
    nbytes = torch.where(has_word, total + ALIGNMENT, nbytes)
    content = summed(len(messages), place, torch.cat([small.what, none]))
    is_first = _is_first(_mixed(messages // count, content))  # of its sender and hop
    end = torch.cat([alone.end, messages % step])
    direct = torch.zeros_like(alone.nbytes)
    return MessageTable(
        end // count % count,
        end % count,
        torch.cat([alone.times, torch.ones_like(nbytes)]),
        torch.cat([alone.nbytes, nbytes]),
        torch.cat([direct, nbytes * is_first]),
        torch.cat([direct, nbytes]),
    )


def _is_first(numbers: Tensor) -> Tensor:
    """Return for each number whether none before it is the same."""
    found, place = numbers.unique(return_inverse=True)
    rows = torch.arange(len(numbers))
    first = torch.full_like(found, len(numbers))
    return rows == first.scatter_reduce(0, place, rows, "amin")[place]


def collectives(
    pieces: ChunkTable, buckets: int, shares: Sequence[Share], ranks: Ranks
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the bytes that each rank gives to each all_to_all of a window, and takes.

    ``ranks`` are those that take part; see ``AllToAllTransport``.
    """
    count = len(ranks)
    hops = max((share.transfer.hops for share in shares), default=1)
    for bucket in range(buckets):
        for hop in range(hops):
            here = (pieces.bucket == bucket) & (pieces.end // (count * count) == hop)
            rooms = pieces.times[here] * aligned(pieces.nbytes[here])
            end = pieces.end[here]
            words = count * ALIGNMENT * (bucket == buckets - 1 and hop == hops - 1)
            given = summed(count, end // count % count, rooms) + words
            yield given, summed(count, end % count, rooms) + words


def summed(size: int, places: Tensor, numbers: Tensor) -> Tensor:
    """Return the sum of the numbers that belong to each of so many places."""
    return torch.zeros(size, dtype=torch.int64).index_add(0, places, numbers)
