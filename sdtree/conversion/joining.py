"""What becomes of one group of leaves: those that are handed on, and assemblies."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

from sdtree.conversion.assembly import Assembly, agrees
from sdtree.conversion.binding import Group, Names, misfit
from sdtree.conversion.naming import At, Found, Pattern
from sdtree.conversion.pieces import Made, Same, pieces_of
from sdtree.conversion.reading import Fill, Reading
from sdtree.errors import ConvertError
from sdtree.kinds.abstract import Abstract, look_at
from sdtree.kinds.handler import served_by, stands_for_another
from sdtree.kinds.values import same_leaf
from sdtree.tensors.storage import identity_of, tie_groups
from sdtree.tree.spec import TreeSpec, take
from sdtree.typing import Dtype, Leaf, Tree

AS_IT_IS: Final = "as it is"
"""The way of a leaf that is handed on."""


@dataclass(frozen=True, slots=True)
class Source:
    """The leaves of a tree: themselves, their names, forms and local tensors.

    ``tied`` are the positions of those that share memory with others.
    """

    spec: TreeSpec
    leaves: Sequence[Leaf]
    names: Sequence[str]
    forms: Sequence[Abstract]
    tensors: Sequence[Sequence[Tensor]]
    tied: frozenset[int]

    @classmethod
    def of(cls, tree: Tree) -> Source:
        """Return the leaves of a tree."""
        leaves, spec = take(tree)
        names = spec.unique_names()
        forms, tensors = look_at(leaves, spec.every_path.__getitem__)
        owners = [i for i, ts in enumerate(tensors) for _ in ts]
        groups = tie_groups([t for ts in tensors for t in ts])
        tied = frozenset(owners[k] for group in groups for k in group)
        return cls(spec, leaves, names, forms, tensors, tied)

    def named(self) -> Names:
        """Return the names and shapes of the leaves."""
        return Names(self.names, [form.shape for form in self.forms])


class Target(NamedTuple):
    """A leaf that comes of a rule, and the positions of those it is made of.

    ``home`` is the first of these.
    """

    name: str
    home: int
    leaf: Leaf
    parts: Sequence[int]


class Memory(NamedTuple):
    """Where leaves go that share memory, and what was assembled of such."""

    ways: dict[int, Hashable]
    assembled: dict[Hashable, Cache]


Cache = dict[tuple[int, At], Leaf]


class Joining(NamedTuple):
    """A group of leaves on its way; ``places`` are their positions."""

    source: Source
    rule: Reading
    group: Group
    places: Mapping[tuple[int, At], int]

    @classmethod
    def of(cls, source: Source, rule: Reading, group: Group) -> Joining:
        """Return a group with the positions of its leaves."""
        families = enumerate(group.sources)
        places = {(i, at): k for i, family in families for at, k in family.items()}
        return cls(source, rule, group, places)

    def targets(self, writers: Sequence[Pattern], memory: Memory) -> Iterator[Target]:
        """Yield the leaves that come of the group."""
        pieces = pieces_of(self.rule, self.group.sizes)
        for family in self.group.sources:
            if len(family) > 1:
                self._one_dtype(family.values())
        for same in pieces.same:
            self._compare(same)
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

    # -- memory that leaves share ----------------------------------------------------

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
        term = self.rule.target[i]
        slots = [slot.axis for slot in term.slots if slot.axis not in self.rule.keys]
        if made.passed is not None:
            leaf = self.source.leaves[self.places[made.passed]]
            if self.rule.agree.isdisjoint(slots) or served_by(leaf).is_plain:
                return leaf
        own = tuple(
            0 if axis in self.rule.alias else n
            for axis, n in zip(slots, at, strict=True)
        )
        if (i, own) not in cache:
            is_one = not is_tied and self.rule.alias.isdisjoint(slots)
            cache[i, own] = self._assembled(made, is_one)
        return cache[i, own]

    def _assembled(self, made: Made, is_one: bool) -> Leaf:
        """Return what a leaf is made of, or its form where no data is there."""
        views = [piece.view for piece in made.pieces]
        places = {(view.source, view.at) for view in views} or {*self.places}
        used = sorted({self.places[place] for place in places})
        for k in used:
            self._check_tensor(k)
        dtype = self._one_dtype(used)
        for fill in made.fills:
            self._check_fill(fill.value, dtype)
        abstract = [k for k in used if stands_for_another(self.source.leaves[k])]
        if len(abstract) == len(used):
            return Abstract.dense(made.shape, dtype)
        if abstract:
            raise self._fault(
                abstract[0], "it is Abstract and has no data, and others do"
            )
        sources = {
            place: self.source.tensors[self.places[place]][0] for place in places
        }
        [device, *more] = dict.fromkeys(t.device for t in sources.values())
        if more:
            told = (
                f"it is on {more[0]} and others on {device}; sd.to(device) moves them"
            )
            raise self._fault(used[0], told)
        mark = None if is_one else torch.empty(1, dtype=torch.uint8)
        return Assembly(made, sources, dtype, device, mark)

    def _fault(self, k: int, reason: str) -> ConvertError:
        return misfit(self.rule, f"{self.source.names[k]}: {reason}")

    def _check_tensor(self, k: int) -> None:
        """Raise ``ConvertError`` unless a leaf is one dense tensor of its own."""
        form = self.source.forms[k]
        if form.is_own_tensor:
            return
        if form.layout is not None:
            reason = "it is sharded; sd.gather() before makes it whole"
        elif form.dtype is None:
            reason = (
                f"it is a {form.kind.__name__}, which can only be handed on; sd.map "
                "before makes it a tensor"
            )
        else:
            reason = (
                f"it is a {form.kind.__name__} that is no dense tensor, and can only "
                "be handed on; sd.map before makes it one"
            )
        raise self._fault(k, reason)

    def _one_dtype(self, places: Iterable[int]) -> Dtype:
        """Return the dtype of leaves; raise ``ConvertError`` if they have several."""
        first, *others = places
        dtype = self.source.forms[first].dtype
        for k in others:
            if (own := self.source.forms[k].dtype) != dtype:
                raise self._fault(
                    k,
                    f"its dtype is {own}, and that of {self.source.names[first]} "
                    f"{dtype}; sd.cast(dtype=...) before makes them one",
                )
        return dtype

    def _check_fill(self, value: Fill, dtype: torch.dtype) -> None:
        """Raise ``ConvertError`` if a dtype has no such value."""
        if dtype.is_floating_point or dtype.is_complex:
            return
        whole = isinstance(value, (int, bool)) or float(value).is_integer()
        least, most = (0, 1) if dtype == torch.bool else _range(dtype)
        if not whole or not least <= value <= most:
            raise misfit(self.rule, f"fill= has {value}, and {dtype} has no such value")

    # -- what is to be the same ----------------------------------------------------

    def _compare(self, same: Same) -> None:
        """Raise ``ConvertError`` unless two parts of leaves have the same data."""
        k, other = (self.places[x.source, x.at] for x in (same.one, same.other))
        leaves = [self.source.leaves[i] for i in (k, other)]
        if any(map(stands_for_another, leaves)):
            return
        if all(served_by(leaf).is_plain for leaf in leaves):
            is_same = same_leaf(*leaves)
        else:
            self._check_tensor(k)
            self._check_tensor(other)
            tensors = {
                place: self.source.tensors[i][0]
                for place, i in self.places.items()
                if i in (k, other)
            }
            is_same = any(t.is_meta for t in tensors.values()) or agrees(tensors, same)
        if not is_same:
            name = self.source.names[k]
            raise self._fault(
                other, f"it is to agree with {name}, by agree= or alias=, and differs"
            )


def _range(dtype: torch.dtype) -> tuple[int, int]:
    found = torch.iinfo(dtype)
    return found.min, found.max
