"""What is tied: targets that are filled as one, and leaves that are gathered as one."""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import compress, count

from torch import Tensor

from sdtree.errors import SpecMismatch
from sdtree.exchange.goals import Goals
from sdtree.exchange.leaf_plan import LeafPlan
from sdtree.exchange.receivers import Receivers
from sdtree.exchange.source import Source
from sdtree.exchange.targets import Targets
from sdtree.exchange.twins import Turn, groups_of, ties_of, turn_of, twins_of
from sdtree.kinds.abstract import by_form, nbytes_of
from sdtree.layout.schedule import is_blind
from sdtree.path import where
from sdtree.tensors.bits import same_bits
from sdtree.tensors.storage import identity_of, storage_of
from sdtree.wire.patches import Patchwork, Sent

# -- targets that are one ----------------------------------------------------------

Twins = Mapping[int, tuple[int, Hashable]]
"""Of leaves that are tied, the first such target, and the tie in the source.

That is None if it matters not: what is written is one in any case, and what one rank
has for all is asked of it.
"""


def twins_among(goals: Goals, held: Sequence[Sequence[Tensor]]) -> Twins:
    """Return with which others leaves are tied, here or there; ``held`` are targets."""
    order, source = goals.order, goals.source
    is_free = order.given.is_written or order.src is not None
    tied = {} if is_free else source.metadata.tied
    sizes = by_form(nbytes_of, goals.forms)
    found = {i: ts for i, ts in enumerate(held) if ts and sizes[i]}
    ties = ties_of(found, lambda _: None)
    first = {i: group[0] for group in ties for i in group}
    others = (i for i in found if tied and source.paths[i] in tied)
    return {
        i: (first.get(i, i), None if is_free else source.tie_of(i))
        for i in sorted({*first, *others})
    }


def ties_seen(goals: Goals, twins: Twins, me: int) -> list[list[int]]:
    """Return the leaves that a rank would fill as one.

    It knows of no ties but those of which it has a part.
    """
    found: dict[int, Hashable] = {}
    for i, (target, source) in twins.items():
        given = goals.source.given[i]
        is_kept = given is None and goals.order.src is None  # for nothing goes there
        if not is_kept and not goals.leaf_plan(i, me).is_blind:
            is_far = given is None or is_blind(given.layout, me)
            _, layout = goals.layouts_of(i)
            seen = None if is_blind(layout, me) else target
            found[i] = seen, None if is_far else source, layout
    return groups_of(found)


def filled_as_one(
    goals: Goals, ties: Sequence[Sequence[int]]
) -> Iterator[Sequence[int]]:
    """Yield the parts of ties of targets that are filled once.

    New ones are if their sources are tied; given ones are in any case one.
    """
    order, source = goals.order, goals.source
    asks = order.src is not None and not order.given.is_written
    for group in ties:
        found = [i for i in group if source.given[i] is not None]
        yield from groups_of({i: source.tie_of(i) if asks else 0 for i in found})


def in_one_buffer(
    goals: Goals, ties: Sequence[Sequence[int]], ids: Container[int]
) -> Iterator[Sequence[int]]:
    """Yield of some leaves those that go into one buffer here.

    They come one after the other, and may differ.
    """
    given, me = goals.source.given, goals.rank_group.me
    for group in ties:
        found = [i for i in group if i in ids and given[i] is not None]
        yield [i for i in found if not is_blind(goals.layouts_of(i)[1], me)]


def check_targets(
    goals: Goals,
    targets: Targets,
    ties: Sequence[Sequence[int]],
    *,
    is_known: bool,
    stand_alone: bool,
) -> None:
    """Raise if nothing can be written into targets that the source has, or twice.

    It has all of them unless it ``is_known``; they are dense if they ``stand_alone``. A
    flat buffer, say, and its parts may
    stand there, if the source has but one.
    """
    source = goals.source
    if is_known and not goals.order.strict:
        # What the source sends to others alone comes last, and has no target.
        pairs = zip(targets.tensors, source.given, strict=False)
        written = [ts if given is not None else () for ts, given in pairs]
        targets = replace(targets, tensors=written)
    if not stand_alone:
        targets.check_each()
    targets.check_apart(source.stage_input, ties)


def check_sources(goals: Goals, ties: Sequence[Sequence[int]]) -> None:
    """Raise unless what is here, and goes into one buffer, is equal."""
    source = goals.source
    stage_input = source.stage_input
    if stage_input is None or stage_input.is_acted_on:
        return
    here = {i for i, place in enumerate(source.places) if place >= 0}
    for first, *others in filter(None, in_one_buffer(goals, ties, here)):
        for i in others:
            a, b = (stage_input.held[source.places[k]] for k in (first, i))
            check_same(source, first, i, a, b)


