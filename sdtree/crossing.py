"""A crossing: a course up to a stage that communicates, the exchange, and one after it.

All ranks agree before the first byte. A rank that fails later keeps to what was agreed,
with junk, and says so; then all raise together, and nobody waits in vain.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import Final

import torch

from sdtree.agree import Canonical, Offer, agree, canonical, join_as_failed, settle
from sdtree.batches import Batch, Channel, cut
from sdtree.course import Course, Passed
from sdtree.deals import Cargo, Deal, Lane, Leg, Origin
from sdtree.errors import RankFailed, RankMismatch
from sdtree.joint import check_members
from sdtree.kinds.abstract import look_at
from sdtree.leaf import tensors_of
from sdtree.path import named_by, where
from sdtree.shipping import Collective, Load, Pairs, Wire, keep
from sdtree.stages import Communicating, Stage, next_to_communicate
from sdtree.treespec import take
from sdtree.typing import Leaf, Path, Tree
from sdtree.wire import Team, count, greatest, is_collective

OFFERS: Final = 1
ASKS: Final = 2
"""What a rank notes in the agreement: whether it offers, and asks to be told more."""

_OPEN: Final[list[object]] = []
"""The crossing whose stream is open: until it is closed, no other may begin."""


def refuse_during_stream(text: str) -> None:
    """Raise if a stream is open: what ranks exchange would mix with what it brings."""
    if _OPEN:
        raise RuntimeError(
            f"{text}: a stream that communicates is open on this rank; exhaust it or "
            "close it first, best in a with block"
        )


@contextmanager
def failing_together(stage: Communicating | None, tree: Tree) -> Generator[None]:
    """Tell the others, who wait in the agreement of a stage, of an error in here.

    They hear its path, too, if it names one of those in the tree.
    """
    try:
        yield
    except Exception as error:
        team = None if stage is None or not stage.verify else Team.of(stage.group)
        if team is not None and team.others and not _OPEN:
            at = None
            with suppress(Exception):
                at = named_by(error, take(tree)[1].paths())
            join_as_failed(team, error, at)
        raise


def is_source(stage: Communicating | None) -> bool:
    """Return whether this rank has the tree that comes to a stage."""
    if stage is None or stage.src is None:
        return True
    return _has_tree(stage, Team.of(stage.group))


def _has_tree(stage: Communicating, team: Team | None) -> bool:
    return stage.src is None or team is None or team.me == stage.src


@dataclass(slots=True, eq=False)
class Crossing:
    """One tree on its way through a stage that communicates, and those around it."""

    stage: Communicating
    team: Team | None
    deal: Deal
    after: Course
    paths: Sequence[Path]
    keys: dict[int, Canonical]
    order: list[int] = field(default_factory=list[int])
    batches: deque[Batch] = field(default_factory=deque[Batch])
    wires: dict[Channel, Wire] = field(default_factory=dict[Channel, Wire])
    all_settle: bool = False
    error: Exception | None = None
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
        with failing_together(stage, tree):
            crossing = cls.foreseen(tree, stages, stage, Team.of(stage.group))
            offers = crossing._offers()
            crossing._try_buckets()
        crossing._agree(offers)
        return crossing

    @classmethod
    def foreseen(
        cls,
        tree: Tree,
        stages: Sequence[Stage],
        stage: Communicating,
        team: Team | None,
    ) -> Crossing:
        """Return the crossing of a tree as this rank sees it; nobody is asked."""
        place = stages.index(stage)
        origin = origin_of(tree, stages[:place]) if _has_tree(stage, team) else None
        deal = stage.bind(origin, team)
        after = Course.foretold(deal.forms, deal.spec, stages[place + 1 :])
        paths = deal.spec.paths()
        keys = {i: canonical(paths[i]) for i in after.ids}
        crossing = cls(stage, team, deal, after, paths, keys)
        crossing.order = sorted(after.ids, key=keys.__getitem__)
        return crossing

    # -- before the first byte -----------------------------------------------------

    @property
    def _is_alone(self) -> bool:
        team = self.team
        return team is None or not (team.others or (team.planned and team.ranks[1:]))

    def _offers(self) -> dict[tuple[int, ...], Offer]:
        """Return what this rank is to offer, once its part is seen to be possible."""
        legs = self.deal.legs
        for i in {id(legs[i]): i for i in self.after.ids}.values():
            self._check_ranks(self.paths[i], legs[i])
        if self.team is None or self._is_alone or not self.stage.verify:
            return {}
        return self.offers_of(self.team.me, legs)

    def offers_of(
        self, rank: int, legs: Sequence[Leg] | Mapping[int, Leg]
    ) -> dict[tuple[int, ...], Offer]:
        """Return what a rank is about to do with each set of ranks it is in.

        ``legs`` are as that rank sees them.
        """
        offers: dict[tuple[int, ...], Offer] = {}
        if self.deal.common and self.team is not None:
            offers[self.team.ranks] = Offer()
            offers[self.team.ranks].add((), canonical(()), self.deal.common)
        told: dict[int, tuple[Offer, str]] = {}
        for i in self.order:
            leg = legs[i]
            if not leg.text or rank not in leg.ranks:
                continue
            if id(leg) not in told:
                text = f"{leg.text}, {self.stage.bucket_bytes} bytes at a time"
                told[id(leg)] = offers.setdefault(leg.ranks, Offer()), text
            offer, text = told[id(leg)]
            offer.add(self.paths[i], self.keys[i], text, leg.is_blind)
        for group in self.ties():
            ranks = legs[group[0]].ranks
            seen = [self.paths[i] for i in group if not legs[i].is_blind]
            if ranks in offers and len(seen) > 1:
                offers[ranks].ties.append(seen)
        return offers

    def _try_buckets(self) -> None:
        """Raise now, while the others can be told, if there is no room for buckets.

        What a device lends it keeps at hand, so that it can be had again.
        """
        sizes: dict[str, int] = {}
        if self.team is None or self._is_alone:
            return
        for i in self.order:
            leg = self.deal.legs[i]
            if leg.moves:
                sizes[leg.device] = sizes.get(leg.device, 0) + leg.nbytes
        for device, nbytes in sizes.items():
            room = min(nbytes, self.stage.bucket_bytes)
            torch.empty(2 * room, dtype=torch.uint8, device=self.team.device(device))

    @property
    def asks(self) -> bool:
        """Return whether this rank must hear more than what ranks agree on.

        They agree on the leaves that are wanted.
        """
        return (
            not self.stage.verify
            or self.deal.asks
            or len(self.after.ids) < len(self.deal.spec)
        )

    def ties(self) -> list[list[int]]:
        """Return the ties among the leaves that are wanted, in canonical order.

        Unless ranks agree on them, only those that none of them is blind to.
        """
        trusted = self.stage.verify or self._is_alone
        found = [
            [i for i in group if i in self.keys and (trusted or self._all_see(i))]
            for group in self.deal.ties
        ]
        key = self.keys.__getitem__
        ordered = [sorted(group, key=key) for group in found if group[1:]]
        return sorted(ordered, key=lambda group: key(group[0]))

    def _all_see(self, i: int) -> bool:
        """Return whether no rank of a leaf is blind to it."""
        ranks = self.deal.legs[i].ranks
        return not any(self.deal.leg_on(i, rank).is_blind for rank in ranks)

    def _check_ranks(self, path: Path, leg: Leg) -> None:
        """Raise unless the group has all ranks that a layout names."""
        if self.team is None:
            if leg.moves:
                raise RuntimeError(
                    f"{where(path)}: {self.stage.text} must communicate with the "
                    f"ranks {leg.ranks}; start with torchrun, and call "
                    "torch.distributed.init_process_group() first"
                )
        else:
            check_members(path, leg.ranks, self.team)

    def _agree(self, offers: dict[tuple[int, ...], Offer]) -> None:
        """Hear whether all ranks are about to do the same; then get ready."""
        ids, legs, ties = self.after.ids, self.deal.legs, self.ties()
        self.all_settle, asked = not self._is_alone, self.asks
        if not self._is_alone and self.stage.verify and self.team is not None:
            note = OFFERS * bool(offers) | ASKS * asked
            with self._meeting(self.team):
                notes, shared = agree(self.team, offers, note)
            self.all_settle = any(note & OFFERS for note in notes)
            asked = any(note & ASKS for note in notes)
            position = {self.paths[i]: i for i in ids}
            ties = [[position[path] for path in group] for group in shared] + [
                group for group in ties if legs[group[0]].ranks not in offers
            ]
        self.deal.open(ids, ties, asked)
        if self.deal.fault is not None:
            self._fail(self.deal.fault)
        limit = self.stage.bucket_bytes
        self.batches = deque(cut(self.order, self.deal.legs, self.deal.leaders, limit))
        for channel in sorted({b.channel for b in self.batches if b.channel}):
            self.wires[channel] = self._wire(channel)

    @contextmanager
    def _meeting(self, team: Team) -> Generator[None]:
        """Tell of an error of the backend's in which call the ranks were to meet."""
        try:
            yield
        except (RankFailed, RankMismatch):
            raise
        except Exception as error:
            error.add_note(
                f"waiting for the ranks {team.ranks} to meet in {self.stage.text}, "
                "which each of them must call"
            )
            raise

    def _wire(self, channel: Channel) -> Wire:
        """Return what carries data between the ranks of a channel."""
        assert self.team is not None
        device = self.team.device(channel.device)
        if is_collective(device):
            return Collective(self.team.of_ranks(channel.ranks), device)
        if any(b.settles for b in self.batches if b.channel == channel):
            self.team.of_ranks(channel.ranks)
        room = self.stage.bucket_bytes
        return Pairs.of(self.team, channel.ranks, device, room)

    # -- window by window ----------------------------------------------------------

    def call(self) -> Tree:
        """Return the tree that results. Collective."""
        return self.after.collect(self._windows())

    def _windows(self) -> Iterator[Passed]:
        """Yield the leaves that come out, with their positions; then settle."""
        while self.batches:
            passed = self._pass_next()
            if passed is not None:
                yield passed
            del passed
        self._finish()

    def stream(self) -> Generator[tuple[Path, Leaf]]:
        """Yield each (path, leaf), ordered by the paths at the stage that communicates.

        What comes early waits for its turn: of each set of ranks one window at most.
        """
        paths = self.after.paths()
        waiting: list[tuple[Canonical, int, Leaf]] = []
        while self.batches:
            passed = self._pass_next()
            if passed is not None:
                for i, leaf in zip(*passed, strict=True):
                    heappush(waiting, (self.keys[i], i, leaf))
            del passed
            bound = None
            if self.batches:
                bound = self.keys[self.batches[0].ids[0]]
            while waiting and (bound is None or waiting[0][0] < bound):
                _, i, leaf = heappop(waiting)
                yield paths[i], leaf
                del leaf
        self._finish()

    def hold_open(self) -> None:
        """Let no other communication begin before this one has ended."""
        _OPEN.append(self)

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
        if self in _OPEN:
            _OPEN.remove(self)

    def _pass_next(self) -> Passed | None:
        """Return what comes out of the next window.

        An error that comes from there is the backend's: it is no use to go on.
        """
        try:
            return self._pass(self.batches.popleft())
        except Exception as error:
            error.add_note(f"{self.stage.text} has not come to its end")
            error.add_note(self.deal.consequence)
            self._end()
            raise

    def _pass(self, batch: Batch) -> Passed | None:
        """Return what comes out of a window, None if it is junk."""
        channel = batch.channel
        if channel in self.dead:
            return None
        leaves = None
        if self.error is None:
            with self._own_work(batch):
                leaves = self.deal.pull(batch.ids)
        if batch.is_partial and channel is not None:
            leaves = self._reduce(batch, channel, leaves)
        cargo = None
        if leaves is not None and self.error is None:
            with self._own_work(batch):
                cargo = self.deal.load(batch.ids, leaves)
        del leaves
        sound = self._ship(batch, cargo)
        passed = None
        if cargo is not None and sound:
            with self._own_work(batch):
                made = [[part.finished() for part in cargo]]
                del cargo
                passed = self.after.act(batch.ids, made.pop())  # no step holds more
        if batch.settles and channel is not None:
            self._settle_among(channel)
        return passed if self.error is None else None

    def _reduce(
        self, batch: Batch, channel: Channel, leaves: Sequence[Leaf] | None
    ) -> Sequence[Leaf] | None:
        """Return the one leaf of a window reduced, and tell whether it was junk."""
        assert self.team is not None
        [i] = batch.ids[:1]
        reduced = self.deal.reduce(i, None if leaves is None else leaves[0])
        count("reduce", sum(t.nbytes for t in tensors_of(reduced)))
        others = self.team.of_ranks(channel.ranks)
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
        loads, limit = self._loads(batch, cargo), self.stage.bucket_bytes
        if batch.nbytes <= limit:
            yield loads
            return
        for load in loads:
            for region in load.lane.slabs(limit):
                yield [replace(load, route=load.route.within(region))]

    def _loads(self, batch: Batch, cargo: Sequence[Cargo] | None) -> list[Load]:
        """Return what a window has to carry, the leaves that go one way together."""
        me = 0 if self.team is None else self.team.me
        found: dict[Lane, Load] = {}
        known: dict[int, Load] = {}
        for k, i in enumerate(batch.ids):
            if i in self.deal.leaders:
                continue
            for n, lane in enumerate(self.deal.legs[i].lanes):
                load = known.get(id(lane))
                if load is None:
                    load = found.setdefault(lane, Load(lane, lane.route(me)))
                    known[id(lane)] = load
                if cargo is None:
                    load.add(self.paths[i])
                else:
                    load.add(self.paths[i], cargo[k].sources[n], cargo[k].targets[n])
        return [*found.values()]

    # -- failure -------------------------------------------------------------------

    @contextmanager
    def _own_work(self, batch: Batch) -> Generator[None]:
        """Note the error of this rank's own work; the others are told in time."""
        try:
            yield
        except Exception as error:
            self._fail(error, self._place(error, batch))

    def _fail(self, error: Exception, at: Path | None = None) -> None:
        self.error, self.at = error, at

    def _place(self, error: Exception, batch: Batch) -> Path | None:
        """Return the path that an error speaks of, among those of a window."""
        paths = [self.paths[i] for i in batch.ids]
        return paths[0] if len(paths) == 1 else named_by(error, paths)

    def _settle_among(self, channel: Channel) -> None:
        """Hear whether a rank of the channel failed: then nothing more moves there."""
        assert self.team is not None
        failed = self.error is not None or channel in self.tainted
        [bad] = greatest(self.team.of_ranks(channel.ranks), [int(failed)])
        if bad:
            self.dead.add(channel)

    def _finish(self) -> None:
        """Make the last checks, hear from all ranks, and raise if one failed."""
        self._end()
        if self.error is None:
            try:
                self.after.check()
            except Exception as error:
                self._fail(error)
        try:
            if self.all_settle and self.team is not None:
                with self._meeting(self.team):
                    settle(self.team, self.error, self.at)
            if self.error is not None:
                raise self.error
            if self.tainted:
                raise RankFailed("another rank failed, and what came from it is junk")
        except Exception as error:
            error.add_note(self.deal.consequence)
            raise


def origin_of(tree: Tree, stages: Sequence[Stage]) -> Origin:
    """Return the leaves that stages make of a tree, to be taken window by window."""
    course = Course.of(tree, stages)
    leaves, acts = course.leaves(), bool(course.steps)
    forms, held = look_at(leaves)
    foretold = course.foretell(forms) if acts else forms
    known = None if foretold is None else look_at(foretold)[0] if acts else forms
    return Origin(course.spec, leaves, held, acts, known, course.pull)
