"""Sources: what a source has for the leaves of a target, as far as is known here."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

import torch
from torch import Tensor

from sdtree.errors import Mismatch, SpecMismatch
from sdtree.exchange.beside import (
    difference_beside,
    difference_in,
    makeups_to_come,
    unlike,
)
from sdtree.exchange.checks import check_data
from sdtree.exchange.leaf_plan import StageInput
from sdtree.exchange.twins import ties_of
from sdtree.kinds.abstract import Abstract, by_form, grouped, wholes_of
from sdtree.kinds.handler import Makeup, handler_of, makeup_of
from sdtree.layout.layout import Layout
from sdtree.path import where
from sdtree.tree.alike import Like
from sdtree.typing import Aux, Leaf, Path
from sdtree.wire.collectives import RankGroup


@dataclass(frozen=True, slots=True)
class DistributeOptions:
    """What an operation asks for: layouts like those of a tree, and how to take it.

    ``src`` is the rank that has the source, None where each has. ``moves`` tells
    whether ranks exchange parts, or each has all it needs; ``reports`` whether all are
    to know what does not fit on any of them.
    """

    verb: str
    given: Like
    moves: bool
    src: int | None = None
    strict: bool = True
    on_mismatch: Callable[[Mismatch], object] | None = None
    device: torch.device | None = None
    reports: bool = False

    @property
    def is_of_one(self) -> bool:
        """Whether what there is for all targets is in one source, or alike in each."""
        return self.src is not None or not self.moves

    def check(self, rank_group: RankGroup) -> None:
        """Raise unless the rank that has the source is one of a group."""
        if self.src is not None and self.src not in rank_group.ranks:
            raise ValueError(
                f"{self.verb}: src={self.src} is not in the group of "
                f"{rank_group.ranks}; ranks are global"
            )


# -- what a source has -------------------------------------------------------------


class LeafMetadata(NamedTuple):
    """What a leaf of the source is like: the same object for leaves that are alike.

    ``forms`` are None where the stages before may still change them, all else with
    them, or where this rank has no part of it; ``layout`` is what it alone knows.
    """

    forms: tuple[tuple[tuple[int, ...], torch.dtype], ...] | None
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    layout: Layout | None = None

    @classmethod
    @lru_cache(maxsize=4096)
    def of(cls, form: Abstract) -> LeafMetadata:
        """Return what a leaf of this form is."""
        return cls(_forms_of(form), form.shape, form.dtype, form.layout)

    @classmethod
    def to_fit(cls, form: Abstract) -> LeafMetadata:
        """Return what a leaf of the source is that goes where one of this form is."""
        return cls.of(form)._replace(layout=None)


@lru_cache(maxsize=4096)
def _forms_of(form: Abstract) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
    """Return what each local tensor is of the whole: one object, told only once."""
    return tuple(wholes_of(form))


UNKNOWN: Final = LeafMetadata(None, (), None)
"""What a leaf is like that the stages before may still change."""


def difference(given: LeafMetadata | None, form: Abstract) -> str:
    """Return why a leaf of the source cannot go where one of this form is."""
    if given is None or (given.forms is None and given.dtype is None):
        return ""  # there is none, or the stages before may still change it
    if given.dtype is None or form.dtype is None:
        words = ("plain" if x.dtype is None else "a tensor" for x in (given, form))
        return "" if given.dtype is form.dtype else unlike("", *words)
    over = given.forms if given.forms is None else _forms_of(form)
    for what, here, there in (
        ("shape", given.shape, form.shape),
        ("dtype", given.dtype, form.dtype),
        ("local tensors", given.forms, over),
    ):
        if here != there:
            return unlike(what, here, there)
    return ""


@lru_cache(maxsize=4096)
def is_agreed(form: Abstract, me: int, src: int | None) -> bool:
    """Return whether a rank and the source agree on all that a leaf of a form is."""
    if form.layout is not None:
        return me == src or {me, src} <= form.layout.boxes.keys()
    return form.dtype is not None and form.forms() == [(form.shape, form.dtype)]


@dataclass(frozen=True, slots=True)
class SourceMetadata:
    """What a source has: what its leaves are like, ties, and the values of plain ones.

    ``tied`` has the number of its tie for each leaf that is in one, ``makeups`` what
    those are beside their tensors that are more. Told to others, values and makeups are
    bytes, to be read one by one.
    """

    given: Mapping[Path, LeafMetadata] = field(default_factory=dict[Path, LeafMetadata])
    tied: Mapping[Path, int] = field(default_factory=dict[Path, int])
    values: Mapping[Path, Leaf] = field(default_factory=dict[Path, Leaf])
    makeups: Mapping[Path, Makeup] = field(default_factory=dict[Path, Makeup])


def source_metadata_of(stage_input: StageInput) -> SourceMetadata:
    """Return what the source has, leaf by leaf."""
    forms, paths = stage_input.forms, stage_input.paths
    if forms is None:
        return SourceMetadata(dict.fromkeys(paths, UNKNOWN))
    given = dict(zip(paths, by_form(LeafMetadata.of, forms), strict=True))
    pairs = zip(given.items(), stage_input.leaves, strict=True)
    values = {path: x for (path, known), x in pairs if known.dtype is None}
    if stage_input.stand_alone and not stage_input.is_acted_on:
        return SourceMetadata(given, values=values)
    held = {i: ts for i, ts in enumerate(stage_input.held) if ts}
    ties = [] if stage_input.stand_alone else ties_of(held, lambda _: None)
    tied = {paths[i]: k for k, group in enumerate(ties) for i in group}
    makeups = makeups_to_come(stage_input, forms).items()
    return SourceMetadata(given, tied, values, {paths[i]: x for i, x in makeups})


# -- what there is of it for targets -----------------------------------------------


@dataclass(slots=True)
class Source:
    """What is known here of the source, by the positions of the targets.

    ``stage_input`` is the source where it is here. ``places`` tell where in it the leaf
    for a target is, -1 if it is not there; ``given`` what that is like, None as long as
    nothing is known of it. ``makeups`` are those of targets that are more than their
    tensors; ``is_far`` tells of which others have all, so that this rank does not know
    what they are over. ``told`` is what the source tells others, and ``kept`` are
    leaves that were made for it. ``report``: what was found not to fit, and is allowed.
    """

    order: DistributeOptions
    stage_input: StageInput | None
    paths: Sequence[Path]
    forms: Sequence[Abstract]
    places: list[int]
    given: list[LeafMetadata | None]
    makeups: Mapping[int, Makeup]
    own: int
    is_far: Sequence[bool]
    metadata: SourceMetadata = field(default_factory=SourceMetadata)
    told: bytes | None = field(default=None, repr=False)
    kept: dict[int, Leaf] = field(default_factory=dict[int, Leaf])
    report: Mismatch = field(default_factory=Mismatch)

    @classmethod
    def of(
        cls,
        order: DistributeOptions,
        stage_input: StageInput | None,
        rank_group: RankGroup,
        paths: Sequence[Path],
        forms: Sequence[Abstract],
        makeups: Mapping[int, Makeup],
        is_far: Sequence[bool],
    ) -> Source:
        """Return what there is for targets of these forms; None off the source."""
        order.check(rank_group)
        own, places = len(paths), _places_in(stage_input, paths)
        source = cls(
            order, stage_input, paths, forms, places, [None] * own, makeups, own, is_far
        )
        if stage_input is not None:
            source.know(source_metadata_of(stage_input))
        return source

    def know(self, metadata: SourceMetadata) -> None:
        """Take note of what the source has, of each leaf as far as this rank can."""
        self.metadata = metadata
        self.given = [*map(metadata.given.get, self.paths)]
        if any(self.is_far):
            far = [*self.is_far, *([False] * (len(self.paths) - self.own))]
            groups = grouped(self.given, far)
            seen = [_as_seen(self.given[i], far[i]) for i in groups.first]
            self.given = [seen[k] for k in groups.of]

    def add(self, paths: Sequence[Path], forms: Sequence[Abstract]) -> None:
        """Add targets that other ranks have, and this rank, the source, has not."""
        self.paths, self.forms = [*self.paths, *paths], [*self.forms, *forms]
        self.places += _places_in(self.stage_input, paths)
        self.given += map(self.metadata.given.get, paths)

    def tie_of(self, i: int) -> Hashable:
        """Return what the members of a tie in the source alone have in common."""
        path = self.paths[i]
        return self.metadata.tied.get(path, path)

    # -- does it fit ---------------------------------------------------------------

    def misfit(self) -> Mismatch:
        """Return where the source does not fit the targets."""
        groups, targets = grouped(self.given, self.forms), {*self.paths}
        why = [difference(self.given[i], self.forms[i]) for i in groups.first]
        found = [(p, why[k]) for p, k in zip(self.paths, groups.of, strict=True)]
        found = [pair for pair in found if pair[1]]
        known = {path for path, _ in found}
        found += [pair for pair in self._misfits_beside() if pair[0] not in known]
        return Mismatch(
            tuple(p for p, x in zip(self.paths, self.given, strict=True) if x is None),
            tuple(path for path in self.metadata.given if path not in targets),
            tuple(found),
        )

    def _misfits_beside(self) -> Iterator[tuple[Path, str]]:
        """Yield what does not fit in that which leaves are beside their tensors."""
        makeups = self.metadata.makeups
        paths = self.paths[: self.own] if makeups or self.makeups else ()
        for i, path in enumerate(paths):
            given = self.given[i]
            if given is None or not (path in makeups or i in self.makeups):
                continue
            if self.is_far[i]:
                continue
            why = self._why_not_beside(i, makeups.get(path))
            if given.forms is None:
                why = self._why_unknown
            if why:
                yield path, why

    def _why_not_beside(self, i: int, source: Makeup | None) -> str:
        """Return why a leaf of some makeup cannot go to a target, empty if it can."""
        target = self.makeups.get(i)
        why = difference_beside(source, target)
        stays = self.order.given.is_written or self.forms[i].layout is not None
        return why or (difference_in(source, target) if stays else "")

    @property
    def _why_unknown(self) -> str:
        """Return why other ranks cannot know what a leaf is beside its tensors."""
        if self.order.src is None:
            return ""
        return (
            "beside its tensors it is what the steps before make of it, and only the "
            f"source knows; take these first, and {self.order.verb} what they return"
        )

    # -- what ranks hear of it -----------------------------------------------------

    def is_agreed_on(self, me: int) -> bool:
        """Return whether what a rank must know of it follows from the agreement.

        Ranks agree on the form of each leaf of which they have a part. So it does if
        the source fits its own target, and has neither ties nor plain values, nor
        leaves that are more than their tensors.
        """
        has, src = self.metadata, self.order.src
        tied = has.tied and not self.order.given.is_written
        more = tied or has.values or has.makeups
        if self.stage_input is not None and (more or self.misfit() != FITS):
            return False
        forms = {id(form): form for form in self.forms}.values()
        return all(is_agreed(form, me, src) for form in forms)

    def take_as_agreed(self) -> None:
        """Know of the source, off it, that it fits the targets."""
        if self.stage_input is None:
            given = by_form(LeafMetadata.to_fit, self.forms)
            self.know(SourceMetadata(dict(zip(self.paths, given, strict=True))))

    # -- leaves --------------------------------------------------------------------

    def pull(self, ids: Sequence[int]) -> Sequence[Leaf]:
        """Return the leaves of the source for some targets, None where it has none."""
        if self.stage_input is None:
            return [None] * len(ids)
        if not (self.stage_input.is_acted_on or self.kept):
            leaves, places = self.stage_input.leaves, self.places
            return [leaves[k] if (k := places[i]) >= 0 else None for i in ids]
        asked = [i for i in ids if self.places[i] >= 0 and i not in self.kept]
        made = self.stage_input.pull([self.places[i] for i in asked])
        found = {**self.kept, **dict(zip(asked, made, strict=True))}
        return [*map(found.get, ids)]

    def value(self, i: int, leaf: Leaf) -> Leaf:
        """Return a plain value: the leaf that was pulled, or what the source told."""
        if self.stage_input is not None:
            return leaf
        return pickle.loads(self.metadata.values[self.paths[i]])

    def tensors(self, i: int, leaf: Leaf) -> Sequence[Tensor]:
        """Return the local tensors of a leaf that was pulled, seen to fit its target.

        None off the source.
        """
        stage_input = self.stage_input
        if stage_input is None:
            return ()
        why = ""
        if stage_input.is_acted_on:
            why = difference(LeafMetadata.of(Abstract.of(leaf)), self.forms[i])
            if i < self.own:  # others have seen whether it fits theirs
                why = why or self._why_not_beside(i, makeup_of(leaf))
        if why:
            raise SpecMismatch(f"{where(self.paths[i])}: {why}")
        ts = stage_input.tensors(self.places[i], leaf)
        if stage_input.is_acted_on:
            check_data(self.paths[i], ts)
        return ts

    def all_tensors(self, ids: Sequence[int], leaves: Sequence[Leaf]) -> list[Tensor]:
        """Return the local tensors of leaves that were pulled; see ``tensors``."""
        given, places = self.stage_input, self.places
        if given is None:
            return []
        if given.is_acted_on:
            pairs = zip(ids, leaves, strict=True)
            return [t for i, x in pairs for t in self.tensors(i, x)]
        return [t for i in ids for t in given.held[places[i]]]

    def aux(self, i: int, leaf: Leaf, like: Aux) -> Aux:
        """Return what a leaf is to be beside its tensors: what it is in the source.

        A tensor that is its own local tensor is as its target is, and so is a sharded
        leaf, which is seen to be like its source when both are whole.
        """
        if i not in self.makeups or self.forms[i].layout is not None:
            return like
        if self.stage_input is not None:
            return handler_of(leaf).flatten(leaf)[1]
        return self.metadata.makeups[self.paths[i]].aux

    def junk(self, i: int, device: str) -> Leaf:
        """Return what takes the place of a leaf that could not be pulled."""
        assert self.stage_input is not None
        return self.stage_input.junk(self.places[i], device)


def _places_in(stage_input: StageInput | None, paths: Sequence[Path]) -> list[int]:
    """Return where in a source the leaf of each path is, -1 if it is not there."""
    there = () if stage_input is None else stage_input.paths
    found = {path: k for k, path in enumerate(there)}
    return [found.get(path, -1) for path in paths]


def _as_seen(given: LeafMetadata | None, is_far: bool) -> LeafMetadata | None:
    """Return what is known of a leaf of the source, as far as its target is.

    Of what it is over, a rank that has no part of it may know nothing.
    """
    if given is None or given.dtype is None or not is_far:
        return given
    return given._replace(forms=None)


FITS: Final = Mismatch()
"""What does not fit where all does."""
