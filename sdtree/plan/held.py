"""What is known of the leaves of a run on their way, and the bytes that these take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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


class LeafCost(NamedTuple):
    """A leaf on its way: what it is, and its bytes on each rank, on a kind of device.

    ``is_new``: the stretch at hand has made them; ``is_unmade``: a later stage will.
    ``source`` is where it came from, and what it was there; None for a leaf of
    ``like=``. ``ranks`` are those that have it, None if all. ``others`` is where the
    other leaves came from that it is made of, if there are any.
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

    def come_to_be(self) -> LeafCost:
        """Return the leaf made, if it was yet to be."""
        return self._replace(is_new=True, is_unmade=False) if self.is_unmade else self

    def counted(self) -> LeafCost:
        """Return the leaf as one that lies there, whoever has made it."""
        return self._replace(is_new=False) if self.is_new else self

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
    return held._replace(form=form, nbytes=nbytes, home=there, is_new=True)


def beside(before: Iterable[LeafCost], leaves: Iterable[LeafCost]) -> list[LeafCost]:
    """Return the leaves that are not among those that were there before."""
    kept = {*map(id, before)}
    return [x for x in leaves if id(x) not in kept]


def new_in(leaves: Iterable[LeafCost]) -> Memory:
    """Return what the run has made of some leaves."""
    found: Memory = {}
    for held in leaves:
        if held.is_new:
            at = found.get(held.home)
            found[held.home] = held.nbytes if at is None else at + held.nbytes
    return found


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


def bytes_made(ts: Sequence[Tensor]) -> list[int]:
    """Return how many bytes each takes when all are remade; a tie's are its first's.

    >>> flat = torch.zeros(100, dtype=torch.uint8)
    >>> bytes_made([flat[2:4], flat[8:9], flat.clone()])
    [7, 0, 100]
    """
    made = [*map(bytes_taken, ts)]
    for first, *others in tied_still(ts, tie_groups(ts), None):
        made[first] = tie_bytes([ts[i] for i in (first, *others)])
        for i in others:
            made[i] = 0
    return made
