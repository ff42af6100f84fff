"""Targets that the caller gives to write into: do they fit, and lie apart?"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final

from torch import Tensor

from sdtree.errors import SpecMismatch, UnknownLeaf, listed
from sdtree.exchange.beside import (
    difference_beside,
    difference_in,
    makeups_in,
)
from sdtree.exchange.leaf_plan import LeafBuffers, StageInput, per_transfer
from sdtree.kinds.abstract import Abstract, has_no_makeup
from sdtree.kinds.handler import Makeup, handler_of, makeup_of, tensors_of
from sdtree.path import where
from sdtree.tensors.storage import loss
from sdtree.transform.form import Look
from sdtree.transform.overlap import (
    IN_TURN,
    check_apart,
    is_repeating,
    lie_in_others,
    way,
)
from sdtree.tree.pairing import pair
from sdtree.tree.spec import TreeSpec, take
from sdtree.typing import Leaf, Path, Tree

NOT_ONE: Final = "and are not one and the same leaf, here and in the source"
"""How buffers are not to lie where ranks know of a source which leaves are one."""


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
        paths, tensors = spec.paths(), list[Sequence[Tensor]]()
        try:
            for leaf, wants in zip(leaves, wanted, strict=True):
                tensors.append(tensors_of(leaf) if wants else ())
        except UnknownLeaf as error:
            raise UnknownLeaf(f"{where(paths[len(tensors)])}: {error}") from None
        return cls(paths, leaves, wanted, tensors)

    def again(
        self,
        source: StageInput | None,
        given: Look | None,
        spec: TreeSpec,
        ties: Sequence[Sequence[int]],
    ) -> Targets | None:
        """Return other leaves of the same forms to write into; None if all is anew.

        They are looked at: what overlaps a source raises ``SpecMismatch``, unless it is
        known to lie apart.
        """
        if given is None or not given.held:
            return None
        held, order = given.tensors(), pair(spec, given.spec, "into=")
        leaves = [given.leaves[k] for k in order]
        tensors = [
            held[k] if wants else ()
            for k, wants in zip(order, self.wanted, strict=True)
        ]
        found = replace(self, leaves=leaves, tensors=tensors)
        if not given.lies_apart:
            found.check_apart(source, ties, () if source is None else source.held)
        return found

    def buffers(self, i: int, ts: Sequence[Tensor], count: int) -> LeafBuffers:
        """Return what is written of a leaf with these local tensors, by transfers."""
        targets = per_transfer(self.tensors[i], count)
        return LeafBuffers(self.leaves[i], per_transfer(ts, count), targets)

    def check(
        self,
        forms: Sequence[Abstract],
        stage_input: StageInput,
        ties: Sequence[Sequence[int]],
    ) -> None:
        """Raise ``SpecMismatch`` unless leaves of these forms can be written here."""
        found: list[str] = []
        known = stage_input.known()
        beside = (
            {} if stage_input.is_acted_on else makeups_in(stage_input.leaves, known)
        )
        for i, form in enumerate(forms):
            if not self.wanted[i]:
                continue
            buffer = Abstract.of(self.leaves[i])
            reason = self._misfit(i, form, buffer)
            is_known = not stage_input.is_acted_on or has_no_makeup(known[i])
            if is_known and not reason:
                reason = self._misfit_beside(i, buffer, beside.get(i))
            if reason:
                found.append(f"{where(self.paths[i])}: {reason}")
        if found:
            shown = listed(found, "; ")
            raise SpecMismatch(f"into= does not fit, nothing was moved; {shown}")
        self.check_apart(stage_input, ties, stage_input.held)

    def _misfit(self, i: int, form: Abstract, buffer: Abstract) -> str:
        for what, here, there in (
            ("shape", form.shape, buffer.shape),
            ("dtype", form.dtype, buffer.dtype),
            ("local tensors", form.forms(), buffer.forms()),
        ):
            if here != there:
                return f"{what} {here} here, {there} in the buffer"
        return self.unfit(i)

    def _misfit_beside(self, i: int, buffer: Abstract, source: Makeup | None) -> str:
        """Return why what a leaf is beside its tensors cannot go to the buffer."""
        target = None if has_no_makeup(buffer) else makeup_of(self.leaves[i])
        return difference_beside(source, target) or difference_in(source, target)

    def check_beside(self, i: int, leaf: Leaf) -> None:
        """Raise if what the steps before made of a leaf is not as its buffer is."""
        if reason := self._misfit_beside(i, Abstract.of(leaf), makeup_of(leaf)):
            raise SpecMismatch(
                f"into= does not fit at {where(self.paths[i])}: {reason}"
            )

    def check_each(self) -> None:
        """Raise ``SpecMismatch`` if nothing can be written into a target."""
        for i, path in enumerate(self.paths):
            if reason := self.unfit(i):
                raise SpecMismatch(f"into= does not fit at {where(path)}: {reason}")

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
        stage_input: StageInput | None,
        ties: Sequence[Sequence[int]],
        twins: Sequence[Sequence[Tensor]] = (),
        made_of: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Raise if a target overlaps a source, or one that is not tied as it is.

        ``twins`` are the local tensors that go to the targets, each to its own, or
        those that the stages before make them of. ``made_of`` tells of which sources
        each target is made, None if of that at its path.
        """
        is_acted_on = stage_input is not None and stage_input.is_acted_on
        sources = [] if stage_input is None else stage_input.held
        paths = [] if stage_input is None else stage_input.paths
        there = [*zip(paths, sources, strict=True)]
        here = [*zip(self.paths, self.tensors, strict=True)]
        if stage_input is not None and is_acted_on:
            if made_of is not None:
                ways = zip(self.paths, made_of, strict=True)
                there = [(path, sources[k]) for path, own in ways for k in own]
            there += [((), tensors_of(leaf)) for leaf in stage_input.written]
            if lie_in_others(here, there, in_turn=True):
                raise SpecMismatch(IN_TURN)
            there, sources = [], []
        owners = [path for path, ts in chain(here, there) for _ in ts]
        check_apart(
            [*chain.from_iterable(self.tensors)],
            [*chain.from_iterable(sources)],
            lambda: self._colours(ties, twins, _as_one if is_acted_on else way),
            lambda k: where(owners[k]),
            "moved",
            unlike="where the source does not" if twins else NOT_ONE,
        )

    def _colours(
        self,
        ties: Sequence[Sequence[int]],
        twins: Sequence[Sequence[Tensor]],
        relation: Callable[[Tensor, Tensor], Hashable],
    ) -> Iterator[Hashable]:
        """Yield of each local tensor what those have in common that may overlap.

        They lie to each other as their twins do, or are one where the leaves are tied.
        """
        group = {i: k for k, tie in enumerate(ties) for i in tie}
        for i, ts in enumerate(self.tensors):
            sources = twins[i] if twins else ()
            if ts and [*map(Tensor.size, sources)] == [*map(Tensor.size, ts)]:
                yield from map(relation, sources, ts)
            elif i in group:
                yield from (("tie", group[i], k) for k in range(len(ts)))
            else:
                yield from ((i, k) for k in range(len(ts)))


def _as_one(source: Tensor, target: Tensor) -> Hashable:
    """Return what two copies have in common that are one, whatever comes before.

    Stages keep ties: what is made of one and the same tensor is one and the same.
    """
    sides = (source, target)
    return tuple((t.data_ptr(), t.stride(), t.is_conj(), t.is_neg()) for t in sides)
