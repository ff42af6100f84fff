"""What an exchange costs in messages, for all ranks at once: counted, not made."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from sdtree.exchange.exchange_plan import ExchangePlan
from sdtree.exchange.leaf_plan import LeafPlan
from sdtree.exchange.transfer_plan import Transfers
from sdtree.exchange.windows import Comm, ExchangeWindow
from sdtree.kinds.abstract import Abstract, nbytes_of, parts_of
from sdtree.layout.layout import Layout
from sdtree.layout.schedule import Transfer
from sdtree.plan.traffic import (
    Ranks,
    RankTraffic,
    Share,
    collectives,
    pairs,
    pieces_of,
    places_of,
    summed,
    ways,
)
from sdtree.transform.stages import CollectiveStage
from sdtree.wire import messages as shipping
from sdtree.wire.agreement import FIRST, sight
from sdtree.wire.collectives import RankGroup, is_collective

WORD = 8
"""The bytes of a whole number on the wire."""


def planned_rank_group(stage: CollectiveStage, ranks: Ranks, me: int) -> RankGroup:
    """Return the group of a stage, of these ranks if there is no process group."""
    real = RankGroup.of(stage.group)
    if real.is_there:
        ranks, me = real.ranks, real.me
    return replace(real, ranks=ranks, me=me, others=0, is_planned=True)


def agreement(
    traffic: RankTraffic,
    plan: ExchangePlan,
    leaf_plans: Sequence[LeafPlan],
    everyone: Ranks,
    told: Sequence[int] = (),
) -> None:
    """Count what the ranks of a group tell each other beside data.

    ``told`` are the bytes that some tell of sets of ranks, none if nobody asks.

    It is taken that all that have a part of a leaf see the ties that this rank sees.
    """
    transfers, rank_group = plan.transfers, plan.rank_group
    if len(rank_group.ranks) == 1:
        return
    members = _at(rank_group.ranks, everyone)
    sets = {leaf_plan.ranks for i in plan.order if (leaf_plan := leaf_plans[i]).text}
    sets |= {rank_group.ranks} if transfers.common else set()
    most = max(
        sum(rank in ranks or not ranks for ranks in sets) for rank in rank_group.ranks
    )
    traffic.meet("all_gather", WORD * (3 + 4 * FIRST), members)
    if most > FIRST:
        traffic.meet("all_gather", WORD * 4 * (most - FIRST), members)
    for nbytes in _sights(plan, rank_group):
        traffic.meet("all_gather", nbytes, members)
    for nbytes in (WORD, max(told)) if told else ():
        traffic.meet("all_gather", nbytes, members)
    if told:
        traffic.meet("all_reduce", WORD, members)  # does it fit?
    asked = any(plan.asks(rank) for rank in _different(transfers, rank_group))
    for kind, nbytes in transfers.openings() if asked else ():
        traffic.meet(kind, nbytes, members)
    if sets:
        traffic.meet("all_reduce", WORD, members)  # at the end: has a rank failed?


def _different(transfers: Transfers, rank_group: RankGroup) -> set[int]:
    """Return this rank, and one in and one outside of each set that shares a leaf."""
    sets = {transfers.goals.members(i) for i in range(len(transfers.spec))} - {()}
    others = [{*rank_group.ranks}.difference(ranks) for ranks in sets]
    others += [{*ranks}.difference([rank_group.me]) for ranks in sets]
    return {rank_group.me, *(min(ranks) for ranks in others if ranks)}


def _sights(plan: ExchangePlan, rank_group: RankGroup) -> list[int]:
    """Return how many bytes go round if ranks of a set see other ties than others."""
    every = {
        rank: plan.ties_told(rank, partial(plan.transfers.goals.leaf_plan, me=rank))
        for rank in rank_group.ranks
    }
    sets = {ranks for told in every.values() for ranks in told}
    if all(
        every[rank].get(ranks) == every[(ranks or rank_group.ranks)[0]].get(ranks)
        for ranks in sets
        for rank in ranks or rank_group.ranks
    ):
        return []
    told = [len(pickle.dumps(_seen_by(rank, plan))) for rank in rank_group.ranks]
    return [WORD, max(told)]


def _seen_by(rank: int, plan: ExchangePlan) -> dict[Ranks, object]:
    """Return what a rank says of ties, as ``agree`` has it told."""
    leaf_plans = {i: plan.transfers.goals.leaf_plan(i, rank) for i in plan.order}
    fingerprints = plan.fingerprints_of(rank, leaf_plans)
    return {ranks: sight(fingerprint) for ranks, fingerprint in fingerprints.items()}


# -- windows -----------------------------------------------------------------------


def shipment(
    traffic: RankTraffic,
    plan: ExchangePlan,
    window: ExchangeWindow,
    leaf_plans: Sequence[LeafPlan],
    everyone: Ranks,
) -> Tensor:
    """Count the messages of a window; return the scratch that each rank takes."""
    comm, rank_group = window.comm, plan.rank_group
    if comm is None:
        return traffic.nothing()
    members = _at(comm.ranks, everyone)
    if window.is_partial:
        [transfer] = leaf_plans[window.ids[0]].transfers
        summed = bytes_on(transfer.source, transfer.dtype, everyone)
        terms = _at(transfer.source.ranks, everyone)
        traffic.add("reduce", traffic.at(terms), summed)
        traffic.meet("all_reduce", WORD, members)
    if window.settles:
        traffic.meet("all_reduce", WORD, members)
    counts: dict[Transfer, int] = {}
    for i in window.ids:
        leads = i not in plan.transfers.leaders
        for transfer in leaf_plans[i].transfers if leads else ():
            counts[transfer] = counts.get(transfer, 0) + 1
    shares = tuple(Share(transfer, count) for transfer, count in counts.items())
    limit = plan.stage.bucket_bytes
    if is_collective(rank_group.device(comm.device)):
        return _together(traffic, shares, comm, limit, window.nbytes, everyone)
    found = _in_pairs(shares, limit, window.nbytes, everyone, shipping.LARGE)
    traffic.add("send", found.sends, found.sent)
    traffic.add("receive", found.takes, found.taken)
    return found.scratch


class WindowCost(NamedTuple):
    """What each rank sends and receives in a window, and the scratch that takes."""

    sends: Tensor
    sent: Tensor
    takes: Tensor
    taken: Tensor
    scratch: Tensor


@lru_cache(maxsize=4096)
def _in_pairs(
    shares: tuple[Share, ...], limit: int, nbytes: int, everyone: Ranks, large: int
) -> WindowCost:
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
    return WindowCost(sends, sent, takes, taken, out + back)


def _together(
    traffic: RankTraffic,
    shares: Sequence[Share],
    comm: Comm,
    limit: int,
    nbytes: int,
    everyone: Ranks,
) -> Tensor:
    members, size = _at(comm.ranks, everyone), len(everyone)
    pieces, buckets = pieces_of(shares, comm.ranks, limit, nbytes)
    scratch = traffic.nothing()
    for given, taken in collectives(pieces, buckets, shares, comm.ranks):
        traffic.add("all_to_all", traffic.at(members), summed(size, members, given))
        both = summed(size, members, given + taken)
        scratch = torch.maximum(scratch, both)
    return scratch


# -- leaves on ranks ---------------------------------------------------------------


def bytes_of_form(form: Abstract, everyone: Ranks) -> Tensor:
    """Return the bytes that each rank has of a leaf of a form."""
    if form.layout is None or form.dtype is None:
        return torch.full((len(everyone),), nbytes_of(form), dtype=torch.int64)
    parts = parts_of(form, form.layout)
    held = [bytes_on(part, dtype, everyone) for part, _, dtype in parts]
    return torch.stack(held).sum(0)


@lru_cache(maxsize=4096)
def bytes_on(layout: Layout, dtype: torch.dtype, everyone: Ranks) -> Tensor:
    """Return how many bytes of a leaf lie on each rank."""
    found = tuple(rank for rank in layout.ranks if rank in places_of(everyone))
    numels = [sum(box.numel for box in layout.boxes[rank]) for rank in found]
    held = torch.tensor(numels, dtype=torch.int64) * dtype.itemsize
    return summed(len(everyone), _at(found, everyone), held)


@lru_cache(maxsize=4096)
def bytes_moved(transfer: Transfer, everyone: Ranks) -> tuple[Tensor, Tensor]:
    """Return how many bytes of a leaf each rank sends on a transfer, and receives."""
    found = ways(transfer, everyone)
    nbytes = (found.stop - found.at).prod(-1) * transfer.dtype.itemsize
    sent = summed(len(everyone), found.sender, nbytes)
    return sent, summed(len(everyone), found.receiver, nbytes)


@lru_cache(maxsize=4096)
def mask_of(ranks: Ranks, everyone: Ranks) -> Tensor:
    """Return one for some ranks, nought for the others."""
    return RankTraffic(len(everyone)).at(_at(ranks, everyone))


def _at(ranks: Ranks, everyone: Ranks) -> Tensor:
    places = places_of(everyone)
    return torch.tensor([places[rank] for rank in ranks], dtype=torch.int64)
