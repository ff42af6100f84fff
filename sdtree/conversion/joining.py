"""What becomes of one group of leaves: which others, and of what."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from sdtree.conversion.binding import Group, Shape, misfit
from sdtree.conversion.naming import At, Found, Pattern
from sdtree.conversion.pieces import Made, Piece, Pieces, Place, all_of, pieces_of
from sdtree.conversion.reading import Reading, names_in
from sdtree.conversion.source import Fitting, Places, Source
from sdtree.conversion.text import Term, axes_of
from sdtree.errors import ConvertError, listed
from sdtree.kinds.handler import served_by
from sdtree.tensors.storage import identity_of

AS_IT_IS: Final = "as it is"
"""The way of a leaf that is handed on."""


class Target(NamedTuple):
    """A leaf that comes of a rule, what it is made of, and where that stands.

    ``home`` is the position of the first part. Leaves with one ``key`` are to be one;
    ``is_alone``: there are no others. ``is_copy``: others are made of what it is, which
    are to be apart. ``rule`` is None if a leaf only stays.
    """

    name: str
    home: int
    parts: Sequence[int]
    made: Made
    places: Places
    key: Hashable
    is_alone: bool = True
    is_copy: bool = False
    rule: Reading | None = None


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

    def targets(
        self, writers: Sequence[Pattern], ways: dict[int, Hashable]
    ) -> Iterator[Target]:
        """Yield the leaves that come of the group; note the ways of those tied."""
        pieces, way = self._checked(), self._way()
        for i, family in enumerate(pieces.targets):
            if not family:
                raise self._lost(self.rule.target[i])
            slots = self.rule.slots_of(self.rule.target[i])
            is_alone = way is None and self.rule.alias.isdisjoint(slots)
            is_copy = self._repeats(self.rule.target[i])
            for at, made in family.items():
                self._note(made, way, ways)
                used = [self.places[piece.place] for piece in made.pieces]
                used = used or [min(self.places.values())]
                pairs = zip(slots, at, strict=True)
                own = tuple(0 if axis in self.rule.alias else n for axis, n in pairs)
                yield Target(
                    self._name(writers[i], at, min(used)),
                    min(used),
                    used,
                    self._handed_on(made, is_copy),
                    self.places,
                    (id(self.places) if way is None else way, i, own),
                    is_alone,
                    is_copy,
                    self.rule,
                )

    def _checked(self) -> Pieces:
        """Return what becomes of the leaves, which are seen to fit together."""
        pieces, fitting = (
            pieces_of(self.rule, self.group.sizes),
            Fitting(self.source, self.rule),
        )
        for family in self.group.sources:
            if len(family) > 1:
                fitting.one_dtype(family.values())
        for same in pieces.same:
            fitting.check_same(same, self.places)
        return pieces

    def _repeats(self, term: Term) -> bool:
        """Return whether leaves of a term are to agree: each gets its copy."""
        axes = names_in(slot.expr for slot in term.slots)
        return not self.rule.agree.isdisjoint(axes)

    def _handed_on(self, made: Made, is_copy: bool) -> Made:
        """Return what a leaf is made of, if it is a copy none that is handed on."""
        if made.passed is None or not is_copy:
            return made
        leaf = self.source.leaves[self.places[made.passed]]
        return made if served_by(leaf).is_plain else made._replace(passed=None)

    def _name(self, writer: Pattern, at: At, home: int) -> str:
        """Return the name of a leaf to come, which is to read as it is written."""
        found = Found(self.group.key, at)
        name = writer.write(found)
        if writer.read(name) != found:
            told = (
                f"{self.source.names[home]}: it would be named {name}, which the rule "
                "reads in another way, so that nothing led back; put between slots of "
                "the target what stands in no name, as '{x:**}.of.{y:**}', and "
                "sd.rename after"
            )
            raise misfit(self.rule, told)
        return name

    def _lost(self, term: Term) -> ConvertError:
        """Return the error for a family of no leaves, which would have no way back."""
        sizes = dict(self.group.sizes)
        axes = sorted(
            {axis.name for slot in term.slots for axis in axes_of(slot.expr)}
            & {axis for axis, size in sizes.items() if not size}
        )
        name = self.source.names[min(self.places.values())]
        told = f"there would be no leaf {term.text!r}, for {listed(axes)} is 0"
        return misfit(self.rule, f"{name}: {told}, and nothing led back")

    # -- memory that leaves share --------------------------------------------------

    def _way(self) -> Hashable:
        """Return what is the same for groups of the same data, None where none is."""
        if self.source.tied.isdisjoint(self.places.values()):
            return None
        data = (identity_of(self.source.tensors[k]) for k in self.places.values())
        return id(self.rule), self.group.sizes, tuple(self.places), *data

    def _note(self, made: Made, way: Hashable, ways: dict[int, Hashable]) -> None:
        """Note where the leaves go that share memory."""
        if way is None:
            return
        for piece in made.pieces:
            own = AS_IT_IS if made.passed else (way, piece.place)
            ways.setdefault(self.places[piece.place], own)


def unchanged(source: Source, k: int) -> Target:
    """Return the leaf that one is which stays."""
    made = _itself(source.forms[k].shape)
    return Target(source.names[k], k, [k], made, {AT: k}, k)


AT: Final[Place] = (0, ())
"""The place of a leaf that is alone in its group."""


@lru_cache(maxsize=4096)
def _itself(shape: Shape) -> Made:
    """Return what a leaf is made of that stays."""
    cut = all_of(shape)
    return Made(shape, (Piece(shape, cut, cut, AT),), (), AT)
