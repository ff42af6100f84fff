"""What becomes of one group of leaves: those that are handed on, and assemblies."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Final, NamedTuple

import torch

from sdtree.conversion.assembly import Assembly
from sdtree.conversion.binding import Group, misfit
from sdtree.conversion.naming import At, Found, Pattern
from sdtree.conversion.pieces import Made, pieces_of
from sdtree.conversion.reading import Reading
from sdtree.conversion.source import Fitting, Places, Source
from sdtree.kinds.abstract import Abstract
from sdtree.kinds.handler import served_by
from sdtree.tensors.storage import identity_of
from sdtree.typing import Leaf

AS_IT_IS: Final = "as it is"
"""The way of a leaf that is handed on."""


class Target(NamedTuple):
    """A leaf that comes of a rule, and the positions of those it is made of.

    ``home`` is the first of these.
    """

    name: str
    home: int
    leaf: Leaf
    parts: Sequence[int]


Cache = dict[tuple[int, At], Leaf]
"""What was assembled of a group, by term and place in its family."""


class Memory(NamedTuple):
    """Where leaves go that share memory, and what was assembled of such."""

    ways: dict[int, Hashable]
    assembled: dict[Hashable, Cache]


class Joining(NamedTuple):
    """A group of leaves on its way; ``places`` are their positions."""

    source: Source
    rule: Reading
    group: Group
    places: Places

    @classmethod
    def of(cls, source: Source, rule: Reading, group: Group) -> Joining:
        """Return a group with the positions of its leaves."""
        families = enumerate(group.sources)
        places = {(i, at): k for i, family in families for at, k in family.items()}
        return cls(source, rule, group, places)

    @property
    def fitting(self) -> Fitting:
        """Return what the leaves must be like."""
        return Fitting(self.source, self.rule)

    def targets(self, writers: Sequence[Pattern], memory: Memory) -> Iterator[Target]:
        """Yield the leaves that come of the group."""
        pieces = pieces_of(self.rule, self.group.sizes)
        for family in self.group.sources:
            if len(family) > 1:
                self.fitting.one_dtype(family.values())
        for same in pieces.same:
            self.fitting.check_same(same, self.places)
        way = self._way()
        cache = Cache() if way is None else memory.assembled.setdefault(way, Cache())
        for i, family in enumerate(pieces.targets):
            for at, made in family.items():
                views = [piece.view for piece in made.pieces]
                used = [self.places[view.source, view.at] for view in views]
                used = used or [min(self.places.values())]
                leaf = self._leaf(i, at, made, cache, way is not None)
                self._note(made, way, memory)
                yield Target(self._name(writers[i], at), min(used), leaf, used)

    def _name(self, writer: Pattern, at: At) -> str:
        """Return the name of a leaf to come, which is to read as it is written."""
        found = Found(self.group.key, at)
        name = writer.write(found)
        if writer.read(name) != found:
            told = f"{name}: this name can be read in several ways, and has no way back"
            raise misfit(self.rule, told)
        return name

    # -- memory that leaves share --------------------------------------------------

    def _way(self) -> Hashable:
        """Return what is the same for groups of the same data, None where none is."""
        if self.source.tied.isdisjoint(self.places.values()):
            return None
        data = (identity_of(self.source.tensors[k]) for k in self.places.values())
        return id(self.rule), self.group.sizes, tuple(self.places), *data

    def _note(self, made: Made, way: Hashable, memory: Memory) -> None:
        """Note where the leaves go that share memory."""
        if way is None:
            return
        for piece in made.pieces:
            place = piece.view.source, piece.view.at
            own = AS_IT_IS if made.passed else (way, place)
            memory.ways.setdefault(self.places[place], own)

    # -- leaves --------------------------------------------------------------------

    def _leaf(self, i: int, at: At, made: Made, cache: Cache, is_tied: bool) -> Leaf:
        """Return a leaf to come: one that is handed on, or what it is made of."""
        slots = self.rule.slots_of(self.rule.target[i])
        if made.passed is not None:
            leaf = self.source.leaves[self.places[made.passed]]
            if self.rule.agree.isdisjoint(slots) or served_by(leaf).is_plain:
                return leaf
        pairs = zip(slots, at, strict=True)
        own = i, tuple(0 if axis in self.rule.alias else n for axis, n in pairs)
        if own not in cache:
            is_one = not is_tied and self.rule.alias.isdisjoint(slots)
            cache[own] = self._assembled(made, is_one)
        return cache[own]

    def _assembled(self, made: Made, is_one: bool) -> Leaf:
        """Return what a leaf is made of, or its form where no data is there."""
        fitting = self.fitting
        views = (piece.view for piece in made.pieces)
        found = dict.fromkeys((view.source, view.at) for view in views) or self.places
        used = {place: self.places[place] for place in found}
        every = sorted({*used.values()})
        fitting.check_tensors(every)
        dtype = fitting.one_dtype(every)
        for fill in made.fills:
            fitting.check_fill(fill.value, dtype)
        if not fitting.have_data(every):
            return Abstract.dense(made.shape, dtype)
        sources = {place: self.source.tensors[k][0] for place, k in used.items()}
        mark = None if is_one else torch.empty(1, dtype=torch.uint8)
        return Assembly(made, sources, dtype, fitting.one_device(every), mark)