def check_same(
    source: Source, i: int, j: int, a: Sequence[Tensor], b: Sequence[Tensor]
) -> None:
    """Raise unless what is to go into one and the same target is equal.

    Parts that are equal on each rank are of one whole if they lie in it alike.
    """
    one, other = (source.given[k] for k in (i, j))
    lie_alike = (one and one.layout) == (other and other.layout)
    if not (lie_alike and all(map(same_bits, a, b))):
        names = " and ".join(where(source.paths[k]) for k in (i, j))
        raise SpecMismatch(
            f"into= has one and the same buffer at {names}, and the leaves of the "
            "source differ; nothing was moved to it, give each its own"
        )


def check_led(
    goals: Goals,
    leader: int,
    i: int,
    sources: Sequence[Sequence[Sent]],
    ts: Sequence[Tensor],
) -> None:
    """Raise unless a leaf has the very data that goes to its target with its leader.

    ``sources`` are those of the leader. What is here and goes nowhere may be anything.
    """
    is_sent = goals.order.src is not None or goals.order.moves
    if is_sent or not is_blind(goals.at[i], goals.rank_group.me):
        every = [t for sent in sources for t in sent]
        theirs = [t for t in every if not isinstance(t, Patchwork)]
        check_same(goals.source, leader, i, theirs, ts)


# -- wholes that are one -----------------------------------------------------------


def twins_here(
    goals: Receivers, plans: Sequence[LeafPlan], apart: Sequence[Sequence[int]]
) -> list[list[int]]:
    """Return the twins among leaves that travel, but for some, of what is here."""
    left_out = {i for group in apart for i in group} | goals.strange.keys()
    travel = (i for i, plan in enumerate(plans) if plan.text and plan.nbytes)
    held = {i: goals.stage_input.held[i] for i in travel if i not in left_out}
    return twins_of(held, goals.given)


def turn_to(goals: Receivers, i: int, k: int) -> Turn:
    """Return in which order the dimensions of a leaf stand in one that is tied."""
    here, there = goals.given[i].layout, goals.given[k].layout
    assert here is not None
    assert there is not None
    turn = turn_of(here, there, goals.order(i), goals.order(k))
    assert turn is not None, "they would not be tied"
    return turn


def twins_to(
    goals: Receivers, twins: Sequence[Sequence[int]], targets: Targets, me: int
) -> list[list[int]]:
    """Return the twins that a rank gathers as one, where it is given buffers.

    These must be one, or each has its own to fill.
    """

    def goal(i: int, first: int) -> Hashable:
        chosen = goals.at[i]
        ts = targets.tensors[i] if me in chosen else ()
        back = turn_to(goals, i, first)
        fit = all(t.ndim == len(back) for t in ts)  # what does not is told later
        return chosen, identity_of([t.permute(back) for t in ts] if fit else ts)

    return groups_of({i: (g[0], goal(i, g[0])) for g in twins for i in g})


def shared_unseen(
    goals: Receivers, targets: Targets, plans: Sequence[LeafPlan]
) -> list[list[int]]:
    """Return the leaves that are to go into one buffer, and may be one.

    This rank holds nothing of them; whether they are tied, others will tell.
    """
    me, wanted = goals.rank_group.me, compress(count(), targets.wanted)
    layouts = {i: goals.given[i].layout for i in wanted}
    return groups_of(
        {
            i: (identity_of(targets.tensors[i]), layout)
            for i, layout in layouts.items()
            if is_blind(layout, me) and plans[i].nbytes
        }
    )


def sharing_memory(
    goals: Receivers, plans: Sequence[LeafPlan], twins: Sequence[Sequence[int]]
) -> list[list[int]]:
    """Return the leaves that share memory here, and are gathered each for itself.

    A group may be of one leaf, which others are tied to.
    """
    sizes = by_form(nbytes_of, goals.given)
    first = {i: group[0] for group in twins for i in group}
    pairs = enumerate(goals.stage_input.held)
    found = groups_of({i: storage_of(ts[0]) for i, ts in pairs if ts and sizes[i]})
    groups = (sorted({first.get(i, i) for i in group}) for group in found)
    return [
        group
        for group in groups
        if any(plans[i].text and plans[i].transfers for i in group)
    ]
