"""How the leaves of a window travel: small regions share a parcel, large go alone.

A parcel is bytes, for one rank from one rank, each region at an aligned place. Its last
word tells whether the sender had failed: what came with it is junk then. A large region
that lies in one stretch on both sides needs no parcel, and no copy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import accumulate
from operator import itemgetter
from typing import Final, NamedTuple, Protocol

import torch
from torch import Tensor

from sdtree.arena import ALIGNMENT
from sdtree.path import where
from sdtree.room import fill
from sdtree.routes import Cut, Route
from sdtree.typing import Path
from sdtree.wire import Flow, Team, all_to_all

LARGE: Final = 128 * 2**10
"""From how many bytes on a region goes alone."""

WORD: Final = 8
"""The bytes of the word at the end of a parcel."""


class Load(NamedTuple):
    """One leaf, or a slab of it, on its way: None for tensors means junk."""

    path: Path
    route: Route
    dtype: torch.dtype
    source: Sequence[Tensor] | None
    target: Sequence[Tensor] | None
    legs: int = 1


class Piece(NamedTuple):
    """A region at this rank: where it lies, or only what room it takes."""

    size: tuple[int, ...]
    dtype: torch.dtype
    numel: int
    view: Tensor | None

    @property
    def nbytes(self) -> int:
        """Return its bytes."""
        return self.numel * self.dtype.itemsize


def piece(cut: Cut, dtype: torch.dtype, tensors: Sequence[Tensor] | None) -> Piece:
    """Return what a cut takes of the local tensors."""
    view = None
    if tensors is not None:
        view = region(tensors[cut.tensor], cut.offset, cut.size)
    return Piece(cut.size, dtype, cut.numel, view)


def region(t: Tensor, offset: Sequence[int], size: tuple[int, ...]) -> Tensor:
    """Return a region of a tensor, as a view."""
    if t.size() == size:
        return t
    strides = t.stride()
    start = t.storage_offset() + sum(map(int.__mul__, offset, strides))
    return t.as_strided(size, strides, start)


@lru_cache(maxsize=4096)
def dense_strides(size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor.

    >>> dense_strides((2, 3))
    (3, 1)
    """
    return (
        tuple([*accumulate(size[:0:-1], int.__mul__, initial=1)][::-1]) if size else ()
    )


# -- parcels -----------------------------------------------------------------------


