"""What is known of the leaves of a run on their way, and the bytes that these take."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sdtree.kinds.abstract import Abstract, nbytes_of
from sdtree.plan.traffic import Ranks
from sdtree.tensors.outcome import bytes_taken, tie_bytes
from sdtree.tensors.remake import tied_still
from sdtree.tensors.storage import tie_groups
from sdtree.typing import Leaf, Path

Memory = dict[str, Tensor]
"""Bytes on each rank, by the kind of device on which they lie."""


class Moved(NamedTuple):
    """The bytes of a leaf that each rank has sent, and received."""

    sent: Tensor
    received: Tensor

    def and_also(self, other: Moved) -> Moved:
        """Return both together."""
        return Moved(self.sent + other.sent, self.received + other.received)


class Room(NamedTuple):
    """Memory in which several leaves lie: what it is known by, and its bytes."""

    key: Hashable
    nbytes: Tensor


class LeafCost(NamedTuple):
    """A leaf on its way: what it is, and its bytes on each rank, on a kind of device.

    ``is_new``: the stretch at hand has made them; ``is_made``: one before has;
    ``is_unmade``: a later stage will.
    ``source`` is where it came from, and what it was there; None for a leaf of
    ``like=``. ``ranks`` are those that have it, None if all. ``others`` is where the
    other leaves came from that it is made of, if there are any.

    ``nbytes`` are those that it takes for itself. ``ts`` are the local tensors of the
    input that it is laid out as, and is tied as to others in the same ``memory``;
    ``rooms`` are where it lies if the run has made it.
    """

    form: Abstract
    nbytes: Tensor
    home: str
    is_new: bool = False
    source: tuple[Path, Abstract] | None = None
    ranks: Ranks | None = None
    moved: Moved | None = None
    others: tuple[Path, ...] = ()
    is_unmade: bool = False
    ts: tuple[Tensor, ...] = ()
    memory: object = None
    rooms: tuple[Room, ...] = ()
    is_made: bool = False

    def on(self, mask: Tensor | int) -> LeafCost:
        """Return the leaf where a mask is one."""
        rooms = tuple(Room(key, nbytes * mask) for key, nbytes in self.rooms)
        return self._replace(nbytes=self.nbytes * mask, rooms=rooms)

    def come_to_be(self) -> LeafCost:
        """Return the leaf made, if it was yet to be."""
        return self._replace(is_new=True, is_unmade=False) if self.is_unmade else self

    def counted(self) -> LeafCost:
        """Return the leaf as one that lies there, whoever has made it."""
        return self._replace(is_new=False, is_made=True) if self.is_new else self

    def untied(self) -> LeafCost:
        """Return the leaf as one that is tied to no other, if it was made."""
        room = Room(object(), self.nbytes)
        alone = self._replace(ts=(), memory=None, rooms=(room,))
        return alone if self.is_new else self

    def made_of(self, parts: Sequence[LeafCost]) -> LeafCost:
        """Return the leaf as one that is made of some others, if there are any."""
        if not parts:
            return self
        sources = [x.source[0] for x in parts if x.source is not None]
        paths = [*sources, *(path for x in parts for path in x.others)]
        others = tuple(dict.fromkeys(paths[1:]))
        return self._replace(source=parts[0].source, others=others)


Known = dict[Path, LeafCost]

Come = tuple[int, LeafCost]
"""What comes to a stage that communicates, with its place before."""


def home_of(leaf: Leaf) -> str:
    """Return the kind of device that a leaf lies on, or that it stands for."""
    mesh = getattr(leaf, "device_mesh", None)
    if mesh is not None:
        return mesh.device_type
    found = getattr(getattr(leaf, "device", None), "type", "cpu")
    return "cpu" if found == "meta" else found


def after(held: LeafCost, form: Abstract, copied: bool, home: str | None) -> LeafCost:
    """Return what a step makes of a leaf: the same object if it lets it be."""
    before, there = held.form, held.home if home is None else home
    changed = form.dtype != before.dtype or there != held.home
    if form.dtype is None or not (copied or changed):
        return held
    old = nbytes_of(before)
    nbytes = held.nbytes * nbytes_of(form) // old if old else held.nbytes
    rooms = (Room(object(), nbytes),)
    return held._replace(form=form, nbytes=nbytes, home=there, is_new=True, rooms=rooms)


def tied_anew(before: Sequence[LeafCost], made: Sequence[LeafCost]) -> list[LeafCost]:
    """Return what a step has made; what stays tied in it counts for the first alone.

    Those do that lie in one memory before, and become another dtype only together.
    """
    found = list(made)
    groups: dict[Hashable, list[int]] = {}
    for k, (old, new) in enumerate(zip(before, made, strict=True)):
        if new is not old and new.ts:
            dtypes = old.form.dtype, new.form.dtype
            into = None if dtypes[0] == dtypes[1] else dtypes
            groups.setdefault((id(old.memory), into, new.home), []).append(k)
    for places in groups.values():
        memory, ts = object(), [t for k in places for t in found[k].ts]
        ties = [*enumerate(tied_still(ts, tie_groups(ts), None))]
        sizes = [tie_bytes([ts[i] for i in tie]) for _, tie in ties]
        tie_of = {i: number for number, tie in ties for i in tie}
        every = iter(range(len(ts)))
        for k in places:
            own = [tie_of.get(next(every)) for _ in found[k].ts]
            rooms = _rooms(found[k], memory, own, sizes) or found[k].rooms
            found[k] = found[k]._replace(memory=memory, rooms=rooms)
    return found


def _rooms(
    held: LeafCost, memory: object, ties: Sequence[int | None], sizes: Sequence[int]
) -> tuple[Room, ...]:
    """Return where a leaf lies of which tensors belong to ties, nothing if none do."""
    if held.form.layout is not None:
        return () if None in ties else (Room((memory, *ties), held.nbytes),)
    takes = [*map(bytes_taken, held.ts)]
    if not sum(takes) or not {*ties} - {None}:
        return ()
    return tuple(
        Room((memory, tie), held.nbytes * sizes[tie] // sum(takes))
        if tie is not None
        else Room(object(), held.nbytes * nbytes // sum(takes))
        for tie, nbytes in zip(ties, takes, strict=True)
    )


def beside(before: Iterable[LeafCost], leaves: Iterable[LeafCost]) -> list[LeafCost]:
    """Return the leaves that are not among those that were there before."""
    kept = {*map(id, before)}
    return [x for x in leaves if id(x) not in kept]


def new_in(leaves: Iterable[LeafCost]) -> Memory:
    """Return what the run has made of some leaves, each and each room of ties once."""
    found: Memory = {}
    seen: set[Hashable] = set()
    for held in leaves:
        for key, nbytes in held.rooms or [(id(held), held.nbytes)]:
            if held.is_new and (held.home, key) not in seen:
                seen.add((held.home, key))
                at = found.get(held.home)
                found[held.home] = nbytes if at is None else at + nbytes
    return found


def made_in(leaves: Iterable[LeafCost]) -> Memory:
    """Return what the run has made in stretches before, each leaf once."""
    every = {id(x): x for x in leaves if x.is_made}
    return new_in([x._replace(is_new=True) for x in every.values()])


def total(*memories: Memory) -> Memory:
    """Return what several take together."""
    return _merged(torch.add, memories)


def greatest(*memories: Memory) -> Memory:
    """Return the most that one of several takes, by rank and kind of device."""
    return _merged(torch.maximum, memories)


def _merged(
    act: Callable[[Tensor, Tensor], Tensor], memories: Sequence[Memory]
) -> Memory:
    found: Memory = {}
    for memory in memories:
        for home, nbytes in memory.items():
            at = found.get(home)
            found[home] = nbytes if at is None else act(at, nbytes)
    return found
