"""How the leaves of a window travel: small regions share a message, large go alone.

A large region that lies in one stretch on both sides needs no message, and no copy.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from operator import attrgetter
from typing import Any, Final, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from sdtree.typing import Path
from sdtree.wire.collectives import (
    RankGroup,
    all_to_all,
    count,
    is_collective,
    waited_for,
)
from sdtree.wire.columns import TransferBatch, keep
from sdtree.wire.messages import (
    Bucket,
    Chunk,
    End,
    Message,
    Placed,
    aligned,
    placed,
)

IN_FLIGHT: Final = 16
"""How many messages between pairs are under way at a time."""


# -- what carries them -----------------------------------------------------------------


class Transport(Protocol):
    """What carries the batches of one window after the other."""

    def carry(
        self, batches: Sequence[TransferBatch], failed: bool, *, is_last: bool
    ) -> None:
        """Carry a bucket of a window; with the last, tell whether this rank failed."""
        ...

    def finish(self) -> bool:
        """Wait for the rest of a window; return whether all that came is sound."""
        ...


# -- pairs -------------------------------------------------------------------------


class InFlight(NamedTuple):
    """A message under way: what it waits for, and what to do once it is there."""

    work: Any
    data: Tensor
    peer: int
    path: Path
    is_send: bool
    scratch: int
    then: Callable[[], None] | None


@dataclass(slots=True)
class P2PQueue:
    """Messages between pairs of ranks, in flight together.

    All ranks post theirs in one order, so to wait for the oldest is safe. ``room`` is
    how many bytes of scratch each way may take at a time: were it one for both, two
    ranks could wait for each other to receive.
    """

    rank_group: RankGroup
    room: int
    in_flight: deque[InFlight] = field(default_factory=deque[InFlight])
    scratch: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})

    def make_room(self, is_send: bool, scratch: int) -> None:
        """Wait until one more message may be under way, with so much scratch."""
        while len(self.in_flight) >= IN_FLIGHT or (
            self.scratch[is_send] and self.scratch[is_send] + scratch > self.room
        ):
            self._finish_oldest()

    def post(
        self,
        is_send: bool,
        peer: int,
        data: Tensor,
        path: Path,
        scratch: int,
        then: Callable[[], None] | None,
    ) -> None:
        """Send bytes that lie in one stretch, or receive them, and do something then.

        They must stay until they are gone. There must be room.
        """
        try:
            begin = dist.isend if is_send else dist.irecv
            work = begin(data, peer, group=self.rank_group.group)
        except Exception as error:
            waited_for(error, (peer,), path)
            raise
        count("send" if is_send else "receive", data.nbytes)
        self.in_flight.append(InFlight(work, data, peer, path, is_send, scratch, then))
        self.scratch[is_send] += scratch

    def drain(self) -> None:
        """Wait for all that is under way."""
        while self.in_flight:
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        found = self.in_flight.popleft()
        try:
            found.work.wait()
        except Exception as error:
            waited_for(error, (found.peer,), found.path)
            raise
        self.scratch[found.is_send] -= found.scratch
        if found.then is not None:
            found.then()


class P2POp(NamedTuple):
    """A message to be posted: in which order, which way, and where it is placed."""

    order: tuple[int, int, int, int]
    is_send: bool
    placed: Placed


def _nobody() -> dict[str, set[End]]:
    """Return, for each way of a window, that nobody is to get a word yet."""
    return {"sends": set(), "recvs": set(), "forwards": set()}


@dataclass(slots=True)
class P2PTransport:
    """Messages between pairs of ranks: large regions straight from and into views.

    They go hop by hop: a rank has taken all of one before it passes any of it on, and
    the order of messages is the same at both ends, so that nobody waits in a circle.
    """

    queue: P2PQueue
    device: torch.device
    ring: Mapping[int, int]
    words: dict[str, set[End]] = field(default_factory=_nobody)
    worst: int = 0

    def carry(
        self, batches: Sequence[TransferBatch], failed: bool, *, is_last: bool
    ) -> None:
        """Carry a bucket; see ``Transport``."""
        schedules = {id(batch.schedule): batch.schedule for batch in batches}.values()
        for way, ends in self.words.items():
            cuts = (cut for schedule in schedules for cut in getattr(schedule, way))
            ends |= {(cut.peer, cut.hop) for cut in cuts}
        posts = [
            post
            for way, ends in self.words.items()
            for post in self._posts(batches, way, ends if is_last else ())
        ]
        hop = 0
        for post in sorted(posts, key=attrgetter("order")):
            level = post.order[0]
            if level > hop:
                self.queue.drain()
                hop = level
            self._post(post, int(failed))
        keep(batches)
        if is_last:
            self.words = _nobody()

    def finish(self) -> bool:
        """Wait for what is under way; see ``Transport``."""
        self.queue.drain()
        worst, self.worst = self.worst, 0
        return not worst

    def _posts(
        self, batches: Sequence[TransferBatch], way: str, hear: Iterable[End]
    ) -> Iterator[P2POp]:
        """Yield what is to be posted on a way; ``hear`` are who gets a word."""
        small: dict[End, list[Chunk]] = {end: [] for end in hear}
        first: dict[End, Path] = {}
        seen: Counter[End] = Counter()
        is_send = way != "recvs"
        for i, batch in enumerate(batches):
            for cut, part in batch.parts(way) if getattr(batch.schedule, way) else ():
                end = cut.peer, cut.hop
                if not part.goes_alone:
                    small.setdefault(end, []).append(part)
                    first.setdefault(end, batch.paths[0])
                    continue
                place = self._round(cut.peer, is_send)
                for message in batch.messages(part):
                    order = (cut.hop, i, seen[end], place)
                    seen[end] += 1
                    yield P2POp(order, is_send, Placed(end, message))
        words = {*hear}
        for level in sorted({level for _, level in small}):
            found = {
                end: Message(parts, first.get(end, ()), end in words)
                for end, parts in small.items()
                if end[1] == level
            }
            for x in placed(found, self.device, self.queue.room, share=is_send):
                order = (level, len(batches), 0, self._round(x.end[0], is_send))
                yield P2POp(order, is_send, x)

    def _round(self, peer: int, is_send: bool) -> int:
        """Return how far a message goes round the ring, the same at both its ends."""
        me, size = self.ring[self.queue.rank_group.me], len(self.ring)
        way = self.ring[peer] - me if is_send else me - self.ring[peer]
        return way % size

    def _post(self, post: P2POp, failed: int) -> None:
        """Send or receive a message: from and to where it lies, or by its bucket.

        The first of a bucket to be sent has all packed, the last to come unpacked.
        """
        (peer, _), message, bucket, place = post.placed
        is_send, data, size, then = post.is_send, None, 0, None
        if bucket is None and (data := message.direct(self.device)) is None:
            bucket = Bucket.of([message])
        if bucket is not None:
            size = bucket.sizes[place]
        self.queue.make_room(is_send, size)
        if bucket is not None:
            if bucket.buffer is None and is_send:
                bucket.pack(self.device, failed or self.worst)
            data = bucket.slot(place, self.device)
            then = None if is_send else partial(self._arrived, bucket)
        assert data is not None, "it lies in a bucket, or as it is"
        self.queue.post(is_send, peer, data, message.path, size, then)

    def _arrived(self, bucket: Bucket) -> None:
        bucket.awaited -= 1
        if not bucket.awaited:
            self.worst = max(self.worst, bucket.unpack())


@dataclass(slots=True)
class AllToAllTransport:
    """One all_to_all per bucket and hop, for backends that serve these best."""

    rank_group: RankGroup
    device: torch.device
    worst: int = 0

    def carry(
        self, batches: Sequence[TransferBatch], failed: bool, *, is_last: bool
    ) -> None:
        """Carry a bucket; see ``Transport``."""
        hops = max((batch.transfer.hops for batch in batches), default=1)
        for hop in range(hops):
            word = is_last and hop == hops - 1
            out = self._messages(batches, hop, word, is_send=True)
            into = self._messages(batches, hop, word, is_send=False)
            self._exchange(out, into, int(failed))
        keep(batches)

    def finish(self) -> bool:
        """See ``Transport``; nothing is under way."""
        worst, self.worst = self.worst, 0
        return not worst

    def _messages(
        self,
        batches: Sequence[TransferBatch],
        hop: int,
        has_word: bool,
        *,
        is_send: bool,
    ) -> list[Message]:
        """Return a message for each rank of the group, in order."""
        found = {rank: Message(has_word=has_word) for rank in self.rank_group.ranks}
        ways = ("sends", "forwards") if is_send else ("recvs",)
        for batch, way in product(batches, ways):
            for cut, part in batch.parts(way):
                if cut.hop == hop:
                    found[cut.peer].add(part, batch.paths[0])
        return list(found.values())

    def _exchange(
        self, out: Sequence[Message], into: Sequence[Message], failed: int
    ) -> None:
        outgoing, incoming = Bucket.of(out), Bucket.of(into)
        sent, taken = ([*map(aligned, x.sizes)] for x in (outgoing, incoming))
        given = outgoing.pack(self.device, failed or self.worst)
        come = incoming.open(self.device)
        path = next((p.path for p in (*out, *into) if p.parts), ())
        all_to_all(self.rank_group, given, sent, come, taken, path)
        self.worst = max(self.worst, incoming.unpack())


def transport_for(
    rank_group: RankGroup, ranks: tuple[int, ...], kind: str, room: int
) -> Transport:
    """Return what carries data between some ranks, from a kind of device.

    ``room`` is how many bytes of scratch each way may take at a time.
    """
    device = rank_group.device(kind)
    if is_collective(device):
        return AllToAllTransport(rank_group.of_ranks(ranks), device)
    ring = {rank: i for i, rank in enumerate(ranks)}
    return P2PTransport(P2PQueue(rank_group, room), device, ring)
