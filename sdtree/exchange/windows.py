"""Batches: the windows of a crossing, cut and ordered alike on all ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from sdtree.exchange.leaf_plan import Leg
from sdtree.exchange.transfer_plan import Deal
from sdtree.transform.window import sharing

STATUS_BYTES: Final = 256 * 2**20
"""After how many bytes the ranks of a set ask each other whether one has failed."""


class Channel(NamedTuple):
    """A set of ranks, and on what kind of device their data travels."""

    ranks: tuple[int, ...]
    device: str

    def __hash__(self) -> int:
        """Return what equal channels share: cheap, since there may be many ranks."""
        return hash((self.ranks[:1], self.device))


@dataclass(slots=True)
class Batch:
    """The positions of a window, and over which channel it goes, None if it stays.

    ``settles``: the ranks of the channel ask each other after it whether one failed.
    """

    channel: Channel | None
    ids: list[int] = field(default_factory=list[int])
    nbytes: int = 0
    is_partial: bool = False
    settles: bool = False


def cut(ids: Sequence[int], deal: Deal, legs: Sequence[Leg], limit: int) -> list[Batch]:
    """Return the windows, in the order of the first leaf in each.

    A window has leaves of one channel, of about ``limit`` bytes; a leaf whose terms
    are to be reduced goes alone, and what travels with a leader goes where that goes.
    Leaves that stay come together if the tensors that they have share storage, which
    stages after would else act on one by one.
    """
    leaders = deal.plan.leaders
    followers: defaultdict[int, list[int]] = defaultdict(list)
    for i in ids if leaders else ():
        if i in leaders:
            followers[leaders[i]].append(i)
    found: list[Batch] = []
    filling: dict[Channel | None, list[Batch]] = {}
    known: dict[int, tuple[Channel | None, list[Batch]]] = {}
    for i in ids:
        if i in leaders:
            continue
        leg = legs[i]
        if id(leg) not in known:
            ranks = leg.crew or leg.ranks
            channel = Channel(ranks, leg.device) if leg.moves else None
            known[id(leg)] = channel, filling.setdefault(channel, [])
        channel, before = known[id(leg)]
        if leg.is_partial:
            batch = Batch(channel, is_partial=True)
            found.append(batch)
        elif not before or before[-1].nbytes + leg.nbytes > limit:
            batch = Batch(channel)
            found.append(batch)
            before.append(batch)
        else:
            batch = before[-1]
        batch.ids.append(i)
        batch.nbytes += leg.nbytes
        if i in followers:
            batch.ids += followers[i]
    _mark(found)
    return _with_ties(found, deal)


def _with_ties(batches: Sequence[Batch], deal: Deal) -> list[Batch]:
    """Return the windows, as one those that stay and have members of one tie."""
    alone = [batch for batch in batches if batch.channel is None]
    if len(alone) < 2:
        return [*batches]
    held = [
        (k, t)
        for k, batch in enumerate(alone)
        for i in batch.ids
        for t in deal.stays(i)
    ]
    groups = sharing([t for _, t in held], [k for k, _ in held], len(alone))
    for first, *others in groups:
        for k in others:
            alone[first].ids += alone[k].ids
            alone[first].nbytes += alone[k].nbytes
            alone[k].ids = []
    return [batch for batch in batches if batch.ids]


def _mark(batches: Sequence[Batch]) -> None:
    """Mark after which windows the ranks of a channel settle; not after its last."""
    passed: defaultdict[Channel, int] = defaultdict(int)
    last = {batch.channel: batch for batch in batches}
    for batch in batches:
        if batch.channel is None:
            continue
        passed[batch.channel] += batch.nbytes
        if passed[batch.channel] >= STATUS_BYTES and last[batch.channel] is not batch:
            batch.settles = True
            passed[batch.channel] = 0
