"""Targets that the caller gives to write into: do they fit, and lie apart?"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from torch import Tensor

from sdtree.arena import loss
from sdtree.deals import Cargo, Origin, per_lane
from sdtree.errors import SpecMismatch
from sdtree.joint import identity_of
from sdtree.kinds.abstract import Abstract
from sdtree.leaf import handler_of, tensors_of
from sdtree.overlap import clash_of, is_repeating, way
from sdtree.path import where
from sdtree.shapes import pair
from sdtree.treespec import TreeSpec, take
from sdtree.typing import Leaf, Path, Tree

MOST_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Targets:
    """The leaves to write into, by position, and their local tensors.

    ``wanted`` are those that this rank is to write; the others may be anything.
    """

    paths: Sequence[Path]
    leaves: Sequence[Leaf]
    wanted: Sequence[bool]
    tensors: Sequence[Sequence[Tensor]]

    @classmethod
    def of(cls, into: Tree, spec: TreeSpec, wanted: Sequence[bool]) -> Targets:
        """Return the targets at the paths of a spec."""
        given, other = take(into)
        leaves = [given[k] for k in pair(spec, other, "into=")]
        tensors = [
            tensors_of(leaf) if wants else ()
            for leaf, wants in zip(leaves, wanted, strict=True)
        ]
        return cls(spec.paths(), leaves, wanted, tensors)

    def cargo(self, i: int, ts: Sequence[Tensor], count: int) -> Cargo:
        """Return what is written of a leaf that has these local tensors, by lanes."""
        targets = per_lane(self.tensors[i], count)
        return Cargo(self.leaves[i], per_lane(ts, count), targets)

    def check(
        self, forms: Sequence[Abstract], origin: Origin, ties: Sequence[Sequence[int]]
    ) -> None:
        """Raise ``SpecMismatch`` unless leaves of these forms can be written here."""
        found: list[str] = []
        for i, form in enumerate(forms):
            if self.wanted[i] and (reason := self._misfit(i, form)):
                found.append(f"{where(self.paths[i])}: {reason}")
        if found:
            more = len(found) - MOST_SHOWN
            shown = "; ".join(found[:MOST_SHOWN]) + (f" and {more} more" * (more > 0))
            raise SpecMismatch(f"into= does not fit, nothing was moved; {shown}")
        self.check_apart(origin, ties, [] if origin.is_acted_on else origin.leaves)

    def _misfit(self, i: int, form: Abstract) -> str:
        buffer = Abstract.of(self.leaves[i])
        for what, here, there in (
            ("shape", form.shape, buffer.shape),
            ("dtype", form.dtype, buffer.dtype),
            ("local tensors", form.forms(), buffer.forms()),
        ):
            if here != there:
                return f"{what} {here} here, {there} in the buffer"
        return self.unfit(i)

    def unfit(self, i: int) -> str:
        """Return why nothing can be written into a leaf, empty if it can."""
        for t in self.tensors[i]:
            if t.is_meta:
                return "the buffer is meta and holds nothing"
            if lost := loss(t, t.untyped_storage().nbytes()):
                return lost
            if is_repeating(t):
                return "the buffer is expanded: one element stands in several places"
        leaf = self.leaves[i]
        return handler_of(leaf).unfit(leaf)

    def check_apart(
        self,
        origin: Origin | None,
        ties: Sequence[Sequence[int]],
        twins: Sequence[Leaf] = (),
    ) -> None:
        """Raise if a target overlaps a source, or one that is not tied as it is.

        ``twins`` are the leaves that go to the targets, each to its own.
        """
        sources = [] if origin is None or origin.is_acted_on else origin.held
        every = [*chain.from_iterable(self.tensors)]
        owners = [i for i, ts in enumerate(self.tensors) for _ in ts]
        foreign = [*chain.from_iterable(sources)]
        found = clash_of(
            [*every, *foreign],
            lambda: [*self._colours(ties, twins), *("source",) * len(foreign)],
        )
        if found is None:
            return
        a, b = found
        here = where(self.paths[owners[a]])
        if b >= len(every):
            raise SpecMismatch(
                f"into= overlaps the source, nothing was moved; the buffer at {here} "
                "shares memory with a leaf of the source"
            )
        raise SpecMismatch(
            "into= has buffers that overlap where the source does not, and nothing "
            f"was moved; those at {here} and {where(self.paths[owners[b]])} share "
            "memory"
        )

    def _colours(
        self, ties: Sequence[Sequence[int]], twins: Sequence[Leaf]
    ) -> Iterator[Hashable]:
        """Yield of each local tensor what those have in common that may overlap.

        They lie to each other as their twins do, or are one where the leaves are tied.
        """
        group = {i: k for k, tie in enumerate(ties) for i in tie}
        for i, ts in enumerate(self.tensors):
            sources = tensors_of(twins[i]) if twins else ()
            if ts and [*map(Tensor.size, sources)] == [*map(Tensor.size, ts)]:
                yield from map(way, sources, ts)
            elif i in group:
                yield from ((group[i], k, identity_of([t])) for k, t in enumerate(ts))
            else:
                yield from ((i, k) for k in range(len(ts)))
