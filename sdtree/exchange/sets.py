"""Sets of ranks: a path may lie on several, and no rank sees the layouts of the others.

Norms outside a TP plan lie on ranks 0 and 2 here and on 1 and 3 there, and a stage of a
pipeline has what another has not. A rank knows its own set, and in the exchange of
fixed size it asks for more if that does not tell all: a leaf is to go to a rank outside
of its set, the source of a load is outside, source and target lie on other ranks. If
one asks, the first rank of each set that is not the whole group claims its leaves, in
one exchange of variable size. From these claims, which all hear, each rank works out
alone who serves whom: sets that hold one path are replicas of it, so targets are united
as if they were one layout, and a gather takes a leaf from the set of its destination,
else from the first. What does not fit is found before anything moves, and told to all.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, TypeVar

from sdtree.errors import LayoutError, RankMismatch
from sdtree.exchange.joining import joined
from sdtree.exchange.leaf_plan import StageInput
from sdtree.kinds.abstract import Abstract, Local, wholes_of
from sdtree.layout.layout import Layout
from sdtree.path import where
from sdtree.tensors.storage import dense_strides
from sdtree.transform.stages import CollectiveStage
from sdtree.tree.pairing import atoms, prune
from sdtree.tree.spec import LEAF, TreeSpec
from sdtree.typing import Leaf, Path
from sdtree.wire.agreement import Canonical, canonical, report_failures, with_plain_keys
from sdtree.wire.collectives import RankGroup, gather_bytes, gather_objects, greatest

T = TypeVar("T")

Ranks = tuple[int, ...]


class Claim(NamedTuple):
    """What ranks that see a leaf alike have to do with it: the same on each of them.

    They have it in the layout ``source``, or want it in ``target``, and it is to go to
    the ``chosen``; a leaf without layouts is not sharded. ``form`` has the local
    tensors of the whole. ``tie`` is the number of its tie among them, 0 if it has none,
    and ``UNSEEN`` if they hold nothing of what would be tied; ``order`` that in which
    its dimensions lie in memory there, by number. It travels in pieces of at most
    ``bucket_bytes``.
    """

    ranks: Ranks
    form: Abstract
    source: Layout | None = None
    target: Layout | None = None
    chosen: Ranks | None = None
    wire: str = "cpu"
    home: str = "cpu"
    requires_grad: bool = False
    tie: int = 0
    order: int = 0
    bucket_bytes: int = 0

    @property
    def is_sharded(self) -> bool:
        """Return whether each of the ranks has a part of it."""
        return self.source is not None or self.target is not None


class Told(NamedTuple):
    """What one rank tells: the claims of the sets it is first in, and where they are.

    ``spec`` has their paths, in containers of the types that they are in there.
    """

    claims: Mapping[Canonical, Claim]
    spec: TreeSpec

    @classmethod
    def by(cls, claims: Mapping[Canonical, Claim], spec: TreeSpec) -> dict[int, Told]:
        """Return what each rank tells that is the first to see some leaves so.

        Claims that are equal in a part share it, so that it is told once.
        """
        known: dict[Hashable, Any] = {}
        found: dict[int, dict[Canonical, Claim]] = {}
        for key, claim in claims.items():
            parts = (known.setdefault((type(x), x), x) for x in claim)
            found.setdefault(claim.ranks[0], {})[key] = Claim(*parts)
        return {rank: cls(mine, _only(spec, mine)) for rank, mine in found.items()}

    def as_bytes(self) -> bytes:
        """Return what travels."""
        return pickle.dumps(self)


def _only(spec: TreeSpec, keys: Iterable[Canonical]) -> TreeSpec:
    """Return what is left of a spec if these leaves alone are."""
    found = {*keys}
    return prune(
        spec, [x is LEAF and canonical(path) in found for path, x in atoms(spec)]
    )


@dataclass(frozen=True, slots=True)
class Sets:
    """The claims of all sets, by path, those of the lowest ranks first."""

    claims: Mapping[Canonical, Sequence[Claim]]
    told: Sequence[Told]

    @classmethod
    def of(cls, told: Sequence[Told]) -> Sets:
        """Return the sets of which all have told; raise if they do not fit."""
        found: dict[Canonical, list[Claim]] = {}
        for one in told:
            for key, claim in one.claims.items():
                found.setdefault(key, []).append(claim)
        sets = cls({key: sorted(x, key=_first) for key, x in found.items()}, told)
        for one in told:
            for path in one.spec.every_path:
                _check_alike(path, sets.claims[canonical(path)])
        return sets

    def __contains__(self, key: Canonical) -> bool:
        return key in self.claims

    def holders(self, key: Canonical) -> Ranks:
        """Return all ranks that hold a path."""
        return tuple(sorted(r for claim in self.claims[key] for r in claim.ranks))

    def receivers(self, key: Canonical, claim: Claim) -> Ranks:
        """Return which of the chosen ranks take a leaf from the set of this claim.

        Those that are in it, and if it is the first those that are in none.
        """
        if claim.chosen is None:
            return claim.ranks
        others = self.holders(key) if claim is self.claims[key][0] else claim.chosen
        return tuple(r for r in claim.chosen if r in claim.ranks or r not in others)

    def at(self, key: Canonical, me: int) -> Claim | None:
        """Return the claim from which a rank has, or is to have, a path, if any."""
        every = self.claims.get(key, ())
        own = [claim for claim in every if me in claim.ranks]
        found = own or [x for x in every if me in self.receivers(key, x)]
        return found[0] if found else None

    def strange(self, me: int) -> dict[Canonical, Claim]:
        """Return what a rank takes of sets that it is in none of."""
        found = ((key, self.at(key, me)) for key in self.claims)
        return {key: x for key, x in found if x is not None and me not in x.ranks}

    def joined(self, spec: TreeSpec, keys: Iterable[Canonical]) -> TreeSpec:
        """Return a spec with some more of the paths that were told."""
        left = {*keys}
        for one in self.told:
            mine = left & one.claims.keys()
            if mine:
                left -= mine
                spec = joined(spec, _only(one.spec, mine))
        return spec

    def paths(self) -> Iterator[tuple[Canonical, Path]]:
        """Yield each path that was told, once for each that told it."""
        for one in self.told:
            for path in one.spec.every_path:
                yield canonical(path), path


class Agreement(NamedTuple):
    """What ranks have agreed on: what leaves travel as one, and what sets they are in.

    ``asked``: one of them must hear more; ``all_settle``: they meet again when all is
    done. ``sets`` are None if each leaf is in one, else ``own`` are the ties before
    they were told. ``key`` tells it from what else they agree on.
    """

    ties: list[list[int]]
    asked: bool
    all_settle: bool = False
    sets: Sets | None = None
    own: Sequence[Sequence[int]] = ()
    key: int = 0


def stage_input_with(stage_input: StageInput, sets: Sets, me: int) -> StageInput:
    """Return what comes to a stage, with the leaves of sets that a rank is not in.

    They stand there without data. A path that is taken raises ``RankMismatch``.
    """
    strange = sets.strange(me)
    if not strange:
        return stage_input
    place = {canonical(path): i for i, path in enumerate(stage_input.paths)}
    for key, path in sets.paths():
        if key in strange:
            check_goes(path, strange[key], (me,))
    for key in strange.keys() & place.keys():
        claim, form = strange.pop(key), stage_input.known()[place[key]]
        if (form.layout, form.dtype) != (claim.source, claim.form.dtype):
            raise mismatched(
                stage_input.paths[place[key]],
                f"the ranks {claim.ranks} send {claim.form}, and rank {me} has {form}; "
                "rename or drop one of them",
                (claim.ranks[0], me),
            )
    spec = sets.joined(stage_input.spec, strange)
    keys = [*map(canonical, spec.every_path)]
    places = [place.get(key, -1) for key in keys]
    more = {i: strange[key].form for i, key in enumerate(keys) if places[i] < 0}

    def pull(ids: Sequence[int]) -> Sequence[Leaf]:
        made = iter(stage_input.pull([places[i] for i in ids if i not in more]))
        return [more[i] if i in more else next(made) for i in ids]

    return replace(
        stage_input,
        spec=spec,
        paths=spec.every_path,
        leaves=[more.get(i) or stage_input.leaves[k] for i, k in enumerate(places)],
        held=[() if i in more else stage_input.held[k] for i, k in enumerate(places)],
        forms=[more.get(i) or stage_input.known()[k] for i, k in enumerate(places)],
        pull=pull,
        stand_alone=False,
    )


def told_form(form: Abstract, layout: Layout | None) -> Abstract:
    """Return what a leaf is, in words that are the same on all ranks that have it."""
    local = [Local(shape, dense_strides(shape), t) for shape, t in wholes_of(form)]
    return replace(form, tensors=tuple(local), layout=layout)


def supposed_of(layouts: Iterable[Layout | None], rank_group: RankGroup) -> str:
    """Return what is taken of other sets, if leaves lie on a part of the ranks."""
    ranks = {x.ranks for x in layouts if x is not None}
    return NO_OTHERS if ranks - {rank_group.ranks} else ""


NO_OTHERS: Final = "no other ranks held leaves at the paths that only some ranks hold"


def bond_of(i: int, claims: Sequence[Claim], beside: object = None) -> Hashable:
    """Return what a leaf has in common with those that travel with it in all sets.

    That is the leaf itself if in one of them that sees it, it has no tie.
    """
    ties = [(claim.ranks, claim.tie) for claim in claims if claim.tie != UNSEEN]
    is_tied = bool(ties) and all(tie for _, tie in ties)
    return str((ties, beside)) if is_tied else i


UNSEEN: Final = -1
"""The tie of a leaf of which a set of ranks holds nothing."""


def _first(claim: Claim) -> Ranks:
    return claim.ranks


def _check_alike(path: Path, claims: Sequence[Claim]) -> None:
    """Raise unless sets that have one path have one whole tensor there."""
    first, *others = claims
    for other in others:
        for what, here, there in zip(PARTS, _parts(first), _parts(other), strict=True):
            if here != there:
                advice = SAME_OPTIONS if what[-1] == "=" else OTHER_NAME
                raise mismatched(
                    path,
                    f"the ranks {first.ranks} have {what} {here} and the ranks "
                    f"{other.ranks} {there}; {advice}",
                    (first.ranks[0], other.ranks[0]),
                )


PARTS: Final = ("shape", "dtype", "local tensors", "ranks=", "bucket_bytes=")

SAME_OPTIONS: Final = "call with the same options on every rank"

OTHER_NAME: Final = (
    "sets of ranks that hold one path hold one tensor, so rename or drop one of them"
)


def _parts(claim: Claim) -> tuple[object, ...]:
    """Return what all claims of a path have in common."""
    form = claim.form
    kind = "in shards" if claim.is_sharded else form.kind.__name__
    local = kind, form.forms()
    return form.shape, form.dtype, local, claim.chosen, claim.bucket_bytes


def mismatched(path: Path, why: str, ranks: Ranks) -> RankMismatch:
    """Return the error for a path at which sets of ranks do not fit."""
    text = f"nothing was moved; at {where(path)} {why}"
    return RankMismatch(text, (path,), ranks)


def check_goes(path: Path, claim: Claim, receivers: Sequence[int]) -> None:
    """Raise ``LayoutError`` if a leaf over several tensors is to leave its own ranks.

    What it is beside these, other ranks do not know.
    """
    outside = [rank for rank in receivers if rank not in claim.ranks]
    if outside and claim.source is not None and claim.source.parts is not None:
        raise LayoutError(
            f"{where(path)}: a leaf over {claim.source.parts.kind.__name__} is to go "
            f"to the ranks {outside}, and its own are {claim.ranks}; choose among "
            "these, with a function say: ranks=lambda path: ..."
        )


def meet(
    rank_group: RankGroup, tell: Callable[[], Told | None], act: Callable[[Sets], T]
) -> tuple[T, Sets]:
    """Return what each rank makes of the sets of all, and these. Collective.

    If one fails to, or to tell of its own, all raise.
    """
    data, made = b"", list[tuple[T, Sets]]()
    error: BaseException | None = None
    try:
        told = tell()
        data = b"" if told is None else told.as_bytes()
    except BaseException as failure:  # an interrupt, too
        error = failure
    every = gather_bytes(rank_group, data)
    try:
        if error is None:
            sets = Sets.of([pickle.loads(told) for told in every if told])
            made.append((act(sets), sets))
    except BaseException as failure:
        error = failure
    try:
        _refuse_together(rank_group, error)
        if error is not None:
            raise error
    finally:
        error = None  # it would hold this frame, and the frame it
    return made.pop()


def _refuse_together(rank_group: RankGroup, error: BaseException | None) -> None:
    """Raise if there is an error on another rank: the same if ranks mismatch.

    Collective.
    """
    if not any(greatest(rank_group, [int(error is not None)])):
        return
    mine = None
    if isinstance(error, RankMismatch):
        mine = str(error), tuple(map(with_plain_keys, error.paths)), error.ranks
    every = gather_objects(rank_group, mine)
    if not any(every):
        report_failures(rank_group, error, None, "before anything moved")
    elif error is None:
        raise RankMismatch(*next(filter(None, every)))


def check_meant(
    rank_group: RankGroup,
    stage: CollectiveStage,
    sets: Sets,
    wanted: Mapping[Canonical, int],
) -> None:
    """Raise if a leaf that comes from or goes to sets of other ranks would not arrive.

    It is dropped here, or is to come in pieces of another size.
    """
    me = rank_group.me
    for key in sets.claims if me == stage.src else sets.strange(me):
        claim = sets.claims[key][0]
        if key not in wanted:
            why = (
                f"have a leaf that a later stage drops on rank {me}; call with the "
                "same stages on every rank"
            )
        elif claim.bucket_bytes != stage.bucket_bytes:
            why = (
                f"have bucket_bytes= {claim.bucket_bytes} and rank {me} "
                f"{stage.bucket_bytes}; {SAME_OPTIONS}"
            )
        else:
            continue
        path, ranks = dict(sets.paths())[key], claim.ranks
        raise mismatched(path, f"the ranks {ranks} {why}", (ranks[0], me))
