"""What a proposal costs in messages, for all ranks at once: it is counted, not made."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from sdtree.exchange.exchange_plan import Proposal
from sdtree.exchange.leaf_plan import Leg
from sdtree.exchange.transfer_plan import Deal
from sdtree.exchange.windows import Batch, Channel
from sdtree.layout.layout import Layout
from sdtree.layout.schedule import Lane
from sdtree.plan.traffic import (
    Ranks,
    Share,
    Tally,
    collectives,
    pairs,
    pieces_of,
    places_of,
    summed,
    ways,
)
from sdtree.transform.stages import Communicating
from sdtree.wire import transport as shipping
from sdtree.wire.agreement import FIRST, sight
from sdtree.wire.collectives import Team, is_collective

WORD = 8
"""The bytes of a whole number on the wire."""


def planned_team(stage: Communicating, ranks: Ranks, me: int) -> Team:
    """Return the team of a stage, of these ranks if there is no process group."""
    real = Team.of(stage.group)
    if real is None:
        return Team(None, ranks, me, ("cpu",))
    return Team(real.group, real.ranks, real.me, tuple(real.kinds()))


def legs_of(deal: Deal, me: int) -> list[Leg]:
    """Return the legs of a deal, each as a rank sees it that has a part in it."""
    found = list(deal.plan.legs)
    for i in range(len(found)):
        members = deal.members(i)
        if members and me not in members:
            found[i] = deal.leg_on(i, members[0])
    return found


def agreement(
    tally: Tally,
    proposal: Proposal,
    legs: Sequence[Leg],
    everyone: Ranks,
    told: Sequence[int] = (),
) -> None:
    """Count what the ranks of a group tell each other beside data.

    ``told`` are the bytes that some tell of sets of ranks, none if nobody asks.

    It is taken that all that have a part of a leaf see the ties that this rank sees.
    """
    deal, team = proposal.deal, proposal.team
    assert team is not None
    if len(team.ranks) == 1:
        return
    members = _at(team.ranks, everyone)
    sets = {leg.ranks for i in proposal.order if (leg := legs[i]).text}
    sets |= {team.ranks} if deal.plan.common else set()
    most = max(sum(rank in ranks or not ranks for ranks in sets) for rank in team.ranks)
    tally.meet("all_gather", WORD * (3 + 4 * FIRST), members)
    if most > FIRST:
        tally.meet("all_gather", WORD * 4 * (most - FIRST), members)
    for nbytes in _sights(proposal, legs, team):
        tally.meet("all_gather", nbytes, members)
    for nbytes in (WORD, max(told)) if told else ():
        tally.meet("all_gather", nbytes, members)
    if told:
        tally.meet("all_reduce", WORD, members)  # does it fit?
    asked = any(proposal.asks(rank) for rank in _different(deal, team))
    for kind, nbytes in deal.openings() if asked else ():
        tally.meet(kind, nbytes, members)
    if sets:
        tally.meet("all_reduce", WORD, members)  # at the end: has a rank failed?


def _different(deal: Deal, team: Team) -> set[int]:
    """Return this rank, and one in and one outside of each set that shares a leaf."""
    sets = {deal.members(i) for i in range(len(deal.plan.spec))} - {()}
    others = [{*team.ranks}.difference(ranks) for ranks in sets]
    others += [{*ranks}.difference([team.me]) for ranks in sets]
    return {team.me, *(min(ranks) for ranks in others if ranks)}


def _sights(proposal: Proposal, legs: Sequence[Leg], team: Team) -> list[int]:
    """Return how many bytes go round if ranks of a set see other ties than others."""
    every = {rank: _ties_told(rank, proposal, legs) for rank in team.ranks}
    sets = {ranks for told in every.values() for ranks in told}
    if all(
        every[rank].get(ranks) == every[(ranks or team.ranks)[0]].get(ranks)
        for ranks in sets
        for rank in ranks or team.ranks
    ):
        return []
    told = [len(pickle.dumps(_seen_by(rank, proposal))) for rank in team.ranks]
    return [WORD, max(told)]


def _ties_told(
    rank: int, proposal: Proposal, legs: Sequence[Leg]
) -> dict[Ranks, list[list[int]]]:
    """Return the ties that a rank tells each set of ranks it is in."""
    found: dict[Ranks, list[list[int]]] = {}
    for group in proposal.ties(rank):
        leg = legs[group[0]]
        seen = [i for i in group if not proposal.deal.leg_on(i, rank).is_blind]
        if leg.text and (rank in leg.ranks or not leg.ranks) and seen[1:]:
            found.setdefault(leg.ranks, []).append(seen)
    return found


def _seen_by(rank: int, proposal: Proposal) -> dict[Ranks, object]:
    """Return what a rank says of ties, as ``agree`` has it told."""
    legs = {i: proposal.deal.leg_on(i, rank) for i in proposal.order}
    offers = proposal.offers_of(rank, legs)
    return {ranks: sight(offer) for ranks, offer in offers.items()}


# -- windows -----------------------------------------------------------------------


def shipment(
    tally: Tally, proposal: Proposal, batch: Batch, legs: Sequence[Leg], everyone: Ranks
) -> Tensor:
    """Count the messages of a window; return the scratch that each rank takes."""
    channel, team = batch.channel, proposal.team
    if channel is None or team is None:
        return tally.nothing()
    members = _at(channel.ranks, everyone)
    if batch.is_partial:
        [lane] = legs[batch.ids[0]].lanes
        summed = bytes_on(lane.source, lane.dtype, everyone)
        tally.add("reduce", tally.at(members), summed)
        tally.meet("all_reduce", WORD, members)
    if batch.settles:
        tally.meet("all_reduce", WORD, members)
    counts: dict[Lane, int] = {}
    for i in batch.ids:
        for lane in legs[i].lanes if i not in proposal.deal.plan.leaders else ():
            counts[lane] = counts.get(lane, 0) + 1
    shares = tuple(Share(lane, count) for lane, count in counts.items())
    limit = proposal.stage.bucket_bytes
    if is_collective(team.device(channel.device)):
        return _together(tally, shares, channel, limit, batch.nbytes, everyone)
    found = _in_pairs(shares, limit, batch.nbytes, everyone, shipping.LARGE)
    tally.add("send", found.sends, found.sent)
    tally.add("receive", found.takes, found.taken)
    return found.scratch


class Pairwise(NamedTuple):
    """What each rank sends and receives in a window, and the scratch that takes."""

    sends: Tensor
    sent: Tensor
    takes: Tensor
    taken: Tensor
    scratch: Tensor


@lru_cache(maxsize=4096)
def _in_pairs(
    shares: tuple[Share, ...], limit: int, nbytes: int, everyone: Ranks, large: int
) -> Pairwise:
    pieces, buckets = pieces_of(shares, everyone, limit, nbytes)
    found = pairs(pieces, buckets, everyone, large)
    size, ends = len(everyone), (found.sender, found.receiver)
    room = max(limit, int(found.scratch.max()) if len(found.scratch) else 0)
    out, back = (
        summed(size, end, scratch).clamp(max=room)
        for end, scratch in zip(ends, (found.packed, found.scratch), strict=True)
    )
    sends, takes = (summed(size, end, found.times) for end in ends)
    sent, taken = (summed(size, end, found.times * found.nbytes) for end in ends)
    return Pairwise(sends, sent, takes, taken, out + back)


def _together(
    tally: Tally,
    shares: Sequence[Share],
    channel: Channel,
    limit: int,
    nbytes: int,
    everyone: Ranks,
) -> Tensor:
    members, size = _at(channel.ranks, everyone), len(everyone)
    pieces, buckets = pieces_of(shares, channel.ranks, limit, nbytes)
    scratch = tally.nothing()
    for given, taken in collectives(pieces, buckets, shares, channel.ranks):
        tally.add("all_to_all", tally.at(members), summed(size, members, given))
        both = summed(size, members, given + taken)
        scratch = torch.maximum(scratch, both)
    return scratch


# -- leaves on ranks ---------------------------------------------------------------


@lru_cache(maxsize=4096)
def bytes_on(layout: Layout, dtype: torch.dtype, everyone: Ranks) -> Tensor:
    """Return how many bytes of a leaf lie on each rank."""
    found = tuple(rank for rank in layout.ranks if rank in places_of(everyone))
    numels = [sum(box.numel for box in layout.boxes[rank]) for rank in found]
    held = torch.tensor(numels, dtype=torch.int64) * dtype.itemsize
    return summed(len(everyone), _at(found, everyone), held)


@lru_cache(maxsize=4096)
def bytes_moved(lane: Lane, everyone: Ranks) -> tuple[Tensor, Tensor]:
    """Return how many bytes of a leaf each rank sends on a lane, and receives."""
    found = ways(lane, everyone)
    nbytes = (found.stop - found.at).prod(-1) * lane.dtype.itemsize
    sent = summed(len(everyone), found.sender, nbytes)
    return sent, summed(len(everyone), found.receiver, nbytes)


@lru_cache(maxsize=4096)
def mask_of(ranks: Ranks, everyone: Ranks) -> Tensor:
    """Return one for some ranks, nought for the others."""
    return Tally(len(everyone)).at(_at(ranks, everyone))


def _at(ranks: Ranks, everyone: Ranks) -> Tensor:
    places = places_of(everyone)
    return torch.tensor([places[rank] for rank in ranks], dtype=torch.int64)