@dataclass(slots=True)
class Parcel:
    """Pieces of one rank for another, and a word if it is to end with one."""

    pieces: list[Piece] = field(default_factory=list[Piece])
    path: Path = ()
    has_word: bool = False

    def add(self, p: Piece, path: Path) -> None:
        """Add a piece; the first one's path stands for all."""
        self.path = self.path or path
        self.pieces.append(p)

    def nbytes(self) -> int:
        """Return the length of its bytes; one piece alone may travel unpacked."""
        if len(self.pieces) == 1 and not self.has_word:
            return self.pieces[0].nbytes
        body = sum(-(-p.nbytes // ALIGNMENT) * ALIGNMENT for p in self.pieces)
        return body + (ALIGNMENT if self.has_word else 0)

    def views(self, buffer: Tensor) -> list[Tensor]:
        """Return the place of each piece in a buffer, typed and shaped."""
        typed: dict[torch.dtype, Tensor] = {}
        found: list[Tensor] = []
        at = 0
        for size, dtype, numel, _ in self.pieces:
            flat = typed.get(dtype)
            if flat is None:
                flat = typed[dtype] = buffer.view(dtype)
            start = at // dtype.itemsize + flat.storage_offset()
            found.append(flat.as_strided(size, dense_strides(size), start))
            at += -(-numel * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        return found

    def pack(self, buffer: Tensor, word: int) -> None:
        """Write pieces and word into a buffer of its length."""
        places = self.views(buffer)
        real = [i for i, p in enumerate(self.pieces) if p.view is not None]
        sources = [_plain(self.pieces[i].view) for i in real]
        if real:
            fill([places[i] for i in real], sources)
        if self.has_word:
            buffer[-ALIGNMENT:].view(torch.int64)[0] = word

    def unpack(self, buffer: Tensor) -> int:
        """Copy the pieces home, and return the word."""
        places = self.views(buffer)
        real = [i for i, p in enumerate(self.pieces) if p.view is not None]
        if real:
            fill([_plain(self.pieces[i].view) for i in real], [places[i] for i in real])
        return int(buffer[-ALIGNMENT:].view(torch.int64)[0]) if self.has_word else 0

    def direct(self, device: torch.device) -> Tensor | None:
        """Return the bytes of its one piece as they lie, if they can travel so."""
        if len(self.pieces) != 1 or self.has_word:
            return None
        view = self.pieces[0].view
        if view is None or view.device != device or not view.is_contiguous():
            return None
        if view.is_conj() or view.is_neg():
            return None
        return view.view(-1).view(torch.uint8)


def _plain(t: Tensor | None) -> Tensor:
    assert t is not None
    return t.resolve_conj().resolve_neg() if t.is_conj() or t.is_neg() else t


# -- the wires ---------------------------------------------------------------------


class Wire(Protocol):
    """What carries the loads of one window after the other."""

    def carry(self, loads: Sequence[Load], failed: bool, *, is_last: bool) -> None:
        """Carry a bucket of a window; with the last, tell whether this rank failed."""
        ...

    def finish(self) -> bool:
        """Wait for the rest of a window; return whether all that came is sound."""
        ...


def _nobody() -> dict[str, set[int]]:
    """Return, for each way of a window, that nobody is to get a word yet."""
    return {"sends": set(), "takes": set(), "passes": set()}


@dataclass(slots=True)
class Pairs:
    """Messages between pairs of ranks: large regions straight from and into views.

    A rank takes all of a bucket before it passes any of it on.
    """

    flow: Flow
    device: torch.device
    ring: Mapping[int, int]
    words: dict[str, set[int]] = field(default_factory=_nobody)
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
        for way, peers in self.words.items():
            peers |= {cut.peer for load in loads for cut in getattr(load.route, way)}
        words = self.words if is_last else {}
        posts = [
            *self._posts(loads, "sends", words.get("sends", ())),
            *self._posts(loads, "takes", words.get("takes", ())),
        ]
        for _, is_send, peer, parcel in sorted(posts, key=itemgetter(0)):
            if is_send:
                self._send(peer, parcel, failed)
            else:
                self._take(peer, parcel)
        keep(loads)
        passes = [*self._posts(loads, "passes", words.get("passes", ()))]
        if passes:
            self.flow.drain()
        for _, _, peer, parcel in passes:
            self._send(peer, parcel, failed)
        if is_last:
            self.words = _nobody()

    def finish(self) -> bool:
        """Wait for what is under way; see ``Wire``."""
        self.flow.drain()
        worst, self.worst = self.worst, 0
        return not worst

    def _posts(
        self, loads: Sequence[Load], way: str, hear: Iterable[int]
    ) -> Iterator[tuple[tuple[int, int, int], bool, int, Parcel]]:
        """Yield (order, is it sent, peer, parcel); ``hear`` are who gets a word."""
        small = {peer: Parcel(has_word=True) for peer in hear}
        seen: Counter[int] = Counter()
        is_send = way != "takes"
        for i, load in enumerate(loads):
            tensors = load.source if way == "sends" else load.target
            for cut in getattr(load.route, way):
                p = piece(cut, load.dtype, tensors)
                if p.nbytes >= LARGE:
                    order = (i, seen[cut.peer], self._round(cut.peer, is_send))
                    seen[cut.peer] += 1
                    yield order, is_send, cut.peer, Parcel([p], load.path)
                else:
                    small.setdefault(cut.peer, Parcel()).add(p, load.path)
        for peer, parcel in small.items():
            order = (len(loads), 0, self._round(peer, is_send))
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
        legs = max((load.legs for load in loads), default=1)
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
        for load in loads:
            route = load.route
            here = [(c, load.source) for c in route.sends] if is_send else []
            there = route.passes if is_send else route.takes
            for cut, tensors in (*here, *((c, load.target) for c in there)):
                if cut.level == leg:
                    found[cut.peer].add(piece(cut, load.dtype, tensors), load.path)
        return list(found.values())

    def _exchange(
        self, out: Sequence[Parcel], into: Sequence[Parcel], failed: int
    ) -> None:
        sent, taken = [p.nbytes() for p in out], [p.nbytes() for p in into]
        make = partial(torch.empty, dtype=torch.uint8, device=self.device)
        outgoing, incoming = make(sum(sent)), make(sum(taken))
        for parcel, buffer in zip(out, outgoing.split(sent), strict=True):
            parcel.pack(buffer, failed or self.worst)
        all_to_all(self.team, outgoing, sent, incoming, taken)
        for parcel, buffer in zip(into, incoming.split(taken), strict=True):
            self.worst = max(self.worst, parcel.unpack(buffer))


def keep(loads: Sequence[Load]) -> None:
    """Copy what this rank has of its own."""
    targets: list[Tensor] = []
    sources: list[Tensor] = []
    for load in loads:
        if load.source is None or load.target is None:
            continue
        for here, there in load.route.keeps:
            sources.append(region(load.source[here.tensor], here.offset, here.size))
            targets.append(region(load.target[there.tensor], there.offset, there.size))
    if targets:
        fill(targets, sources)
