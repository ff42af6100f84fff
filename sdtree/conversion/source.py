"""The leaves that rules are to be used on, and whether they can be put together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sdtree.conversion.assembly import agrees
from sdtree.conversion.binding import Names, misfit
from sdtree.conversion.naming import At
from sdtree.conversion.pieces import Same
from sdtree.conversion.reading import Fill, Reading
from sdtree.errors import ConvertError
from sdtree.kinds.abstract import Abstract, look_at
from sdtree.kinds.handler import served_by, stands_for_another
from sdtree.kinds.values import same_leaf
from sdtree.tensors.storage import tie_groups
from sdtree.tree.spec import TreeSpec, take
from sdtree.typing import Dtype, Leaf, Tree

Places = Mapping[tuple[int, At], int]
"""The positions of the leaves of a group, by term and place in its family."""


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


class Fitting(NamedTuple):
    """What leaves must be like that a rule is to put together."""

    source: Source
    rule: Reading

    def fault(self, k: int, reason: str) -> ConvertError:
        """Return the error for the leaf at a position."""
        return misfit(self.rule, f"{self.source.names[k]}: {reason}")

    def have_data(self, places: Sequence[int]) -> bool:
        """Return whether leaves have data; raise ``ConvertError`` if only some have."""
        without = [k for k in places if stands_for_another(self.source.leaves[k])]
        if without and len(without) < len(places):
            raise self.fault(without[0], "it is Abstract, and its partners have data")
        return not without

    def check_tensors(self, places: Iterable[int]) -> None:
        """Raise ``ConvertError`` unless each leaf is one dense tensor of its own."""
        for k in places:
            form = self.source.forms[k]
            if form.is_own_tensor:
                continue
            if form.layout is not None:
                raise self.fault(k, "it is sharded; sd.gather() before makes it whole")
            what = f"a {form.kind.__name__} that is no dense tensor"
            told = (
                f"it is {what}, and can only be handed on; sd.map before makes it one"
            )
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
        device = self.source.tensors[first][0].device
        for k in others:
            if (own := self.source.tensors[k][0].device) != device:
                told = f"it is on {device} and {self.source.names[k]} on {own}"
                raise self.fault(first, f"{told}; sd.to before moves them to one")
        return device

    def check_fill(self, value: Fill, dtype: torch.dtype) -> None:
        """Raise ``ConvertError`` if a dtype has no such value."""
        if dtype.is_floating_point or dtype.is_complex:
            return
        least, most = 0, 1
        if dtype != torch.bool:
            known = torch.iinfo(dtype)
            least, most = known.min, known.max
        if not (float(value).is_integer() and least <= value <= most):
            raise misfit(self.rule, f"fill= has {value}, and {dtype} has no such value")

    def check_same(self, same: Same, places: Places) -> None:
        """Raise ``ConvertError`` unless two parts of leaves have the same data."""
        both = {
            x: places[x] for x in ((y.source, y.at) for y in (same.one, same.other))
        }
        leaves = [self.source.leaves[k] for k in both.values()]
        if any(map(stands_for_another, leaves)):
            return
        if all(served_by(leaf).is_plain for leaf in leaves):
            is_same = same_leaf(leaves[0], leaves[-1])
        else:
            self.check_tensors(both.values())
            tensors = {x: self.source.tensors[k][0] for x, k in both.items()}
            is_same = any(t.is_meta for t in tensors.values()) or agrees(tensors, same)
        if not is_same:
            first, *_, last = [*both.values()] * 2
            name = self.source.names[first]
            told = f"it is to agree with {name}, by agree= or alias=, and differs"
            raise self.fault(last, told)
