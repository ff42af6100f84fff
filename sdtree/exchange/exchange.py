"""An exchange under way: a run, what ranks exchange after it, and a run after that.

All ranks agree before the first byte. A rank that fails later keeps to what was agreed,
with junk, and says so; then all raise together, and nobody waits in vain.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Final

from sdtree.errors import RankFailed
from sdtree.exchange.checks import check_data
from sdtree.exchange.exchange_plan import ExchangePlan
from sdtree.exchange.sets import Ranks
from sdtree.exchange.windows import (
    Comm,
    ExchangeWindow,
    Load,
    batches_of,
    cut,
    loaded,
    renewed,
    slabs_of,
)
from sdtree.kinds.handler import handler_of, tensors_of
from sdtree.path import named_by
from sdtree.tensors.counting import Count
from sdtree.tensors.modes import making, writing
from sdtree.transform.run import Passed
from sdtree.transform.stages import CollectiveStage, Stage
from sdtree.tree.spec import take
from sdtree.typing import Leaf, Path, Tree
from sdtree.wire.agreement import Canonical, Fingerprint, join_as_failed, settle
from sdtree.wire.collectives import RankGroup, count, greatest
from sdtree.wire.columns import keep
from sdtree.wire.transport import transport_for

# -- nobody is to wait for one that failed -----------------------------------------

_OPEN: Final[list[object]] = []
"""The exchange whose stream is open: until it is closed, no other may begin."""


def refuse_during_stream(text: str) -> None:
    """Raise if a stream is open: what ranks exchange would mix with what it brings."""
    if _OPEN:
        raise RuntimeError(
            f"{text}: a stream that communicates is open on this rank; exhaust it or "
            "close it first, best in a with block"
        )


@contextmanager
def heard(group: Any, tree: Tree) -> Generator[None]:
    """Tell the others of a group, who wait in an agreement, of an error in here.

    They hear its path, too, if it names one of those in the tree.
    """
    try:
        yield
    except BaseException as error:  # an interrupt, too
        rank_group = _group_of(group)
        if rank_group is not None and rank_group.others and not _OPEN:
            at = None
            with suppress(Exception):
                at = named_by(error, take(tree)[1].paths())
            join_as_failed(rank_group, error, at)
        raise


def _group_of(group: Any) -> RankGroup | None:
    """Return a group, None if this rank is not in it: nobody waits for it there."""
    with suppress(ValueError):
        return RankGroup.of(group)
    return None


def planned(
    tree: Tree, stages: Sequence[Stage], stage: CollectiveStage
) -> tuple[ExchangePlan, dict[Ranks, Fingerprint]]:
    """Return the plan of what ranks exchange at a stage, and what this one is to offer.

    The others hear of it if there is none.
    """
    refuse_during_stream(stage.text)
    with heard(stage.group, tree):
        rank_group = RankGroup.of(stage.group, stage.text)
        plan = ExchangePlan.of(tree, stages, stage, rank_group)
        return plan, plan.offered()


# -- an exchange -------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Exchange:
    """One tree on its way through a stage that communicates, and those around it.

    ``all_settle`` tells whether all ranks of the group meet again at the end. If anyone
    is told how far it is, by ``count``, ``sizes`` are the bytes that leaves will have.
    ``kept`` are leaves that have come, by their tie, of which others are to come.
    """

    plan: ExchangePlan
    all_settle: bool
    windows: deque[ExchangeWindow]
    comms: Sequence[Comm]
    count: Count | None
    sizes: Mapping[int, int]
    error: BaseException | None = None
    at: Path | None = None
    has_ended: bool = False
    kept: dict[int, Passed] = field(default_factory=dict[int, Passed])

    @classmethod
    def start(
        cls, tree: Tree, stages: Sequence[Stage], stage: CollectiveStage
    ) -> Exchange:
        """Return the exchange of a tree, agreed on by all ranks. Collective."""
        with making():
            plan, fingerprints = planned(tree, stages, stage)
            plan, agreement = plan.agree(fingerprints)
            return cls.agreed(plan, agreement.all_settle)

    @classmethod
    def agreed(
        cls,
        plan: ExchangePlan,
        all_settle: bool,
        known: Sequence[ExchangeWindow] | None = None,
    ) -> Exchange:
        """Return the exchange of what is agreed on, ready for its first window.

        The windows are ``known`` if leaves of the same forms went in them.
        """
        transfers, limit = plan.transfers, plan.stage.bucket_bytes
        windows = deque(
            cut(plan.order, transfers, limit) if known is None else renewed(known)
        )
        found = {window.comm for window in windows if window.comm}
        comms = sorted(found, key=lambda comm: (comm.ranks, comm.device))
        for comm in comms:
            comm.transport = transport_for(
                plan.rank_group, comm.ranks, comm.device, limit
            )
            if comm.settles:
                plan.rank_group.of_ranks(comm.ranks)
        count, sizes = None, dict[int, int]()
        if plan.stage.on_progress is not None:
            sizes = plan.sizes()
            count = Count(plan.stage.on_progress).expect(sum(sizes.values()))
        return cls(plan, all_settle, windows, comms, count, sizes, transfers.fault)

    # -- window by window ----------------------------------------------------------

    def call(self) -> Tree:
        """Return the tree that results. Collective."""
        return self.plan.after.collect([*self._windows()])

    def _windows(self) -> Iterator[Passed]:
        """Yield the leaves that come out, with their positions; then settle."""
        while self.windows:
            passed = self._pass_next()
            if passed is not None:
                yield passed
            del passed
        if (told := self._report()) is not None:
            yield told
        self._finish()

    def _report(self) -> Passed | None:
        """Return what becomes of the report, if one is asked for."""
        ids, report = self.plan.beside, self.plan.transfers.report
        if ids and self.error is None:
            with self._own_work(ExchangeWindow(None)):
                return self.plan.after.act(ids, [report] * len(ids))
        return None

    def stream(self) -> Generator[tuple[Path, Leaf]]:
        """Yield each (path, leaf), ordered by the paths at the stage that communicates.

        What comes early waits for its turn: of each set of ranks one window at most.
        """
        paths = self.plan.after.paths()
        waiting: list[tuple[Canonical, int, Leaf]] = []
        while self.windows:
            passed = self._pass_next()
            if passed is not None:
                for i, leaf in zip(*passed, strict=True):
                    heappush(waiting, (self.plan.keys[i], i, leaf))
            del passed
            ahead = [i for ids, _ in self.kept.values() for i in ids]
            ahead += self.windows[0].ids[:1] if self.windows else ()
            bound = min((self.plan.keys[i] for i in ahead), default=None)
            while waiting and (bound is None or waiting[0][0] < bound):
                _, i, leaf = heappop(waiting)
                yield paths[i], leaf
                del leaf
        for i, leaf in zip(*(self._report() or ((), ())), strict=True):
            yield paths[i], leaf
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
            return self._pass(self.windows.popleft())
        except BaseException as error:  # an interrupt, too: nobody knows what was sent
            error.add_note(f"{self.plan.stage.text} has not come to its end")
            error.add_note(self.plan.transfers.consequence)
            self._end()
            raise

    def _pass(self, window: ExchangeWindow) -> Passed | None:
        """Return what comes out of a window, None if it is junk."""
        comm = window.comm
        if comm is not None and comm.is_dead:
            return None
        passed, brought = None, self._brought(window)
        if brought is not None:
            with self._own_work(window):
                ids = [i for i in window.ids if i < self.plan.own]
                # No step holds more.
                passed = self._act(window, ids, brought)
                if self.count is not None:
                    self.count.add(sum(self.sizes.get(i, 0) for i in ids))
        if window.settles and comm is not None:
            self._settle_among(comm)
        return passed if self.error is None else None

    def _act(
        self, window: ExchangeWindow, ids: list[int], made: list[list[Leaf]]
    ) -> Passed | None:
        """Return what comes out of leaves that have come, None if more must first."""
        if window.tie is None:
            return self.plan.after.act(ids, made.pop())
        before, leaves = self.kept.pop(window.tie, ([], []))
        found = [*before, *ids], [*leaves, *made.pop()]
        if any(other.tie == window.tie for other in self.windows):
            self.kept[window.tie] = found
            return None
        return self.plan.after.act(*found)

    def _brought(self, window: ExchangeWindow) -> list[list[Leaf]] | None:
        """Return, in a list, the leaves that a window brings here; None if junk.

        What goes to others alone is not among them.
        """
        leaves, load, made = self._come(window), None, None
        with making():
            if leaves is not None and self.error is None:
                with self._own_work(window):
                    load = loaded(self.plan.transfers, window, leaves, self.plan.own)
            del leaves
            with writing():
                sound = self._ship(window, load)
            if load is not None and sound:
                with self._own_work(window):
                    made = [load.finish()]
        return made

    def _come(self, window: ExchangeWindow) -> Sequence[Leaf] | None:
        """Return the leaves that come to a window, None if there are none to be had."""
        leaves = None
        if self.error is None:
            with self._own_work(window):
                leaves = self._pulled(window)
        if window.is_partial and window.comm is not None:
            return self._reduce(window, window.comm, leaves)
        return leaves

    def _pulled(self, window: ExchangeWindow) -> Sequence[Leaf]:
        """Return the leaves of a window, of terms those that may be reduced as one.

        Terms that are meta would be reduced without a word to the others.
        """
        transfers, me = self.plan.transfers, self.plan.rank_group.me
        leaves = transfers.source.pull(window.ids)
        if window.is_partial:
            for i, leaf in zip(window.ids, leaves, strict=True):
                if me in transfers.goals.members(i):
                    check_data(self.plan.paths[i], tensors_of(leaf))
            transfers.check_terms(window.ids, leaves)
        return leaves

    def _reduce(
        self, window: ExchangeWindow, comm: Comm, leaves: Sequence[Leaf] | None
    ) -> Sequence[Leaf] | None:
        """Return the one leaf of a window reduced, and tell whether it was junk."""
        transfers, rank_group = self.plan.transfers, self.plan.rank_group
        [i] = window.ids[:1]
        reduced, is_bad = leaves[0] if leaves else None, True
        with self._own_work(window):  # torch may refuse to reduce what it has
            if rank_group.me in transfers.goals.members(i):
                with making():
                    if reduced is None:
                        reduced = transfers.source.junk(i, comm.device)
                    reduced = handler_of(reduced).reduced(reduced)
                count("reduce", sum(t.nbytes for t in tensors_of(reduced)))
            is_bad = leaves is None
        [bad] = greatest(rank_group.of_ranks(comm.ranks), [int(is_bad)])
        if bad:
            comm.is_tainted = True
            return None
        return [reduced, *(leaves or ())[1:]]

    def _ship(self, window: ExchangeWindow, load: Load | None) -> bool:
        """Have the data of a window travel; return whether what came is sound."""
        plan, comm = self.plan, window.comm
        found = batches_of(plan.transfers, window) if load is None else load.batches
        buckets, limit = [found], plan.stage.bucket_bytes
        if window.nbytes > limit:
            buckets = [*slabs_of(found, limit)]
        failed = self.error is not None or load is None
        if comm is None or comm.transport is None:
            for batches in buckets:
                keep(batches)
            return True
        for batches in buckets:
            comm.transport.carry(batches, failed, is_last=batches is buckets[-1])
        comm.is_tainted |= not comm.transport.finish()
        return not comm.is_tainted

    # -- failure -------------------------------------------------------------------

    @contextmanager
    def _own_work(self, window: ExchangeWindow) -> Generator[None]:
        """Note the error of this rank's own work; the others are told in time."""
        try:
            yield
        except BaseException as error:  # an interrupt, too
            self._fail(error, self._place(error, window))

    def _fail(self, error: BaseException, at: Path | None = None) -> None:
        if self.error is None:  # what follows from it is not told
            self.error, self.at = error, at

    def _place(self, error: BaseException, window: ExchangeWindow) -> Path | None:
        """Return the path that an error speaks of, among those of a window."""
        paths = [self.plan.paths[i] for i in window.ids]
        return paths[0] if len(paths) == 1 else named_by(error, paths)

    def _settle_among(self, comm: Comm) -> None:
        """Hear whether a rank of the comm failed: then nothing more moves there."""
        failed = self.error is not None or comm.is_tainted
        [bad] = greatest(self.plan.rank_group.of_ranks(comm.ranks), [int(failed)])
        comm.is_dead = bool(bad)

    def _finish(self) -> None:
        """Make the last checks, hear from all ranks, and raise if one failed."""
        self._end()
        if self.error is None:
            with self._own_work(ExchangeWindow(None)):
                self.plan.after.check()
                if self.count is not None:
                    self.count.end()
        try:
            if self.all_settle:
                settle(self.plan.rank_group, self.error, self.at)
            if self.error is not None:
                raise self.error
            if any(comm.is_tainted for comm in self.comms):
                raise RankFailed("another rank failed, and what came from it is junk")
        except BaseException as error:
            error.add_note(self.plan.transfers.consequence)
            raise
