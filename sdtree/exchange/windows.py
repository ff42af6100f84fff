"""The windows of an exchange, cut and ordered alike on all ranks, and what they carry.

The leaves that go one way are a batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, NamedTuple

from torch import Tensor

from sdtree.exchange.leaf_plan import LeafBuffers, LeafPlan
from sdtree.exchange.transfer_plan import Transfers
from sdtree.layout.schedule import Transfer
from sdtree.transform.window import sharing
from sdtree.typing import Leaf
from sdtree.wire.columns import LeafColumn, TransferBatch, finished, put_together
from sdtree.wire.messages import Column
from sdtree.wire.transport import Transport

STATUS_BYTES: Final = 256 * 2**20
"""After how many bytes the ranks of a set ask each other whether one has failed."""


@dataclass(slots=True, eq=False)
class Comm:
    """A set of ranks, on what kind of device their data travels, and what carries it.

    ``settles``: they ask each other midway whether one failed. Once it ``is_tainted``
    all that comes is junk, and once it ``is_dead`` nothing more does.
    """

    ranks: tuple[int, ...]
    device: str
    transport: Transport | None = None
    settles: bool = False
    is_tainted: bool = False
    is_dead: bool = False


@dataclass(slots=True)
class ExchangeWindow:
    """The positions of a window, and over which comm it goes, None if it stays.

    ``settles``: the ranks of the comm ask each other after it whether one failed.
    What is written by those of one ``tie`` lies in one memory, and is passed on
    together.
    ``columns`` are its leaves, those that go one way together, None if each goes alone.
    ``kept`` is what they are sent from, by the first of each column, if that lies where
    it lay before.
    """

    comm: Comm | None
    ids: list[int] = field(default_factory=list[int])
    nbytes: int = 0
    is_partial: bool = False
    settles: bool = False
    tie: int | None = None
    columns: Sequence[LeafColumn] | None = None
    kept: dict[int, Column] | None = None


def renewed(windows: Sequence[ExchangeWindow]) -> list[ExchangeWindow]:
    """Return the windows for another exchange of the same, in which nothing failed."""
    found = {window.comm for window in windows if window.comm}
    comms = {x: Comm(x.ranks, x.device, settles=x.settles) for x in found}
    return [replace(x, comm=x.comm and comms[x.comm]) for x in windows]


def cut(
    ids: Sequence[int],
    transfers: Transfers,
    limit: int,
    leaf_plans: Sequence[LeafPlan] | None = None,
) -> list[ExchangeWindow]:
    """Return the windows, in the order of the first leaf in each.

    A window has leaves of one comm, of about ``limit`` bytes; a leaf whose terms
    are to be reduced goes alone, and what travels with a leader goes where that goes.
    Leaves that stay come together if the tensors that they have share storage, which
    stages after would else act on one by one. ``leaf_plans`` are those of another rank.
    """
    plans = transfers.leaf_plans if leaf_plans is None else leaf_plans
    found = _filled(ids, plans, transfers.leaders, limit)
    _mark(found)
    found = _with_ties(found, transfers)
    if transfers.targets is not None and len(found) > 1:
        _mark_ties(found, transfers.targets.tensors)
    for window in found if leaf_plans is None else ():
        if window.nbytes <= limit and not window.is_partial:
            window.columns = transfers.columns(window.ids)
    return found


def _filled(
    ids: Sequence[int],
    plans: Sequence[LeafPlan],
    leaders: Mapping[int, int],
    limit: int,
) -> list[ExchangeWindow]:
    """Return the windows, filled one after the other; followers go with a leader."""
    found, followers = list[ExchangeWindow](), _followers(ids, leaders)
    filling, known = Filling({}, {}), dict[int, tuple[Comm | None, Windows]]()
    for i in ids:
        if i in leaders:
            continue
        leaf_plan = plans[i]
        if id(leaf_plan) not in known:
            known[id(leaf_plan)] = filling.of(leaf_plan)
        comm, before = known[id(leaf_plan)]
        is_full = not before or before[-1].nbytes + leaf_plan.nbytes > limit
        if leaf_plan.is_partial or is_full:
            window = ExchangeWindow(comm, is_partial=leaf_plan.is_partial)
            found.append(window)
            before += [] if leaf_plan.is_partial else [window]
        else:
            window = before[-1]
        window.ids.append(i)
        window.nbytes += leaf_plan.nbytes
        window.ids += followers.get(i, ())
    return found


Windows = list[ExchangeWindow]
"""Those of one comm, of which the last is being filled."""


class Filling(NamedTuple):
    """The comms of windows that are being filled, and the windows of each."""

    comms: dict[tuple[tuple[int, ...], str], Comm]
    windows: dict[Comm | None, Windows]

    def of(self, leaf_plan: LeafPlan) -> tuple[Comm | None, Windows]:
        """Return the comm over which a leaf goes, None if it stays, and its windows."""
        comm = None
        if leaf_plan.moves:
            way = leaf_plan.crew or leaf_plan.ranks, leaf_plan.device
            comm = self.comms.setdefault(way, Comm(*way))
        return comm, self.windows.setdefault(comm, [])


def _followers(
    ids: Sequence[int], leaders: Mapping[int, int]
) -> Mapping[int, list[int]]:
    """Return, in their order, the leaves that travel with each that leads some."""
    found: defaultdict[int, list[int]] = defaultdict(list)
    for i in ids if leaders else ():
        if i in leaders:
            found[leaders[i]].append(i)
    return found


def _mark_ties(
    windows: Sequence[ExchangeWindow], targets: Sequence[Sequence[Tensor]]
) -> None:
    """Mark the windows whose targets lie in one memory, of which all are written."""
    held = [
        (k, t)
        for k, window in enumerate(windows)
        for i in window.ids
        if i < len(targets)
        for t in targets[i]
    ]
    groups = sharing([t for _, t in held], [k for k, _ in held], len(windows))
    for number, group in enumerate(groups):
        for k in group if len(group) > 1 else ():
            windows[k].tie = number


def _with_ties(
    windows: Sequence[ExchangeWindow], transfers: Transfers
) -> list[ExchangeWindow]:
    """Return the windows, as one those that stay and have members of one tie."""
    alone = [window for window in windows if window.comm is None]
    if len(alone) < 2:
        return [*windows]
    held = [
        (k, t)
        for k, window in enumerate(alone)
        for i in window.ids
        for t in transfers.stays(i)
    ]
    groups = sharing([t for _, t in held], [k for k, _ in held], len(alone))
    for first, *others in groups:
        for k in others:
            alone[first].ids += alone[k].ids
            alone[first].nbytes += alone[k].nbytes
            alone[k].ids = []
    return [window for window in windows if window.ids]


def _mark(windows: Sequence[ExchangeWindow]) -> None:
    """Mark after which windows the ranks of a comm settle; not after its last."""
    passed: defaultdict[Comm, int] = defaultdict(int)
    last = {window.comm: window for window in windows}
    for window in windows:
        if window.comm is None:
            continue
        passed[window.comm] += window.nbytes
        if passed[window.comm] >= STATUS_BYTES and last[window.comm] is not window:
            window.settles = window.comm.settles = True
            passed[window.comm] = 0


# -- what they carry -----------------------------------------------------------------


class Load(NamedTuple):
    """What a window has to carry on this rank, and what then makes its leaves."""

    batches: list[TransferBatch]
    finish: Callable[[], list[Leaf]]


def loaded(
    transfers: Transfers, window: ExchangeWindow, leaves: Sequence[Leaf], own: int
) -> Load:
    """Return the leaves of a window as they are to travel, by columns if they can.

    The leaves from ``own`` on are only sent, and are not made here.
    """
    found = None if window.columns is None else _by_columns(transfers, window, leaves)
    if found is not None:
        return found
    buffers = transfers.load(window.ids, leaves)
    mine = [x for i, x in zip(window.ids, buffers, strict=True) if i < own]
    return Load(batches_of(transfers, window, buffers), partial(finished, mine))


def _by_columns(
    transfers: Transfers, window: ExchangeWindow, leaves: Sequence[Leaf]
) -> Load | None:
    columns = window.columns or ()
    parts = [transfers.part_of(x, [leaves[k] for k in x.places]) for x in columns]
    found = [part for part in parts if part is not None]
    if len(found) < len(parts):
        return None
    pairs = zip(columns, found, strict=True)
    batches = [x.batch(part, window.kept) for x, part in pairs]
    return Load(batches, partial(put_together, columns, found))


def batches_of(
    transfers: Transfers,
    window: ExchangeWindow,
    buffers: Sequence[LeafBuffers] | None = None,
) -> list[TransferBatch]:
    """Return what a window has to carry, the leaves that go one way together.

    It is junk without buffers: then its columns tell it, if there are any.
    """
    if buffers is None and window.columns is not None:
        return [column.junk() for column in window.columns]
    me = transfers.rank_group.me
    found: dict[Transfer, TransferBatch] = {}
    known: dict[int, TransferBatch] = {}
    for k, i in enumerate(window.ids):
        if i in transfers.leaders:
            continue
        for n, transfer in enumerate(transfers.leaf_plans[i].transfers):
            batch = known.get(id(transfer))
            if batch is None:
                batch = found.setdefault(
                    transfer, TransferBatch(transfer, transfer.schedule(me))
                )
                known[id(transfer)] = batch
            if buffers is None:
                batch.add(transfers.paths[i])
            else:
                x = buffers[k]
                batch.add(transfers.paths[i], x.sources[n], x.targets[n])
    return [*found.values()]


def slabs_of(
    batches: Sequence[TransferBatch], limit: int
) -> Iterator[list[TransferBatch]]:
    """Yield the batches of a window that is too large slab by slab.

    It is a single leaf, and each slab goes by itself, with those of parts that go the
    same way.
    """
    for batch in batches:
        for region in batch.transfer.slabs(max(1, limit // len(batch.paths))):
            yield [replace(batch, schedule=batch.schedule.within(region))]
