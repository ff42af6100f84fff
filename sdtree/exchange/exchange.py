"""A crossing: a course up to a stage that communicates, the exchange, and one after it.

All ranks agree before the first byte. A rank that fails later keeps to what was agreed,
with junk, and says so; then all raise together, and nobody waits in vain.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush

from sdtree.errors import RankFailed
from sdtree.exchange.exchange_plan import Proposal
from sdtree.exchange.guards import (
    guarded,
    hold_open,
    let_go,
    meeting,
    refuse_during_stream,
)
from sdtree.exchange.joint import me_in
from sdtree.exchange.leaf_plan import Cargo
from sdtree.exchange.windows import Batch, Channel, cut
from sdtree.kinds.handler import tensors_of
from sdtree.layout.schedule import Lane
from sdtree.path import named_by
from sdtree.tensors.modes import making, writing
from sdtree.transform.run import Passed
from sdtree.transform.stages import Stage, next_to_communicate
from sdtree.typing import Leaf, Path, Tree
from sdtree.wire.agreement import Canonical, settle
from sdtree.wire.collectives import Team, count, greatest, is_collective
from sdtree.wire.transport import Collective, Load, Pairs, Wire, keep


@dataclass(slots=True, eq=False)
class Crossing:
    """One tree on its way through a stage that communicates, and those around it.

    ``all_settle`` tells whether all ranks of the group meet again at the end.
    """

    proposal: Proposal
    all_settle: bool
    batches: deque[Batch]
    wires: dict[Channel, Wire] = field(default_factory=dict[Channel, Wire])
    error: BaseException | None = None
    at: Path | None = None
    dead: set[Channel] = field(default_factory=set[Channel])
    tainted: set[Channel] = field(default_factory=set[Channel])
    has_ended: bool = False

    @classmethod
    def start(cls, tree: Tree, stages: Sequence[Stage]) -> Crossing:
        """Return the crossing of a tree, agreed on by all ranks. Collective."""
        stage = next_to_communicate(stages)
        assert stage is not None
        refuse_during_stream(stage.text)
        with guarded(stage, tree), making():
            proposal = Proposal.of(tree, stages, stage, Team.of(stage.group))
            offers = proposal.offers()
            proposal.check_data()
            proposal.try_buckets()
        with making():
            return cls.agreed(*proposal.agree(offers))

    @classmethod
    def agreed(cls, proposal: Proposal, all_settle: bool) -> Crossing:
        """Return the crossing of what is agreed on, ready for its first window."""
        deal, limit = proposal.deal, proposal.stage.bucket_bytes
        batches = deque(cut(proposal.order, deal, deal.plan.legs, limit))
        crossing = cls(proposal, all_settle, batches, error=deal.plan.fault)
        for channel in sorted({b.channel for b in batches if b.channel}):
            crossing.wires[channel] = crossing._wire(channel)
        return crossing

    def _wire(self, channel: Channel) -> Wire:
        """Return what carries data between the ranks of a channel."""
        assert self.proposal.team is not None
        device = self.proposal.team.device(channel.device)
        if is_collective(device):
            return Collective(self.proposal.team.of_ranks(channel.ranks), device)
        if any(b.settles for b in self.batches if b.channel == channel):
            self.proposal.team.of_ranks(channel.ranks)
        room = self.proposal.stage.bucket_bytes
        return Pairs.of(self.proposal.team, channel.ranks, device, room)

    # -- window by window ----------------------------------------------------------

    def call(self) -> Tree:
        """Return the tree that results. Collective."""
        return self.proposal.after.collect(self._windows())

    def _windows(self) -> Iterator[Passed]:
        """Yield the leaves that come out, with their positions; then settle."""
        while self.batches:
            passed = self._pass_next()
            if passed is not None:
                yield passed
            del passed
        if (told := self._report()) is not None:
            yield told
        self._finish()

    def _report(self) -> Passed | None:
        """Return what becomes of the report, if one is asked for."""
        ids, report = self.proposal.beside, self.proposal.deal.report
        if ids and self.error is None:
            with self._own_work(Batch(None)):
                return self.proposal.after.act(ids, [report] * len(ids))
        return None

    def stream(self) -> Generator[tuple[Path, Leaf]]:
        """Yield each (path, leaf), ordered by the paths at the stage that communicates.

        What comes early waits for its turn: of each set of ranks one window at most.
        """
        paths = self.proposal.after.paths()
        waiting: list[tuple[Canonical, int, Leaf]] = []
        while self.batches:
            passed = self._pass_next()
            if passed is not None:
                for i, leaf in zip(*passed, strict=True):
                    heappush(waiting, (self.proposal.keys[i], i, leaf))
            del passed
            bound = None
            if self.batches:
                bound = self.proposal.keys[self.batches[0].ids[0]]
            while waiting and (bound is None or waiting[0][0] < bound):
                _, i, leaf = heappop(waiting)
                yield paths[i], leaf
                del leaf
        for i, leaf in zip(*(self._report() or ((), ())), strict=True):
            yield paths[i], leaf
        self._finish()

    def hold_open(self) -> None:
        """Let no other communication begin before this one has ended."""
        hold_open(self)

    def drain(self) -> None:
        """Do what is left of this rank's part, and let go of what comes of it."""
        if self.has_ended:
            return
        try:
            for _ in self._windows():
                pass
        finally:
            self._end()

    def _end(self) -> None:
        self.has_ended = True
        let_go(self)

    def _pass_next(self) -> Passed | None:
        """Return what comes out of the next window.

        An error that comes from there is the backend's: it is no use to go on.
        """
        try:
            return self._pass(self.batches.popleft())
        except Exception as error:
            error.add_note(f"{self.proposal.stage.text} has not come to its end")
            error.add_note(self.proposal.deal.plan.consequence)
            self._end()
            raise

    def _pass(self, batch: Batch) -> Passed | None:
        """Return what comes out of a window, None if it is junk."""
        channel, deal = batch.channel, self.proposal.deal
        if channel in self.dead:
            return None
        leaves = None
        if self.error is None:
            with self._own_work(batch):
                leaves = deal.pull(batch.ids)
        if batch.is_partial and channel is not None:
            leaves = self._reduce(batch, channel, leaves)
        cargo = None
        if leaves is not None and self.error is None:
            with self._own_work(batch), making():
                cargo = deal.load(batch.ids, leaves)
        del leaves
        with writing():
            sound = self._ship(batch, cargo)
        passed = None
        if cargo is not None and sound:
            with self._own_work(batch):
                own = len(deal.plan.spec)  # what is further goes to others
                ids = [i for i in batch.ids if i < own]
                parts = zip(batch.ids, cargo, strict=True)
                with making():
                    made = [[part.finished() for i, part in parts if i < own]]
                del cargo, parts
                passed = self.proposal.after.act(ids, made.pop())  # no step holds more
        if batch.settles and channel is not None:
            self._settle_among(channel)
        return passed if self.error is None else None

    def _reduce(
        self, batch: Batch, channel: Channel, leaves: Sequence[Leaf] | None
    ) -> Sequence[Leaf] | None:
        """Return the one leaf of a window reduced, and tell whether it was junk."""
        assert self.proposal.team is not None
        deal, team, [i] = self.proposal.deal, self.proposal.team, batch.ids[:1]
        reduced = leaves[0] if leaves else None
        if team.me in deal.members(i):
            with making():
                reduced = deal.reduce(i, reduced)
            count("reduce", sum(t.nbytes for t in tensors_of(reduced)))
        others = team.of_ranks(channel.ranks)
        [bad] = greatest(others, [int(leaves is None)])
        if bad:
            self.tainted.add(channel)
            return None
        return [reduced, *(leaves or ())[1:]]

    def _ship(self, batch: Batch, cargo: Sequence[Cargo] | None) -> bool:
        """Have the data of a window travel; return whether what came is sound."""
        buckets = [*self._buckets(batch, cargo)]
        if batch.channel is None:
            for loads in buckets:
                keep(loads)
            return True
        wire = self.wires[batch.channel]
        for loads in buckets:
            failed = self.error is not None or cargo is None
            wire.carry(loads, failed, is_last=loads is buckets[-1])
        if not wire.finish():
            self.tainted.add(batch.channel)
        return batch.channel not in self.tainted

    def _buckets(
        self, batch: Batch, cargo: Sequence[Cargo] | None
    ) -> Iterator[list[Load]]:
        """Yield the loads of a window: at once, or slab by slab if it is too large.

        Then it is a single leaf, and each slab goes by itself.
        """
        loads, limit = self._loads(batch, cargo), self.proposal.stage.bucket_bytes
        if batch.nbytes <= limit:
            yield loads
            return
        for load in loads:
            for region in load.lane.slabs(limit):
                yield [replace(load, route=load.route.within(region))]

    def _loads(self, batch: Batch, cargo: Sequence[Cargo] | None) -> list[Load]:
        """Return what a window has to carry, the leaves that go one way together."""
        team, deal, paths = self.proposal.team, self.proposal.deal, self.proposal.paths
        me = me_in(team)
        found: dict[Lane, Load] = {}
        known: dict[int, Load] = {}
        for k, i in enumerate(batch.ids):
            if i in deal.plan.leaders:
                continue
            for n, lane in enumerate(deal.plan.legs[i].lanes):
                load = known.get(id(lane))
                if load is None:
                    load = found.setdefault(lane, Load(lane, lane.route(me)))
                    known[id(lane)] = load
                if cargo is None:
                    load.add(paths[i])
                else:
                    load.add(paths[i], cargo[k].sources[n], cargo[k].targets[n])
        return [*found.values()]

    # -- failure -------------------------------------------------------------------

    @contextmanager
    def _own_work(self, batch: Batch) -> Generator[None]:
        """Note the error of this rank's own work; the others are told in time."""
        try:
            yield
        except BaseException as error:  # an interrupt, too
            self._fail(error, self._place(error, batch))

    def _fail(self, error: BaseException, at: Path | None = None) -> None:
        self.error, self.at = error, at

    def _place(self, error: BaseException, batch: Batch) -> Path | None:
        """Return the path that an error speaks of, among those of a window."""
        paths = [self.proposal.paths[i] for i in batch.ids]
        return paths[0] if len(paths) == 1 else named_by(error, paths)

    def _settle_among(self, channel: Channel) -> None:
        """Hear whether a rank of the channel failed: then nothing more moves there."""
        assert self.proposal.team is not None
        failed = self.error is not None or channel in self.tainted
        [bad] = greatest(self.proposal.team.of_ranks(channel.ranks), [int(failed)])
        if bad:
            self.dead.add(channel)

    def _finish(self) -> None:
        """Make the last checks, hear from all ranks, and raise if one failed."""
        self._end()
        if self.error is None:
            try:
                self.proposal.after.check()
            except Exception as error:
                self._fail(error)
        try:
            if self.all_settle and self.proposal.team is not None:
                with meeting(self.proposal.team, self.proposal.stage.text):
                    settle(self.proposal.team, self.error, self.at)
            if self.error is not None:
                raise self.error
            if self.tainted:
                raise RankFailed("another rank failed, and what came from it is junk")
        except BaseException as error:
            error.add_note(self.proposal.deal.plan.consequence)
            raise
