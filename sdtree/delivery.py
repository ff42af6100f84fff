"""Delivery: the deal by which leaves take the layouts of another tree."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import chain

import torch
from torch import Tensor

from sdtree.agree import settle
from sdtree.bits import same_bits
from sdtree.deals import Cargo, Lane, Leg, Origin, per_lane
from sdtree.errors import LayoutError, SpecMismatch
from sdtree.filling import Targets
from sdtree.joint import (
    by_form,
    checked_layouts,
    described,
    groups_of,
    is_blind,
    junk_like,
    kinds_of_wire,
    leaders_of,
    made_like,
    me_in,
    nbytes_of,
    once,
    ties_of,
    with_place,
)
from sdtree.kinds.abstract import Abstract, look_at
from sdtree.layout import Layout, whole
from sdtree.leaf import handler_of
from sdtree.manifest import (
    NOTHING,
    Given,
    Manifest,
    Misfit,
    difference,
    manifest_of,
    merged,
    misfit_of,
)
from sdtree.path import where
from sdtree.routes import is_whole, only, settled, summary
from sdtree.treespec import TreeSpec, take
from sdtree.typing import Leaf, Tree
from sdtree.wire import Team, broadcast_bytes, gather_bytes, greatest


@dataclass(frozen=True, slots=True)
class Order:
    """What an operation asks for: a tree of layouts, or of targets, and how to take it.

    ``src`` is the rank that has the source, None where each has. ``moves`` tells
    whether ranks exchange parts, or each has all it needs.
    """

    verb: str
    tree: Tree
    is_into: bool
    moves: bool
    src: int | None = None
    strict: bool = True
    on_mismatch: Callable[[Misfit], object] | None = None
    device: torch.device | None = None


@dataclass(slots=True)
class Delivery:
    """What is brought into the layouts of a tree; see ``Deal``.

    Of each target ``places`` tell where in the source its leaf is, -1 if not here, and
    ``given`` what that is like, None as long as that is not known.
    """

    order: Order
    origin: Origin | None
    team: Team | None
    me: int
    spec: TreeSpec
    likes: list[Leaf]
    forms: list[Leaf]
    held: list[Sequence[Tensor]]
    layouts: list[Layout | None]
    places: list[int] = field(default_factory=list[int])
    given: list[Given | None] = field(default_factory=list["Given | None"])
    manifest: Manifest | None = None
    targets: Targets | None = None
    wires: list[str] = field(default_factory=list[str])
    legs: list[Leg] = field(default_factory=list[Leg])
    ties: list[list[int]] = field(default_factory=list[list[int]])
    leaders: dict[int, int] = field(default_factory=dict[int, int])
    fault: Exception | None = None
    consequence: str = "nothing was changed"
    common: str = ""
    asks: bool = False
    told: bytes | None = None

    @classmethod
    def of(cls, order: Order, origin: Origin | None, team: Team | None) -> Delivery:
        """Return the deal for what comes to the stage, None off the source."""
        _check_source(order, team)
        likes, spec = take(order.tree)
        forms, held = look_at(likes)
        me, paths = me_in(team), spec.paths()
        layouts = checked_layouts(paths, forms, me)
        deal = cls(order, origin, team, me, spec, likes, forms, held, layouts)
        deal.given, deal.places = [None] * len(likes), [-1] * len(likes)
        if origin is not None:
            found = {path: k for k, path in enumerate(origin.spec.paths())}
            deal.places = [found.get(path, -1) for path in paths]
        deal.wires = kinds_of_wire(likes, team)
        if origin is not None:
            deal._know(manifest_of(origin))
            deal._check_sources(origin)
        deal._check_targets()
        if order.src is not None:
            strictness = "strict" if order.strict else "not strict"
            deal.common = f"{order.verb} from rank {order.src}, {strictness}"
            deal.asks = deal._must_hear()
            if deal.asks:
                deal._telling()
        else:
            deal._check_fit(deal._misfit())
        deal.legs = deal._all_legs()
        deal.ties = deal._target_ties()
        if order.is_into:
            deal.consequence = "the leaves of into= are partly written"
            deal._check_into()
        return deal

    @property
    def has(self) -> Manifest:
        """Return what the source has, nothing as long as that is not known here."""
        return NOTHING if self.manifest is None else self.manifest

    def _know(self, manifest: Manifest) -> None:
        """Take note of what the source has."""
        self.manifest, self.given = manifest, manifest.at(self.spec.paths())

    # -- does it fit ---------------------------------------------------------------

    def _misfit(self) -> Misfit:
        return misfit_of(self.has, self.spec.paths(), self.forms, self.given)

    def _check_sources(self, origin: Origin) -> None:
        if self._exchanges:
            checked_layouts(origin.spec.paths(), origin.known(), self.me)
            return
        for path, given in self.has.given.items():
            if given.layout is not None:
                raise LayoutError(
                    f"{where(path)}: {self.order.verb} takes a whole leaf and this one "
                    "is sharded; use sd.redistribute, or sd.gather first"
                )

    @property
    def _exchanges(self) -> bool:
        return self.order.moves and self.order.src is None

    def _check_targets(self) -> None:
        for i, layout in enumerate(self.layouts):
            if layout is not None and layout.is_partial:
                raise LayoutError(
                    f"{where(self.spec.paths()[i])}: the target is partial, terms of a "
                    "reduction; give a layout of shards or replicas"
                )

    def _check_fit(self, misfit: Misfit) -> None:
        """Tell of a misfit, and raise ``SpecMismatch`` unless it is allowed."""
        if not misfit:
            return
        if self.order.on_mismatch is not None:
            try:
                self.order.on_mismatch(misfit)
            except Exception as error:
                error.add_note("in the function given as on_mismatch=")
                raise
        if misfit.mismatched or self.order.strict:
            raise SpecMismatch(
                f"{self.order.verb}: the source does not fit the target, and nothing "
                f"was moved; {misfit}{misfit.advice()}"
            )

    def _check_into(self) -> None:
        paths = self.spec.paths()
        wanted = by_form(self._is_here, self.forms)
        held = [ts if here else () for ts, here in zip(self.held, wanted, strict=True)]
        self.targets = Targets(paths, self.likes, wanted, held)
        for i, path in enumerate(paths):
            reason = self.targets.unfit(i)
            if reason:
                raise SpecMismatch(f"into= does not fit at {where(path)}: {reason}")
        origin = self.origin
        self.targets.check_apart(origin, self.ties)
        if origin is None or origin.is_acted_on:
            return
        sources = origin.held
        for group in self.ties:
            found = [i for i in group if self.places[i] >= 0]
            for i in found[1:]:
                a, b = (sources[self.places[k]] for k in (found[0], i))
                self._check_same(found[0], i, a, b)

    def _is_here(self, form: Abstract) -> bool:
        """Return whether this rank is to have a part of a leaf of a form."""
        here = form.layout is None or self.me in form.layout.ranks
        return here and form.dtype is not None

    def _check_same(
        self, i: int, j: int, a: Sequence[Tensor], b: Sequence[Tensor]
    ) -> None:
        """Raise unless what is to go into one and the same target is equal."""
        if not all(map(same_bits, a, b)):
            names = " and ".join(where(self.spec.paths()[k]) for k in (i, j))
            raise SpecMismatch(
                f"into= has one and the same buffer at {names}, and the leaves of the "
                "source differ; nothing was moved to it, give each its own"
            )

    def _target_ties(self) -> list[list[int]]:
        """Return the targets that are one and the same, and may be filled as one."""
        sizes = by_form(nbytes_of, self.forms)
        held = {i: ts for i, ts in enumerate(self.held) if ts and sizes[i]}
        ties = ties_of(held, lambda _: None)
        me = self.me
        blind = by_form(lambda form: is_blind(form.layout, me), self.forms)
        if not ties and not any(blind):
            return []
        targets = _leaders_in(ties, held)
        sources = dict.fromkeys(held, 0) if self.order.is_into else self._source_ties()
        keys: dict[int, Hashable] = {
            i: (None if blind[i] else targets[i], sources.get(i))
            for i in held
            if not self.legs[i].is_blind
        }
        found = {i: (keys[i], self.layouts[i]) for g in groups_of(keys) for i in g}
        return groups_of(found)

    def _source_ties(self) -> dict[int, Hashable]:
        """Return for each leaf of which this rank has a part its tie in the source."""
        me = self.me
        found: dict[int, Hashable] = {}
        if self.order.src is not None:
            return found
        both = zip(self.spec.paths(), self.given, strict=True)
        for i, (path, given) in enumerate(both):
            if given is not None and not is_blind(given.layout, me):
                found[i] = self.has.tie_of(path)
        return found

    # -- the legs ------------------------------------------------------------------

    def _all_legs(self) -> list[Leg]:
        """Return the leg of each leaf, worked out once for those that are alike."""
        return once(self._leg, self.forms, self.given, self.wires)

    def _leg(self, i: int) -> Leg:
        return self.leg_on(i, self.me)

    def ends(self, i: int) -> tuple[int, ...] | None:
        """Return the ranks of the target; see ``Deal``."""
        layout = self.layouts[i]
        return None if layout is None else layout.ranks

    def members(self, i: int) -> tuple[int, ...]:
        """Return the ranks that a leaf goes from or to; see ``Deal``."""
        layout, src, given = self.layouts[i], self.order.src, self.given[i]
        layout = given.layout or layout if given is not None else layout
        if layout is None or src is None:
            return () if layout is None else layout.ranks
        return tuple(sorted({src, *layout.ranks}))

    def leg_on(self, i: int, me: int) -> Leg:
        """Return what is to become of a leaf as a rank sees it; see ``Deal``."""
        form, layout, given = self.forms[i], self.layouts[i], self.given[i]
        if form.dtype is None or (given is None and self.order.src is None):
            return Leg()
        if self.order.src is not None:
            group = (0,) if self.team is None else self.team.ranks
            verb = self.order.verb
            leg = _spread(verb, form, self.order.src, group, self.wires[i])
            if me not in leg.ranks:
                return Leg()
            return leg._replace(is_blind=is_blind(layout, me))
        if given is not None and given.layout is not None:
            return self._exchange(i, given.layout, me)
        if layout is None:
            lanes = [Lane.here(t.shape, t.dtype, me) for t in form.tensors]
            return Leg(nbytes_of(form), lanes=tuple(lanes))
        lane = Lane(whole(form.shape, (me,)), only(layout, me), form.dtype)
        text = f"{self.order.verb} of {described(form)}"
        return Leg(nbytes_of(form), layout.ranks, text, lanes=(lane,))

    def _exchange(self, i: int, source: Layout, me: int) -> Leg:
        """Return the leg of a leaf that goes from one layout to another."""
        form, path = self.forms[i], self.spec.paths()[i]
        target = self.layouts[i] or whole(form.shape, source.ranks)
        if target.ranks != source.ranks:
            raise LayoutError(
                f"{where(path)}: the leaf lies on the ranks {source.ranks}, the target "
                f"on {target.ranks}; redistribute works over the same ranks, otherwise "
                "gather and broadcast"
            )
        if me not in source.ranks:
            return Leg()
        stays = source == target or is_whole(settled(source), source.ranks)
        return Leg(
            nbytes_of(form),
            source.ranks,
            f"{self.order.verb} of {summary(source)} to {described(form)} "
            f"by {self.wires[i]}",
            source.is_partial or not (stays or len(source.ranks) == 1),
            source.is_partial,
            self.wires[i],
            (Lane(settled(source), target, form.dtype),),
            is_blind(source, me) and is_blind(target, me),
        )

    # -- after the agreement -------------------------------------------------------

    def _must_hear(self) -> bool:
        """Return whether ranks do not agree already on all that the source has.

        They agree on the form of each leaf of which a rank has a part. So they do if
        the source fits its own target, and has neither ties nor plain values.
        """
        has, me = self.has, self.me
        if self.origin is not None:
            tied = has.tied and not self.order.is_into
            if tied or has.values or self._misfit():
                return True
        has_part = by_form(
            lambda form: _is_agreed(form, me, self.order.src), self.forms
        )
        return not all(has_part)

    def open(
        self, ids: Sequence[int], ties: Sequence[Sequence[int]], asked: bool
    ) -> None:
        """Hear what the source has, if it is not here; see ``Deal``."""
        src = self.order.src
        if src is not None:
            team = self.team if self.team is not None and self.team.others else None
            if team is None:
                self._check_fit(self._misfit())
            elif asked:
                self._hear(team, src)
                self._check_fit_of_all(team, self._misfit())
            elif self.manifest is None:
                given = by_form(Given.to_fit, self.forms)
                self._know(Manifest(dict(zip(self.spec.paths(), given, strict=True))))
            for i in ids:
                if self.given[i] is None:
                    self.legs[i] = Leg()
        self.leaders = leaders_of(self._filled_as_one(ties))

    def openings(self) -> list[tuple[str, int]]:
        """Return how the ranks hear what the source has; see ``Deal``."""
        if self.order.src is None:
            return []
        heard = [("broadcast", 8), ("broadcast", len(self._telling() or b""))]
        misfit = self._misfit()
        if misfit:
            size = len(pickle.dumps(misfit))
            told = [("all_gather", 8), ("all_gather", size), ("all_reduce", 8)]
            return [*heard, ("all_reduce", 8), *told]
        return [*heard, ("all_reduce", 8)]

    def _telling(self) -> bytes | None:
        """Return what the source tells, None off it; raise if it cannot."""
        if self.told is None and self.manifest is not None:
            self.told = self.manifest.told()
        return self.told

    def _hear(self, team: Team, src: int) -> None:
        """Have the source tell all what it has, plain values included. Collective."""
        data = self._telling()
        size = broadcast_bytes(team, data and len(data).to_bytes(8), 8, src)
        data = broadcast_bytes(team, data, int.from_bytes(size), src)
        if self.manifest is None:
            self._know(pickle.loads(data))

    def _check_fit_of_all(self, team: Team, misfit: Misfit) -> None:
        """Tell of the misfits of all ranks, which may have other targets. Collective.

        Raise on every rank unless they are allowed, or if a function that is told of
        them raises on one.
        """
        if not any(greatest(team, [int(bool(misfit))])):
            return
        every = map(pickle.loads, gather_bytes(team, pickle.dumps(misfit)))
        error = None
        try:
            self._check_fit(merged(every))
        except Exception as found:
            error = found
        settle(team, error, when="before anything moved")
        if error is not None:
            raise error

    def _filled_as_one(self, ties: Sequence[Sequence[int]]) -> Iterator[Sequence[int]]:
        """Yield the parts of ties of targets that are filled once.

        New ones are if their sources are tied; given ones are in any case one.
        """
        paths, has = self.spec.paths(), self.has
        asks = self.order.src is not None and not self.order.is_into
        for group in ties:
            found = [i for i in group if self.given[i] is not None]
            yield from groups_of(
                {i: has.tie_of(paths[i]) if asks else 0 for i in found}
            )

    # -- window by window ----------------------------------------------------------

    def pull(self, ids: Sequence[int]) -> Sequence[Leaf]:
        """Return the leaves of the source, None where it has none; see ``Deal``."""
        if self.origin is None:
            return [None] * len(ids)
        places = [self.places[i] for i in ids]
        found = iter(self.origin.pull([k for k in places if k >= 0]))
        return [next(found) if k >= 0 else None for k in places]

    def reduce(self, i: int, leaf: Leaf | None) -> Leaf:
        """Return a leaf without terms to reduce; see ``Deal``."""
        assert self.origin is not None
        if leaf is None:
            k = self.places[i]
            leaf = junk_like(self.origin.leaves[k], self.origin.known()[k])
        return handler_of(leaf).reduced(leaf)

    def load(self, ids: Sequence[int], leaves: Sequence[Leaf]) -> Sequence[Cargo]:
        """Return what to read and where to write; see ``Deal``."""
        made: dict[int, Cargo] = {}
        for i, leaf in zip(ids, leaves, strict=True):
            leader = made.get(self.leaders.get(i, -1))
            try:
                made[i] = self._cargo(i, leaf, leader)
            except Exception as error:
                raise with_place(error, self.spec.paths()[i]) from None
        return [made[i] for i in ids]

    def _cargo(self, i: int, leaf: Leaf, leader: Cargo | None) -> Cargo:
        leg, like, layout = self.legs[i], self.likes[i], self.layouts[i]
        if self.given[i] is not None and self.forms[i].dtype is None:
            value = leaf if self.origin is not None else self._told(i)
            return Cargo(value)
        if self.given[i] is None or not leg.lanes:
            return Cargo(like)
        count = len(leg.lanes)
        sources = [()] * count if self.origin is None else self._sources(i, leaf)
        if layout is not None and self.me not in layout.ranks:
            return Cargo(like, sources, [()] * count)
        if self.targets is not None:
            if leader is not None and self.origin is not None:
                lanes = (chain.from_iterable(x) for x in (leader.sources, sources))
                self._check_same(self.leaders[i], i, *map(list, lanes))
            targets = per_lane(self.targets.tensors[i], count)
            return Cargo(like, sources, targets)
        ts, aux = handler_of(like).flatten(like)
        if leader is None:
            new = [made_like(t, self._home(i, t, leaf)) for t in ts]
        else:
            new = [t for lane in leader.targets for t in lane]
        finish = partial(handler_of(like).unflatten, aux, new)
        return Cargo(like, sources, per_lane(new, count), finish)

    def _told(self, i: int) -> Leaf:
        """Return a plain value that the source has told."""
        return pickle.loads(self.has.values[self.spec.paths()[i]])

    def _sources(self, i: int, leaf: Leaf) -> list[Sequence[Tensor]]:
        """Return the tensors to read for each lane, once they are seen to fit."""
        if self.origin is not None and self.origin.is_acted_on:
            why = difference(Given.of(Abstract.of(leaf)), self.forms[i])
            if why:
                raise SpecMismatch(f"{where(self.spec.paths()[i])}: {why}")
        return per_lane(self._tensors(i, leaf), len(self.legs[i].lanes))

    def _tensors(self, i: int, leaf: Leaf) -> Sequence[Tensor]:
        """Return the local tensors of the leaf of the source that goes to a target."""
        assert self.origin is not None
        return self.origin.tensors(self.places[i], leaf)

    def _home(self, i: int, t: Tensor, leaf: Leaf) -> torch.device:
        """Return where a new local tensor is made: where its target is, if not meta."""
        if self.order.device is None and not t.is_meta:
            return t.device
        found = self.home(i)
        if found is not None:
            return found
        if self.origin is not None:
            return self._tensors(i, leaf)[0].device
        return torch.device("cpu") if self.team is None else self.team.device()

    def home(self, i: int) -> torch.device | None:
        """Return where a leaf is made anew, if the target tells; see ``Deal``."""
        if self.order.device is not None:
            return self.order.device
        found = next((t.device for t in self.held[i] if not t.is_meta), None)
        mesh = getattr(self.likes[i], "device_mesh", None)
        return torch.device(mesh.device_type) if found is None and mesh else found


@lru_cache(maxsize=4096)
def _spread(
    verb: str, form: Abstract, src: int, group: tuple[int, ...], wire: str
) -> Leg:
    """Return the leg of a leaf of a form that one rank has, wherever it stands."""
    targets = [(whole(t.shape, group), t.dtype) for t in form.tensors]
    if form.layout is not None and form.dtype is not None:
        targets = [(form.layout, form.dtype)]
    ranks = tuple(sorted({src, *targets[0][0].ranks}))
    lanes = [
        Lane(whole(target.shape, (src,)), target, dtype, src)
        for target, dtype in targets
    ]
    return Leg(
        nbytes_of(form),
        ranks,
        f"{verb} of {described(form)} by {wire}",
        len(ranks) > 1 and nbytes_of(form) > 0,
        device=wire,
        lanes=tuple(lanes),
    )


def _is_agreed(form: Abstract, me: int, src: int | None) -> bool:
    """Return whether a rank and the source agree on all that a leaf of a form is."""
    if form.layout is not None:
        return me == src or me in form.layout.ranks
    return form.dtype is not None and form.forms() == [(form.shape, form.dtype)]


def _leaders_in(ties: Sequence[Sequence[int]], every: Iterable[int]) -> dict[int, int]:
    """Return the first of the tie that each is in, itself if it is in none."""
    return {i: i for i in every} | {i: group[0] for group in ties for i in group}


def _check_source(order: Order, team: Team | None) -> None:
    """Raise unless the rank that has the source is one of the group."""
    group = (0,) if team is None else team.ranks
    if order.src is not None and order.src not in group:
        raise ValueError(
            f"{order.verb}: src={order.src} is not in the group of {group}; ranks are "
            "global"
        )
