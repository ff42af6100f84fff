"""The leaves that rules are to be used on, and whether they can be put together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from sdtree.conversion.assembly import Assembly
from sdtree.conversion.binding import Names, misfit
from sdtree.conversion.pieces import Cut, Made, Place, Same
from sdtree.conversion.reading import Fill, Reading
from sdtree.conversion.shares import (
    Share,
    Sizes,
    cut_of,
    held_of,
    layout_of_part,
    resolved,
)
from sdtree.errors import ConvertError
from sdtree.kinds.abstract import Abstract, look_at
from sdtree.kinds.calls import Call
from sdtree.kinds.handler import served_by, stands_for_another, tensors_of
from sdtree.kinds.shards import this_rank
from sdtree.kinds.values import same_leaf
from sdtree.tensors.bits import has_value, same_bits
from sdtree.tensors.storage import storage_of, tie_groups
from sdtree.tree.spec import TreeSpec, take
from sdtree.typing import Dtype, Leaf, Tree

Places = Mapping[Place, int]
"""The positions of the leaves of a group, by term and place in its family."""

Pull = Callable[[Sequence[int]], Sequence[Leaf]]
"""What makes the leaves at some positions."""


@dataclass(frozen=True, slots=True)
class Source:
    """The leaves of a tree: themselves, their names, forms and local tensors.

    ``tied`` are the positions of those that share memory with others; steps before may
    have to make leaves first, which ``pull`` does.
    """

    spec: TreeSpec
    leaves: Sequence[Leaf]
    names: Sequence[str]
    forms: Sequence[Abstract]
    tensors: Sequence[Sequence[Tensor]]
    tied: frozenset[int]
    pull: Pull | None = None

    @classmethod
    def of(cls, tree: Tree) -> Source:
        """Return the leaves of a tree."""
        leaves, spec = take(tree)
        forms, tensors = look_at(leaves, spec.every_path.__getitem__)
        return cls.by(spec, leaves, forms, *_with_unmade(leaves, tensors))

    def over(self, leaves: Sequence[Leaf]) -> Source:
        """Return other leaves of the same forms, which are tied alike."""
        tensors, pull = _with_unmade(leaves, [*map(tensors_of, leaves)])
        return replace(self, leaves=leaves, tensors=tensors, pull=pull)

    def without_data(self) -> Source:
        """Return what is known of the leaves beside themselves."""
        return replace(self, leaves=(), tensors=(), pull=None)

    @classmethod
    def by(
        cls,
        spec: TreeSpec,
        leaves: Sequence[Leaf],
        forms: Sequence[Abstract],
        tensors: Sequence[Sequence[Tensor]],
        pull: Pull | None = None,
    ) -> Source:
        """Return leaves of which forms and local tensors are known."""
        tied = _tied([i for i, ts in enumerate(tensors) for _ in ts], tensors)
        return cls(spec, leaves, spec.unique_names(), forms, tensors, tied, pull)

    def shares(self, k: int, sizes: Sizes, cut: Cut) -> list[tuple[Share, Tensor]]:
        """Return what is here of a part of a leaf: which boxes, and views of them."""
        ts = self.here(k)
        found = held_of(sizes, cut, self.forms[k].layout, this_rank())
        return [(x, cut_of(resolved(ts[x.tensor]), x.sizes, x.cut)) for x in found]

    def at(self, places: Sequence[int]) -> Sequence[Leaf]:
        """Return the leaves at some positions, as the steps before make them."""
        if self.pull is None:
            return [self.leaves[k] for k in places]
        return self.pull(places)

    def here(self, k: int) -> Sequence[Tensor]:
        """Return the local tensors of a leaf, which is made for that if it is to be."""
        [leaf] = self.at([k])
        return self.tensors[k] if leaf is self.leaves[k] else tensors_of(leaf)

    def has_data(self, k: int) -> bool:
        """Return whether a leaf has data, or what it is to be made of has."""
        leaf = self.leaves[k]
        return isinstance(leaf, Assembly) or not stands_for_another(leaf)

    def device(self, k: int) -> torch.device:
        """Return where a leaf lies, or is to lie."""
        leaf = self.leaves[k]
        return leaf.device if isinstance(leaf, Assembly) else self.tensors[k][0].device

    def named(self) -> Names:
        """Return the names and shapes of the leaves."""
        return Names(self.names, [form.shape for form in self.forms])


def _with_unmade(
    leaves: Sequence[Leaf], tensors: list[Sequence[Tensor]]
) -> tuple[Sequence[Sequence[Tensor]], Pull | None]:
    """Return tensors of leaves, and what makes those yet to be put together, if any.

    The tensors of these are to tell with which others they will share memory.
    """
    unmade = {k: x for k, x in enumerate(leaves) if isinstance(x, Assembly)}
    for k, leaf in unmade.items():
        tensors[k] = [leaf.memory]
    return tensors, Call(_made, leaves) if unmade else None


def _made(leaves: Sequence[Leaf], places: Sequence[int]) -> list[Leaf]:
    """Return leaves, those that were yet to be put together as they come to be."""
    found = [leaves[k] for k in places]
    return [x.whole if isinstance(x, Assembly) else x for x in found]


def _tied(owners: Sequence[int], tensors: Sequence[Sequence[Tensor]]) -> frozenset[int]:
    """Return the positions of leaves that share storage, for each tensor its owner.

    An empty part of a tie counts, so that a rank that has no more agrees to it.
    """
    ts = [t for own in tensors for t in own]
    empty = {k: storage_of(t) for k, t in enumerate(ts) if not (t.numel() or t.is_meta)}
    often = Counter(empty.values())
    shared = (k for k, key in empty.items() if often[key] > 1)
    found = chain(shared, *tie_groups(ts))
    return frozenset(owners[k] for k in found)


class Fitting(NamedTuple):
    """What leaves must be like that a rule is to put together.

    Without a rule they only stay.
    """

    source: Source
    rule: Reading | None

    def fault(self, k: int, reason: str) -> ConvertError:
        """Return the error for the leaf at a position."""
        told = f"{self.source.names[k]}: {reason}"
        return ConvertError(told) if self.rule is None else misfit(self.rule, told)

    def check(self, made: Made, places: Sequence[int]) -> torch.dtype:
        """Return the dtype of a leaf that is made of some; raise if none can be."""
        for k in places:
            self.check_tensor(k)
        dtype = self.one_dtype(places)
        assert isinstance(dtype, torch.dtype), "numpy's own are no tensors"
        for fill in made.fills:
            self.check_fill(fill.value, dtype, places[0])
        return dtype

    def have_data(self, places: Sequence[int]) -> bool:
        """Return whether leaves have data; raise ``ConvertError`` if only some have."""
        without = [k for k in places if not self.source.has_data(k)]
        if without and len(without) < len(places):
            raise self.fault(without[0], "it is Abstract, and its partners have data")
        return not without

    def check_tensor(self, k: int) -> None:
        """Raise ``ConvertError`` unless a leaf is a dense tensor, whole or sharded."""
        form = self.source.forms[k]
        layout = form.layout
        if form.is_own_tensor or (layout and not (layout.parts or layout.is_partial)):
            return
        if layout is not None and layout.is_partial:
            told = "it is partial, terms of a reduction; sd.redistribute before makes "
            raise self.fault(k, f"{told}shards of it")
        what = f"a {form.kind.__name__} that is no dense tensor"
        told = f"it is {what}, and can only be handed on; sd.map before makes it one"
        raise self.fault(k, told)

    def one_dtype(self, places: Iterable[int]) -> Dtype:
        """Return the dtype of leaves; raise ``ConvertError`` if they have several."""
        first, *others = places
        dtype = self.source.forms[first].dtype
        for k in others:
            if (own := self.source.forms[k].dtype) != dtype:
                told = f"its dtype is {own}, that of {self.source.names[first]} {dtype}"
                advice = "sd.cast(dtype=...) before makes them one"
                raise self.fault(k, f"{told}; {advice}")
        return dtype

    def one_device(self, places: Iterable[int]) -> torch.device:
        """Return the device of leaves; raise ``ConvertError`` if they have several."""
        first, *others = places
        device = self.source.device(first)
        for k in others:
            if (own := self.source.device(k)) != device:
                told = f"it is on {device} and {self.source.names[k]} on {own}"
                raise self.fault(first, f"{told}; sd.to before moves them to one")
        return device

    def check_fill(self, value: Fill, dtype: torch.dtype, k: int) -> None:
        """Raise ``ConvertError`` if a dtype has no such value."""
        if not has_value(dtype, value):
            raise self.fault(k, f"fill= has {value}, and {dtype} has no such value")

    def check_same(self, same: Same, places: Places) -> None:
        """Raise ``ConvertError`` unless two parts of leaves have the same data.

        Of sharded leaves each rank compares what it has, so they are to lie alike.
        """
        one, other = (places[place] for place in same.places)
        if not self.have_data([one, other]):
            return
        leaves = self.source.at([one, other])
        if all(served_by(leaf).is_plain for leaf in leaves):
            is_same = same_leaf(*leaves)
        else:
            self.check_tensor(one)
            self.check_tensor(other)
            is_same = self._agree(same, one, other)
        if not is_same:
            name = self.source.names[one]
            told = f"it is to agree with {name}, by agree= or alias=, and differs"
            raise self.fault(other, told)

    def _agree(self, same: Same, *places: int) -> bool:
        """Return whether the parts of two leaves that are here have the same bits."""
        if 0 in same.sizes:
            return True
        if not self._lie_alike(same, *places):
            first, last = (self.source.names[k] for k in places)
            raise self.fault(
                places[1],
                f"it is to agree with {first}, by agree= or alias=, and ranks hold "
                f"other parts of {last}; sd.redistribute before brings them together",
            )
        both = [
            self.source.shares(k, same.sizes, cut)
            for k, cut in zip(places, same.cuts, strict=True)
        ]
        pairs = [*zip(*([t for _, t in found] for found in both), strict=True)]
        if any(one.is_meta != other.is_meta for one, other in pairs):
            self.one_device(places)
        return all(one.is_meta or same_bits(one, other) for one, other in pairs)

    def _lie_alike(self, same: Same, *places: int) -> bool:
        """Return whether each rank has the same of both parts, not this one alone.

        So all of them tell it, and none goes on without the others.
        """
        layouts = [self.source.forms[k].layout for k in places]
        known = {rank for layout in layouts if layout for rank in layout.ranks}
        ranks = tuple(sorted({*known, this_rank()}))
        one, other = (
            layout_of_part(same.sizes, cut, layout, ranks)
            for cut, layout in zip(same.cuts, layouts, strict=True)
        )
        return one == other
