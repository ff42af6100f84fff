"""What a source has, as it tells others, and where that does not fit a target."""

from __future__ import annotations

import pickle
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from typing import Any, Final, NamedTuple

import torch

from sdtree.errors import Mismatch
from sdtree.exchange.leaf_plan import StageInput
from sdtree.exchange.twins import ties_of
from sdtree.kinds.abstract import Abstract, by_form, grouped, has_no_makeup, wholes_of
from sdtree.kinds.handler import Makeup, makeup_of
from sdtree.kinds.values import same_value
from sdtree.layout.layout import Layout
from sdtree.path import where
from sdtree.typing import Leaf, Path
from sdtree.wire.collectives import RankGroup, gather_bytes, greatest

Misfit = Mismatch
"""Its earlier name."""


def advice_on(mismatch: Mismatch) -> str:
    """Return what to do about it, as the end of a message."""
    if any(why.startswith("dtype") for _, why in mismatch.mismatched):
        return "; for other dtypes put sd.cast(like=target) before it"
    if mismatch.mismatched:
        return "; select or drop those leaves, or give a target of their form"
    return "; to keep what only the target has, and skip the rest: strict=False"


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


UNKNOWN: Final = LeafMetadata(None, (), None)
"""What a leaf is like that the stages before may still change."""


@lru_cache(maxsize=4096)
def _forms_of(form: Abstract) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
    """Return what each local tensor is of the whole: one object, told only once."""
    return tuple(wholes_of(form))


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

    def tie_of(self, path: Path) -> Hashable:
        """Return what the members of a tie have in common, and no others have."""
        return self.tied.get(path, path)

    def told(self) -> bytes:
        """Return what is told to others."""
        every = [*self.given.values()]
        groups = grouped(every)
        shown = [every[i]._replace(layout=None) for i in groups.first]
        given = {path: shown[k] for path, k in zip(self.given, groups.of, strict=True)}
        values, makeups = _pickled(self.values), _pickled(self.makeups)
        return pickle.dumps(SourceMetadata(given, self.tied, values, makeups))

    @classmethod
    def heard(cls, data: bytes) -> SourceMetadata:
        """Return what a source told; values stay bytes until they are asked for."""
        found: SourceMetadata = pickle.loads(data)
        told: Mapping[Path, Any] = found.makeups
        makeups = {path: pickle.loads(x) for path, x in told.items()}
        return replace(found, makeups=makeups)


def _pickled(values: Mapping[Path, object]) -> dict[Path, Any]:
    """Return the bytes of each value; an error tells of which."""
    found: dict[Path, bytes] = {}
    for path, value in values.items():
        try:
            found[path] = pickle.dumps(value)
        except Exception as error:
            error.add_note(f"at {where(path)}, whose value is to go to other ranks")
            raise
    return found


NOTHING: Final = SourceMetadata()
"""What a source has of which nothing is known."""


def source_metadata_of(stage_input: StageInput) -> SourceMetadata:
    """Return what the source has, leaf by leaf."""
    forms, paths = stage_input.forms, stage_input.paths
    if forms is None:
        return SourceMetadata(dict.fromkeys(paths, UNKNOWN))
    given = by_form(LeafMetadata.of, forms)
    held = {i: ts for i, ts in enumerate(stage_input.held) if ts}
    ties = [] if stage_input.stand_alone else ties_of(held, lambda _: None)
    return SourceMetadata(
        dict(zip(paths, given, strict=True)),
        {paths[i]: k for k, group in enumerate(ties) for i in group},
        {
            p: x
            for p, x, kind in zip(paths, stage_input.leaves, given, strict=True)
            if kind.dtype is None
        },
        {
            paths[i]: makeup
            for i, makeup in _makeups_to_come(stage_input, forms).items()
        },
    )


def _makeups_to_come(
    stage_input: StageInput, forms: Sequence[Abstract]
) -> dict[int, Makeup]:
    """Return what leaves are beside their tensors when the steps before have acted.

    These leaves are few, and made once more when their turn comes.
    """
    if stage_input.stand_alone and not stage_input.is_acted_on:
        return {}
    found = makeups_in(stage_input.leaves, forms)
    if not found or not stage_input.is_acted_on:
        return found
    pulled = zip(found, stage_input.pull([*found]), strict=True)
    return {i: makeup for i, x in pulled if (makeup := makeup_of(x)) is not None}


def makeups_in(leaves: Sequence[Leaf], forms: Sequence[Abstract]) -> dict[int, Makeup]:
    """Return what leaves are beside their tensors, by position, where that is more."""
    plain = by_form(has_no_makeup, forms)
    found = ((i, makeup_of(leaves[i])) for i, is_so in enumerate(plain) if not is_so)
    return {i: makeup for i, makeup in found if makeup is not None}


