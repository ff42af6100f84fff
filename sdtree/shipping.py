"""How the leaves of a window travel: small regions share a parcel, large go alone.

A parcel is bytes, for one rank from one rank, each region at an aligned place. Its last
word tells whether the sender had failed: what came with it is junk then. A large region
that lies in one stretch on both sides needs no parcel, and no copy.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import product
from operator import itemgetter
from typing import Final, Protocol

import torch
from torch import Tensor

from sdtree.arena import ALIGNMENT, dense_strides
from sdtree.deals import Lane
from sdtree.path import where
from sdtree.room import fill
from sdtree.routes import Cut, Route
from sdtree.typing import Path
from sdtree.wire import Flow, Team, all_to_all, awaiting

LARGE: Final = 128 * 2**10
"""From how many bytes on a region goes alone."""

WORD: Final = 8
"""The bytes of the word at the end of a parcel."""


@dataclass(slots=True)
class Load:
    """Leaves, or slabs of them, that go one way: without tensors they are junk.

    ``sources`` and ``targets`` have the local tensors of each.
    """

    lane: Lane
    route: Route
    paths: list[Path] = field(default_factory=list[Path])
    sources: list[Sequence[Tensor]] = field(default_factory=list[Sequence[Tensor]])
    targets: list[Sequence[Tensor]] = field(default_factory=list[Sequence[Tensor]])

    def add(
        self,
        path: Path,
        source: Sequence[Tensor] | None = None,
        target: Sequence[Tensor] | None = None,
    ) -> None:
        """Add a leaf, or the junk that stands for it."""
        self.paths.append(path)
        if source is not None and target is not None:
            self.sources.append(source)
            self.targets.append(target)

    def views(self, cut: Cut, way: str) -> Sequence[Tensor | None]:
        """Return what a cut on a way of the route is of each leaf; None of junk."""
        if not self.sources:
            return [None] * len(self.paths)
        return views_of(cut, self.sources if way == "sends" else self.targets)


def views_of(cut: Cut, tensors: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Return what a cut is of the local tensors of each leaf, as views."""
    return regions([ts[cut.tensor] for ts in tensors], cut.offset, cut.size)


def region(t: Tensor, offset: Sequence[int], size: tuple[int, ...]) -> Tensor:
    """Return a region of a tensor, as a view."""
    [found] = regions([t], offset, size)
    return found


def regions(
    ts: Sequence[Tensor], offset: Sequence[int], size: tuple[int, ...]
) -> list[Tensor]:
    """Return the same region of each tensor, as views."""
    found: list[Tensor] = []
    last: tuple[int, ...] | None = None
    start = 0
    for t in ts:
        strides = t.stride()
        if t.size() == size:
            found.append(t)
            continue
        if strides != last:
            last, start = strides, sum(map(int.__mul__, offset, strides))
        found.append(t.as_strided(size, strides, start + t.storage_offset()))
    return found


# -- parcels -----------------------------------------------------------------------


Form = tuple[tuple[int, ...], torch.dtype]
"""Shape and dtype of a region."""


