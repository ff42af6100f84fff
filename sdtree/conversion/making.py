"""The leaves that come of rules: handed on, yet to be put together, or without data."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from sdtree.conversion.assembly import Assembly, Sources
from sdtree.conversion.fusing import Between, Origins, through
from sdtree.conversion.joining import Target
from sdtree.conversion.pieces import Made, Place
from sdtree.conversion.sharding import Scattered, scattered
from sdtree.conversion.source import Fitting, Places, Source
from sdtree.kinds.abstract import Abstract
from sdtree.typing import Leaf

Fused = dict[Hashable, tuple[tuple[Made, Origins] | None, object]]
"""What leaves are made of in two steps at once, and what keeps their keys alive."""


@dataclass(frozen=True, slots=True)
class Making:
    """The leaves of a source, and those that were made of them, by their keys."""

    source: Source
    made: dict[Hashable, Leaf] = field(default_factory=dict[Hashable, Leaf])
    fused: Fused = field(default_factory=dict[Hashable, Any])
    between: dict[int, Between] = field(default_factory=dict[int, Between])

    def over(self, source: Source) -> Making:
        """Return what makes leaves of a source of the same forms in the same ways."""
        return Making(source, fused=self.fused, between=self.between)

    def leaf(self, target: Target) -> Leaf:
        """Return a leaf to come, or what it is to be put together of.

        What is made of sharded leaves is made at once: its parts are views, or copies
        of what others have as well.
        """
        passed = target.made.passed
        if passed is not None:
            return self.source.leaves[target.places[passed]]
        if target.key not in self.made:
            self.made[target.key] = self._made(target)
        return self.made[target.key]

    def _made(self, target: Target) -> Leaf:
        places = parts_of(target)
        every = sorted({*places.values()})
        fitting = Fitting(self.source, target.rule)
        dtype = fitting.check(target.made, every)
        if any(self.source.forms[k].layout is not None for k in every):
            return self._scattered(fitting, target, places)
        if not fitting.have_data(every):
            return Abstract.dense(target.made.shape, dtype)
        mark = None if target.is_alone else torch.empty(1, dtype=torch.uint8)
        device = fitting.one_device(every)
        return Assembly(*self._parts(target.made, places), dtype, device, mark)

    def _parts(self, made: Made, places: Places) -> tuple[Made, Sources]:
        """Return what a leaf is made of, and the tensors of that.

        Of leaves that are yet to be made it is what these are to be made of.
        """
        between = {
            place: leaf
            for place, k in places.items()
            if isinstance(leaf := self.source.leaves[k], Assembly)
        }
        fused = self._fused(made, between) if between else None
        if fused is None:
            return made, {p: self.source.here(k)[0] for p, k in places.items()}
        given = [p for p in places if p not in between]
        tensors = {p: self.source.tensors[places[p]][0] for p in given}
        for new, (place, own) in fused[1].items():
            tensors[new] = between[place].sources[own]
        return fused[0], tensors

    def _fused(
        self, made: Made, between: Mapping[Place, Assembly]
    ) -> tuple[Made, Origins] | None:
        """Return what comes of two ways, worked out once for those that are alike."""
        ways = {place: leaf.made for place, leaf in between.items()}
        key = id(made), *((place, id(way)) for place, way in ways.items())
        if key not in self.fused:
            for way in ways.values():
                if id(way) not in self.between:
                    self.between[id(way)] = Between.of(way)
            known = {place: self.between[id(way)] for place, way in ways.items()}
            self.fused[key] = through(made, known), (made, ways)
        return self.fused[key][0]

    def _scattered(
        self, fitting: Fitting, target: Target, places: Mapping[Place, int]
    ) -> Leaf:
        """Return a leaf that has parts of sharded ones, or its form."""
        every = sorted({*places.values()})
        has_data = fitting.have_data(every)
        device = fitting.one_device(every)
        forms = self.source.forms
        like = torch.empty(0, dtype=forms[every[0]].dtype, device=device)
        layouts = tuple((place, forms[k].layout) for place, k in places.items())
        sources = {place: self.source.here(k) for place, k in places.items()}
        try:
            leaf = scattered(target.made, layouts, sources, like, copied=target.is_copy)
        except Scattered as error:
            raise fitting.fault(
                every[0],
                f"{target.name} would be {error}; give like=, a tree of "
                "targets, so that what lies elsewhere is exchanged",
            ) from None
        return leaf if has_data else Abstract.of(leaf)


def parts_of(target: Target) -> Mapping[Place, int]:
    """Return what a leaf is made of; all of its group if it is but filled."""
    found = dict.fromkeys(piece.place for piece in target.made.pieces)
    return {place: target.places[place] for place in found or target.places}


def used_by(target: Target) -> Sequence[int]:
    """Return the positions of the leaves that a leaf is made of, each once."""
    return sorted({*parts_of(target).values()})