def merged(every: Iterable[Mismatch]) -> Mismatch:
    """Return what does not fit on one rank or another."""
    found = [*every]
    return Mismatch(
        tuple(dict.fromkeys(chain(*(x.missing for x in found)))),
        tuple(dict.fromkeys(chain(*(x.unexpected for x in found)))),
        tuple(dict.fromkeys(chain(*(x.mismatched for x in found)))),
    )


def without_expected(merged: Mismatch, every: Iterable[Mismatch]) -> Mismatch:
    """Return what does not fit, of what is unexpected only what is so on all ranks.

    Ranks may have targets for parts of a source, as the stages of a pipeline have.
    """
    common = set[Path].intersection(*({*one.unexpected} for one in every))
    kept = tuple(path for path in merged.unexpected if path in common)
    return replace(merged, unexpected=kept)


def merged_by_all(
    rank_group: RankGroup, mine: Mismatch, *, of_one: bool
) -> Mismatch | None:
    """Return what does not fit on one rank or another, ``of_one`` source for all.

    None if all fits on each. Collective.
    """
    if not any(greatest(rank_group, [int(bool(mine))])):
        return None
    every = [pickle.loads(told) for told in gather_bytes(rank_group, as_bytes(mine))]
    return without_expected(merged(every), every) if of_one else merged(every)


def as_bytes(misfit: Mismatch) -> bytes:
    """Return what travels: as many bytes on each rank on which as much does not fit.

    A key is told once, wherever it comes from, since pickle tells what is one thing.
    """
    known: dict[Hashable, Any] = {}

    def as_one(x: Any) -> Any:
        if type(x) is tuple:
            return tuple(map(as_one, x))
        return known.setdefault((type(x), x), x)

    parts = misfit.missing, misfit.unexpected, misfit.mismatched
    return pickle.dumps(Mismatch(*map(as_one, parts)))


def mismatch_of(
    metadata: SourceMetadata,
    paths: Sequence[Path],
    forms: Sequence[Abstract],
    given: Sequence[LeafMetadata | None],
) -> Mismatch:
    """Return where a source and targets of these forms do not fit.

    ``given`` are what the source has at the paths of the targets.
    """
    groups = grouped(given, forms)
    pairs = [(given[i], forms[i]) for i in groups.first]
    why = ["" if x is None else difference(x, form) for x, form in pairs]
    told = zip(paths, given, groups.of, strict=True)
    rows = [(path, source is None, why[k]) for path, source, k in told]
    targets = {*paths}
    return Mismatch(
        tuple(path for path, is_missing, _ in rows if is_missing),
        tuple(path for path in metadata.given if path not in targets),
        tuple((path, reason) for path, _, reason in rows if reason),
    )


def difference_beside(source: Makeup | None, target: Makeup | None) -> str:
    """Return why what one leaf is beside its tensors does not go onto another."""
    here, there = ("Tensor" if x is None else x.kind.__name__ for x in (source, target))
    known = [None if x is None else x.kind for x in (source, target)]
    return "" if known[0] is known[1] else _unlike("kind", here, there)


def difference_in(source: Makeup | None, target: Makeup | None) -> str:
    """Return in what leaves of one kind differ beside their tensors."""
    if source is None or target is None or same_value(source.aux, target.aux):
        return ""
    if not (source.is_known and target.is_known):
        return ""  # one of them has no data, and is refused for that
    return f"{source.aux} in the source, {target.aux} in the target"


def _unlike(what: str, here: object, there: object) -> str:
    return f"{what} {here} in the source, {there} in the target"


def difference(given: LeafMetadata, form: Abstract) -> str:
    """Return why a leaf of the source cannot go where one of this form is."""
    if given.forms is None and given.dtype is None:
        return ""  # the stages before may still change it
    if given.dtype is None or form.dtype is None:
        words = [
            "plain" if x is None else "a tensor" for x in (given.dtype, form.dtype)
        ]
        same = given.dtype is form.dtype
        return "" if same else f"{words[0]} in the source, {words[1]} in the target"
    over = given.forms if given.forms is None else _forms_of(form)
    for what, here, there in (
        ("shape", given.shape, form.shape),
        ("dtype", given.dtype, form.dtype),
        ("local tensors", given.forms, over),
    ):
        if here != there:
            return _unlike(what, here, there)
    return ""


def as_seen(
    given: Sequence[LeafMetadata | None], far: Sequence[bool], i: int
) -> LeafMetadata | None:
    """Return what is known of a leaf of the source, as far as its target is.

    Of what it is over, a rank that has no part of it may know nothing.
    """
    found = given[i]
    if found is None or found.dtype is None or not far[i]:
        return found
    return found._replace(forms=None)


@lru_cache(maxsize=4096)
def is_agreed(form: Abstract, me: int, src: int | None) -> bool:
    """Return whether a rank and the source agree on all that a leaf of a form is."""
    if form.layout is not None:
        return me == src or {me, src} <= form.layout.boxes.keys()
    return form.dtype is not None and form.forms() == [(form.shape, form.dtype)]