@dataclass(slots=True)
class Parcel:
    """Regions of one rank for another, and a word if it is to end with one.

    Those of one form lie one after the other, so that one call tells where they are.
    None for a region means junk, which takes its room.
    """

    regions: dict[Form, list[Tensor | None]] = field(
        default_factory=dict[Form, list[Tensor | None]]
    )
    path: Path = ()
    has_word: bool = False

    def add(self, form: Form, views: Sequence[Tensor | None], path: Path) -> None:
        """Add regions of one form; the path of the first ones stands for all."""
        self.path = self.path or path
        self.regions.setdefault(form, []).extend(views)

    def nbytes(self) -> int:
        """Return the length of its bytes."""
        if self._is_bare:
            return sum(map(_bytes_of, self.regions))
        body = sum(_room_of(form) * len(ts) for form, ts in self.regions.items())
        return body + (ALIGNMENT if self.has_word else 0)

    @property
    def _is_bare(self) -> bool:
        """Return whether it is but one region, which takes no more than its bytes."""
        return not self.has_word and sum(map(len, self.regions.values())) == 1

    def _places(self, buffer: Tensor) -> list[Tensor]:
        """Return where in a buffer each region has its place, typed and shaped."""
        found: list[Tensor] = []
        at = 0
        for (size, dtype), ts in self.regions.items():
            flat, room = buffer.view(dtype), _room_of((size, dtype))
            start = at // dtype.itemsize + flat.storage_offset()
            strides = (room // dtype.itemsize, *dense_strides(size))
            found += flat.as_strided((len(ts), *size), strides, start).unbind()
            at += room * len(ts)
        return found

    def _pairs(self, buffer: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the regions that are no junk, and their places in a buffer."""
        views = [view for ts in self.regions.values() for view in ts]
        pairs = zip(views, self._places(buffer), strict=True)
        real = [(view, place) for view, place in pairs if view is not None]
        return [view for view, _ in real], [place for _, place in real]

    def pack(self, buffer: Tensor, word: int) -> None:
        """Write regions and word into a buffer of its length."""
        views, places = self._pairs(buffer)
        copy(places, views)
        if self.has_word:
            buffer[-ALIGNMENT:].view(torch.int64)[0] = word

    def unpack(self, buffer: Tensor) -> int:
        """Copy the regions home, and return the word."""
        copy(*self._pairs(buffer))
        return int(buffer[-ALIGNMENT:].view(torch.int64)[0]) if self.has_word else 0

    def direct(self, device: torch.device) -> Tensor | None:
        """Return the bytes of its one region as they lie, if they can travel so."""
        if not self._is_bare:
            return None
        [[view]] = self.regions.values()
        if view is None or view.device != device or not view.is_contiguous():
            return None
        if view.is_conj() or view.is_neg():
            return None
        return view.view(-1).view(torch.uint8)


@lru_cache(maxsize=4096)
def _bytes_of(form: Form) -> int:
    size, dtype = form
    return math.prod(size) * dtype.itemsize


def _room_of(form: Form) -> int:
    """Return the bytes that a region takes in a buffer, so that the next is aligned."""
    return _aligned(_bytes_of(form))


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each source into its target, lazy conjugates and negatives, too."""
    if any(t.is_conj() or t.is_neg() for t in targets):
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)
    elif targets:
        fill(targets, sources)


# -- the wires ---------------------------------------------------------------------


class Wire(Protocol):
    """What carries the loads of one window after the other."""

    def carry(self, loads: Sequence[Load], failed: bool, *, is_last: bool) -> None:
        """Carry a bucket of a window; with the last, tell whether this rank failed."""
        ...

    def finish(self) -> bool:
        """Wait for the rest of a window; return whether all that came is sound."""
        ...


End = tuple[int, int]
"""A rank at the other end of a way, and in which leg."""


def _nobody() -> dict[str, set[End]]:
    """Return, for each way of a window, that nobody is to get a word yet."""
    return {"sends": set(), "takes": set(), "passes": set()}


@dataclass(slots=True)
class Pairs:
    """Messages between pairs of ranks: large regions straight from and into views.

    They go leg by leg: a rank has taken all of one before it passes any of it on, and
    the order of messages is the same at both ends, so that nobody waits in a circle.
    """

    flow: Flow
    device: torch.device
    ring: Mapping[int, int]
    words: dict[str, set[End]] = field(default_factory=_nobody)
    worst: int = 0

    @classmethod
    def of(
        cls, team: Team, ranks: Sequence[int], device: torch.device, room: int
    ) -> Pairs:
        """Return the wire between some ranks of a team."""
        ring = {rank: i for i, rank in enumerate(ranks)}
        return cls(Flow(team, room), device, ring)

    def carry(self, loads: Sequence[Load], failed: bool, *, is_last: bool) -> None:
        """Carry a bucket; see ``Wire``."""
        routes = {id(load.route): load.route for load in loads}.values()
        for way, ends in self.words.items():
            cuts = (cut for route in routes for cut in getattr(route, way))
            ends |= {(cut.peer, cut.level) for cut in cuts}
        posts = [
            post
            for way, ends in self.words.items()
            for post in self._posts(loads, way, ends if is_last else ())
        ]
        leg = 0
        for (level, *_), is_send, peer, parcel in sorted(posts, key=itemgetter(0)):
            if level > leg:
                self.flow.drain()
                leg = level
            if is_send:
                self._send(peer, parcel, failed)
            else:
                self._take(peer, parcel)
        keep(loads)
        if is_last:
            self.words = _nobody()

    def finish(self) -> bool:
        """Wait for what is under way; see ``Wire``."""
        self.flow.drain()
        worst, self.worst = self.worst, 0
        return not worst

    def _posts(
        self, loads: Sequence[Load], way: str, hear: Iterable[End]
    ) -> Iterator[tuple[tuple[int, int, int, int], bool, int, Parcel]]:
        """Yield (order, is it sent, peer, parcel); ``hear`` are who gets a word."""
        small = {end: Parcel(has_word=True) for end in hear}
        seen: Counter[End] = Counter()
        is_send = way != "takes"
        for i, load in enumerate(loads):
            for cut in getattr(load.route, way):
                form, end = (cut.size, load.lane.dtype), (cut.peer, cut.level)
                views = load.views(cut, way)
                if _bytes_of(form) < LARGE:
                    parcel = small.setdefault(end, Parcel())
                    parcel.add(form, views, load.paths[0])
                    continue
                place = self._round(cut.peer, is_send)
                for path, view in zip(load.paths, views, strict=True):
                    order = (cut.level, i, seen[end], place)
                    seen[end] += 1
                    yield order, is_send, cut.peer, Parcel({form: [view]}, path)
        for (peer, level), parcel in small.items():
            order = (level, len(loads), 0, self._round(peer, is_send))
            yield order, is_send, peer, parcel

    def _round(self, peer: int, is_send: bool) -> int:
        """Return how far a message goes round the ring, the same at both its ends."""
        me, count = self.ring[self.flow.team.me], len(self.ring)
        way = self.ring[peer] - me if is_send else me - self.ring[peer]
        return way % count

    def _send(self, peer: int, parcel: Parcel, failed: bool) -> None:
        data, what = parcel.direct(self.device), where(parcel.path)
        if data is not None:
            self.flow.send(peer, data, what)
            return
        size = parcel.nbytes()
        self.flow.make_room(True, size)
        buffer = torch.empty(size, dtype=torch.uint8, device=self.device)
        parcel.pack(buffer, int(failed) or self.worst)
        self.flow.send(peer, buffer, what, size)

    def _take(self, peer: int, parcel: Parcel) -> None:
        data, what = parcel.direct(self.device), where(parcel.path)
        if data is not None:
            self.flow.receive(peer, data, what)
            return
        size = parcel.nbytes()
        self.flow.make_room(False, size)
        buffer = torch.empty(size, dtype=torch.uint8, device=self.device)
        self.flow.receive(peer, buffer, what, size, lambda: self._open(parcel, buffer))

    def _open(self, parcel: Parcel, buffer: Tensor) -> None:
        self.worst = max(self.worst, parcel.unpack(buffer))


@dataclass(slots=True)
class Collective:
    """One all_to_all per bucket and leg, for backends that serve these best."""

    team: Team
    device: torch.device
    worst: int = 0

    def carry(self, loads: Sequence[Load], failed: bool, *, is_last: bool) -> None:
        """Carry a bucket; see ``Wire``."""
        legs = max((load.lane.legs for load in loads), default=1)
        for leg in range(legs):
            word = is_last and leg == legs - 1
            out = self._parcels(loads, leg, word, is_send=True)
            into = self._parcels(loads, leg, word, is_send=False)
            self._exchange(out, into, int(failed))
        keep(loads)

    def finish(self) -> bool:
        """See ``Wire``; nothing is under way."""
        worst, self.worst = self.worst, 0
        return not worst

    def _parcels(
        self, loads: Sequence[Load], leg: int, has_word: bool, *, is_send: bool
    ) -> list[Parcel]:
        """Return a parcel for each rank of the team, in order."""
        found = {rank: Parcel(has_word=has_word) for rank in self.team.ranks}
        for load, way in product(loads, ("sends", "passes") if is_send else ("takes",)):
            for cut in getattr(load.route, way):
                if cut.level == leg:
                    form = (cut.size, load.lane.dtype)
                    found[cut.peer].add(form, load.views(cut, way), load.paths[0])
        return list(found.values())

    def _exchange(
        self, out: Sequence[Parcel], into: Sequence[Parcel], failed: int
    ) -> None:
        sent, taken = ([_aligned(p.nbytes()) for p in side] for side in (out, into))
        make = partial(torch.empty, dtype=torch.uint8, device=self.device)
        outgoing, incoming = make(sum(sent)), make(sum(taken))
        for parcel, buffer in zip(out, outgoing.split(sent), strict=True):
            parcel.pack(buffer, failed or self.worst)
        path = next((p.path for p in (*out, *into) if p.regions), ())
        others = [rank for rank in self.team.ranks if rank != self.team.me]
        with awaiting(others, where(path)):
            all_to_all(self.team, outgoing, sent, incoming, taken)
        for parcel, buffer in zip(into, incoming.split(taken), strict=True):
            self.worst = max(self.worst, parcel.unpack(buffer))


def keep(loads: Sequence[Load]) -> None:
    """Copy what this rank has of its own."""
    targets: list[Tensor] = []
    sources: list[Tensor] = []
    for load in loads:
        for here, there in load.route.keeps if load.sources else ():
            sources += views_of(here, load.sources)
            targets += views_of(there, load.targets)
    copy(targets, sources)
