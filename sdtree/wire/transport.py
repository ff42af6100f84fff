"""How the leaves of a window travel: small regions share a parcel, large go alone.

A large region that lies in one stretch on both sides needs no parcel, and no copy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count, product
from operator import attrgetter
from typing import Final, NamedTuple, Protocol

import torch
from torch import Tensor

from sdtree.layout.schedule import Cut, Lane, Route
from sdtree.typing import Path
from sdtree.wire.collectives import Flow, Team, all_to_all
from sdtree.wire.messages import Column, Crate, Parcel, Part, aligned, copy

LARGE: Final = 128 * 2**10
"""From how many bytes on a region goes alone."""


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
    columns: dict[tuple[bool, int], Column] = field(
        default_factory=dict[tuple[bool, int], Column]
    )
    alone: dict[Part, list[Parcel]] = field(
        init=False, default_factory=dict[Part, list[Parcel]]
    )

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

    def part(self, cut: Cut, *, of_sources: bool) -> Part:
        """Return what a cut of the route is of all the leaves."""
        column = self._column(cut.tensor, of_sources) if self.sources else None
        return Part(cut.size, self.lane.dtype, len(self.paths), column, cut.offset)

    def parcels(self, part: Part) -> Sequence[Parcel]:
        """Return a parcel for each leaf, whoever it is for."""
        if part not in self.alone:
            ts = [None] * part.leaves if part.column is None else part.column.tensors
            columns = (None if t is None else Column([t]) for t in ts)
            parts = (part._replace(leaves=1, column=column) for column in columns)
            found = [
                Parcel([p], path) for p, path in zip(parts, self.paths, strict=True)
            ]
            self.alone[part] = found
        return self.alone[part]

    def _column(self, tensor: int, of_sources: bool) -> Column:
        key = of_sources, tensor
        if key not in self.columns:
            side = self.sources if of_sources else self.targets
            self.columns[key] = Column([ts[tensor] for ts in side])
        return self.columns[key]


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


class Post(NamedTuple):
    """A message to be posted: in which order, which way, and its place in a crate.

    One that travels from where it lies has no crate.
    """

    order: tuple[int, int, int, int]
    is_send: bool
    peer: int
    parcel: Parcel
    crate: Crate | None = None
    place: int = 0


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
        for post in sorted(posts, key=attrgetter("order")):
            level = post.order[0]
            if level > leg:
                self.flow.drain()
                leg = level
            self._post(post, int(failed))
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
    ) -> Iterator[Post]:
        """Yield what is to be posted on a way; ``hear`` are who gets a word."""
        small = {end: Parcel(has_word=True) for end in hear}
        seen: Counter[End] = Counter()
        is_send = way != "takes"
        for i, load in enumerate(loads):
            for cut in getattr(load.route, way):
                end, of_sources = (cut.peer, cut.level), way == "sends"
                part = load.part(cut, of_sources=of_sources)
                if part.nbytes < LARGE:
                    small.setdefault(end, Parcel()).add(part, load.paths[0])
                    continue
                place = self._round(cut.peer, is_send)
                for parcel in load.parcels(part):
                    order = (cut.level, i, seen[end], place)
                    seen[end] += 1
                    yield Post(order, is_send, cut.peer, parcel)
        for level in sorted({level for _, level in small}):
            found = [(end, parcel) for end, parcel in small.items() if end[1] == level]
            found.sort(key=lambda each: each[1].offset)
            crates = self._crates([parcel for _, parcel in found], share=is_send)
            for (end, parcel), (crate, k) in zip(found, crates, strict=True):
                order = (level, len(loads), 0, self._round(end[0], is_send))
                yield Post(order, is_send, end[0], parcel, crate, k)

    def _crates(
        self, parcels: Sequence[Parcel], *, share: bool
    ) -> Iterator[tuple[Crate | None, int]]:
        """Yield for each parcel its crate, one for all if it is not too large.

        One that travels from where it lies needs none, and none is to wait for it.
        """
        lies = [parcel.direct(self.device) is not None for parcel in parcels]
        others = [p for p, is_free in zip(parcels, lies, strict=True) if not is_free]
        crate, place = Crate.of(others, share=share), count()
        for parcel, is_free in zip(parcels, lies, strict=True):
            if is_free:
                yield None, 0
            elif crate.nbytes <= self.flow.room:
                yield crate, next(place)
            else:
                yield Crate.of([parcel]), 0

    def _round(self, peer: int, is_send: bool) -> int:
        """Return how far a message goes round the ring, the same at both its ends."""
        me, count = self.ring[self.flow.team.me], len(self.ring)
        way = self.ring[peer] - me if is_send else me - self.ring[peer]
        return way % count

    def _post(self, post: Post, failed: int) -> None:
        """Send or receive a parcel: from and to where it lies, or by its crate.

        The first of a crate to be sent has all packed, the last to come unpacked.
        """
        is_send, peer, parcel, flow = post.is_send, post.peer, post.parcel, self.flow
        data, size, then = parcel.direct(self.device), 0, None
        if data is None:
            size, crate = parcel.nbytes(), post.crate or Crate.of([parcel])
            flow.make_room(is_send, size)
            is_first = crate.buffer is None
            buffer = crate.open(self.device)
            if is_first and is_send:
                crate.pack(buffer, failed or self.worst)
            data = crate.slot(post.place, buffer)
            then = None if is_send else partial(self._arrived, crate)
        flow.make_room(is_send, size)
        flow.post(is_send, peer, data, parcel.path, size, then)

    def _arrived(self, crate: Crate) -> None:
        crate.awaited -= 1
        if not crate.awaited:
            self.worst = max(self.worst, crate.unpack(crate.open(self.device)))
            crate.buffer = None


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
                    part = load.part(cut, of_sources=way == "sends")
                    found[cut.peer].add(part, load.paths[0])
        return list(found.values())

    def _exchange(
        self, out: Sequence[Parcel], into: Sequence[Parcel], failed: int
    ) -> None:
        outgoing, incoming = Crate.of(out), Crate.of(into)
        sent, taken = ([aligned(p.nbytes()) for p in side] for side in (out, into))
        given, come = outgoing.open(self.device), incoming.open(self.device)
        outgoing.pack(given, failed or self.worst)
        path = next((p.path for p in (*out, *into) if p.parts), ())
        all_to_all(self.team, given, sent, come, taken, path)
        self.worst = max(self.worst, incoming.unpack(come))


def keep(loads: Sequence[Load]) -> None:
    """Copy what this rank has of its own."""
    targets: list[Tensor] = []
    sources: list[Tensor] = []
    for load in loads:
        for here, there in load.route.keeps:
            sources += load.part(here, of_sources=True).views()
            targets += load.part(there, of_sources=False).views()
    copy(targets, sources)
