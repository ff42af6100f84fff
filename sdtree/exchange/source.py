"""Sources: what a source has for the leaves of a target, as far as is known here."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from operator import not_
from typing import Final

import torch
from torch import Tensor

from sdtree.errors import Mismatch, SpecMismatch, reraise
from sdtree.exchange.checks import check_data
from sdtree.exchange.leaf_plan import StageInput
from sdtree.exchange.metadata import (
    NOTHING,
    LeafMetadata,
    SourceMetadata,
    advice_on,
    as_bytes,
    as_seen,
    difference,
    difference_beside,
    difference_in,
    is_agreed,
    merged_by_all,
    mismatch_of,
    source_metadata_of,
)
from sdtree.exchange.optimizers import loses_state, lost_state
from sdtree.kinds.abstract import Abstract, by_form, grouped
from sdtree.kinds.handler import Makeup, handler_of, makeup_of
from sdtree.path import where
from sdtree.tree.alike import Like
from sdtree.typing import Aux, Leaf, Path
from sdtree.wire.agreement import settle
from sdtree.wire.collectives import RankGroup, broadcast_bytes, greatest


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

    def check(self, rank_group: RankGroup) -> None:
        """Raise unless the rank that has the source is one of a group."""
        if self.src is not None and self.src not in rank_group.ranks:
            raise ValueError(
                f"{self.verb}: src={self.src} is not in the group of "
                f"{rank_group.ranks}; ranks are global"
            )


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
    metadata: SourceMetadata = NOTHING
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
            source._know(source_metadata_of(stage_input))
        return source

    def _know(self, metadata: SourceMetadata) -> None:
        self.metadata = metadata
        self.given = [*map(metadata.given.get, self.paths)]
        if any(self.is_far):
            far = [*self.is_far, *([False] * (len(self.paths) - self.own))]
            groups = grouped(self.given, far)
            seen = [as_seen(self.given, far, i) for i in groups.first]
            self.given = [seen[k] for k in groups.of]

    def add(self, paths: Sequence[Path], forms: Sequence[Abstract]) -> None:
        """Add targets that other ranks have, and this rank, the source, has not."""
        self.paths, self.forms = [*self.paths, *paths], [*self.forms, *forms]
        self.places += _places_in(self.stage_input, paths)
        self.given += map(self.metadata.given.get, paths)

    def tie_of(self, i: int) -> Hashable:
        """Return what the members of a tie in the source have in common."""
        return self.metadata.tie_of(self.paths[i])

    # -- does it fit ---------------------------------------------------------------

    def misfit(self) -> Mismatch:
        """Return where the source does not fit the targets."""
        found = mismatch_of(self.metadata, self.paths, self.forms, self.given)
        known = {path for path, _ in found.mismatched}
        beside = [pair for pair in self._misfits_beside() if pair[0] not in known]
        return replace(found, mismatched=(*found.mismatched, *beside))

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

    def check_fit(self, misfit: Mismatch) -> None:
        """Tell of a misfit, and raise ``SpecMismatch`` unless it is allowed.

        That an optimizer's state is left out altogether never is.
        """
        self.report = misfit
        if not misfit:
            return
        if self.order.on_mismatch is not None:
            try:
                self.order.on_mismatch(misfit)
            except Exception as error:
                reraise(error, "in the function given as on_mismatch=")
        lost = lost_state([*self.metadata.given], self.paths)
        if misfit.mismatched or self.order.strict or lost:
            advice = f"; {lost}" if lost else advice_on(misfit)
            raise SpecMismatch(
                f"{self.order.verb}: the source does not fit the target, and nothing "
                f"was moved; {misfit}{advice}"
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

    def telling(self) -> bytes | None:
        """Return what the source tells, None off it; raise if it cannot."""
        if self.told is None and self.stage_input is not None:
            self.told = self.metadata.told()
        return self.told

    def take_values(self) -> None:
        """Have the steps before make the plain values now, so that others are told."""
        stage_input, forms = self.stage_input, self.forms
        if stage_input is None or stage_input.forms is not None:
            return
        plain = [i for i in range(len(forms)) if forms[i].dtype is None]
        here = [i for i in plain if self.places[i] >= 0]
        self.kept = dict(
            zip(here, stage_input.pull([self.places[i] for i in here]), strict=True)
        )
        given = {
            self.paths[i]: LeafMetadata.of(Abstract.of(x)) for i, x in self.kept.items()
        }
        values = {self.paths[i]: x for i, x in self.kept.items()}
        every = {**self.metadata.given, **given}
        self._know(replace(self.metadata, given=every, values=values))

    def take_as_agreed(self) -> None:
        """Know of the source, off it, that it fits the targets."""
        if self.stage_input is None:
            given = by_form(LeafMetadata.to_fit, self.forms)
            self._know(SourceMetadata(dict(zip(self.paths, given, strict=True))))

    def hear(self, rank_group: RankGroup, src: int) -> None:
        """Have the source tell all what it has, plain values included. Collective.

        Then all hear of the misfits of all, which may have other targets, and raise
        unless they are allowed, or if a function that is told of them raises on one.
        """
        data = self.telling()
        size = broadcast_bytes(rank_group, data and len(data).to_bytes(8), 8, src)
        data = broadcast_bytes(rank_group, data, int.from_bytes(size), src)
        error = None
        try:
            if self.stage_input is None:
                self._know(SourceMetadata.heard(data))
            mine = self.misfit()
        except Exception as found:  # what a source is can be foreign to this rank
            mine, error = UNREADABLE, found
        misfit = merged_by_all(rank_group, mine, of_one=True)
        if misfit is not None:
            self._judge(rank_group, mine, misfit, error)

    def _judge(
        self,
        rank_group: RankGroup,
        mine: Mismatch,
        misfit: Mismatch,
        error: Exception | None = None,
    ) -> None:
        """Raise, all together, unless what does not fit may be so. Collective."""
        try:
            if error is None:
                is_lost = not misfit and loses_state([*self.metadata.given], self.paths)
                self.check_fit(mine if is_lost else misfit)
        except Exception as found:
            error = found
        try:
            settle(rank_group, error, when="before anything moved")
            if error is not None:
                raise error
        finally:
            error = None  # it would hold this frame, and the frame it

    def settle_misfits(self, rank_group: RankGroup) -> None:
        """Hear what does not fit on one rank or another, each having a source.

        They raise together unless it may be so. What has no target on any of them is
        unexpected. Collective.
        """
        mine, targets = self.misfit(), {*self.paths}
        misfit = merged_by_all(rank_group, mine, of_one=False)
        if misfit is None:
            return
        wanted = [int(path in targets) for path in misfit.unexpected]
        wanted = greatest(rank_group, wanted) if wanted else wanted
        kept = compress(misfit.unexpected, map(not_, wanted))
        misfit = replace(misfit, unexpected=tuple(kept))
        if self.order.strict:
            self._judge(rank_group, mine, misfit)
        else:  # what may be so was judged here before
            self.report = misfit
            settle(rank_group, None)

    def hearings(self) -> list[tuple[str, int]]:
        """Return the collectives of ``hear``, and what bytes each rank puts in.

        Where each rank has a source, those of ``settle_misfits``.
        """
        misfit, told = self.misfit(), [("all_reduce", 8)]
        if misfit:
            told += [("all_gather", 8), ("all_gather", len(as_bytes(misfit)))]
        if self.order.src is None:
            words = 8 * len(misfit.unexpected)
            told += [("all_reduce", words)] if words else []
            return [*told, *([("all_reduce", 8)] if misfit else [])]
        heard = [("broadcast", 8), ("broadcast", len(self.telling() or b""))]
        return [*heard, *told, *([("all_reduce", 8)] if misfit else [])]

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

    def junk(self, i: int) -> Leaf:
        """Return what takes the place of a leaf that could not be pulled."""
        assert self.stage_input is not None
        return self.stage_input.junk(self.places[i])


def _places_in(stage_input: StageInput | None, paths: Sequence[Path]) -> list[int]:
    """Return where in a source the leaf of each path is, -1 if it is not there."""
    there = () if stage_input is None else stage_input.paths
    found = {path: k for k, path in enumerate(there)}
    return [found.get(path, -1) for path in paths]


FITS: Final = Mismatch()
"""What does not fit where all does."""

UNREADABLE: Final = Mismatch(mismatched=(((), "what the source told is unreadable"),))
"""What does not fit a rank that cannot tell."""
