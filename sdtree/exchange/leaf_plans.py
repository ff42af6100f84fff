"""Leaf plans: what becomes of a leaf, worked out from its form and who takes part."""

from __future__ import annotations

from functools import lru_cache

from sdtree.exchange.joint import (
    alike_in,
    described,
    is_blind,
    layouts_of,
    nbytes_of,
    parts_of,
    told_by,
    wholes_of,
)
from sdtree.exchange.leaf_plan import LeafPlan
from sdtree.kinds.abstract import Abstract
from sdtree.layout.layout import Layout, whole
from sdtree.layout.schedule import Transfer, alike, is_whole, only, settled, summary


@lru_cache(maxsize=4096)
def gather_leaf_plan(
    form: Abstract, chosen: tuple[int, ...], to: str, wire: str, me: int, writes: bool
) -> LeafPlan:
    """Return what is to become of a leaf of a form, wherever it stands."""
    layout, dtype = form.layout, form.dtype
    if dtype is None:
        return LeafPlan()
    if layout is None:
        here = [Transfer.here(t.shape, t.dtype, me) for t in form.tensors if writes]
        return LeafPlan(nbytes_of(form), transfers=tuple(here))
    crew = tuple(sorted({*layout.ranks, *chosen}))
    if me not in crew:
        return LeafPlan()
    comes = layout.is_partial or not is_whole(layout, chosen)
    transfers = [
        Transfer(settled(source), whole(shape, chosen), kind)
        for source, shape, kind in parts_of(form, layout)
    ]
    return LeafPlan(
        nbytes_of(form),
        layout.ranks,
        f"gather to {to} of {told_by(form)} by {wire}",
        layout.is_partial or (comes and len(crew) > 1),
        layout.is_partial,
        wire,
        tuple(transfers) if comes or writes else (),
        is_blind(layout, me),
        crew,
    )


@lru_cache(maxsize=4096)
def spread_leaf_plan(
    verb: str,
    form: Abstract,
    src: int,
    group: tuple[int, ...],
    wire: str,
    layout: Layout | None,
    goal: Layout | None,
) -> LeafPlan:
    """Return the plan of a leaf of a form that one rank has, wherever it stands.

    It goes to a layout that other sets may have a part in, too.
    """
    targets = [(whole(t.shape, group), t.dtype) for t in form.tensors]
    if goal is not None and form.dtype is not None:
        targets = [(part, dtype) for part, _, dtype in parts_of(form, goal)]
    crew = tuple(sorted({src, *targets[0][0].ranks}))
    transfers = [
        Transfer(whole(target.shape, (src,)), target, dtype, src)
        for target, dtype in targets
    ]
    return LeafPlan(
        nbytes_of(form),
        () if layout is None else layout.ranks,
        f"{verb} of {described(form)} by {wire}",
        len(crew) > 1 and nbytes_of(form) > 0,
        device=wire,
        transfers=tuple(transfers),
        crew=crew,
    )


@lru_cache(maxsize=4096)
def exchange_leaf_plan(
    verb: str,
    form: Abstract,
    source: Layout,
    target: Layout | None,
    goal: Layout | None,
    wire: str,
    me: int,
) -> LeafPlan:
    """Return the plan of a leaf that goes from one layout to another, or is made whole.

    Each set that has the source serves its own ranks, whatever sets they are in for the
    target: the ``goal`` unites those, where they are known.
    """
    wholes, own = wholes_of(form), source.ranks
    ranks = alike(me, source, target or source)
    if not ranks:
        return LeafPlan()
    ends = [whole(shape, own) for shape, _ in wholes]
    if target is not None:
        ends = layouts_of(goal or target)
    stays = source == (target or whole(form.shape, own))
    stays = stays or is_whole(settled(source), own)
    transfers = [
        Transfer(here, there if there.ranks == own else only(there, *own), dtype)
        for here, there, (_, dtype) in zip(
            layouts_of(settled(source)), ends, wholes, strict=True
        )
    ]
    return LeafPlan(
        nbytes_of(form),
        ranks,
        f"{verb} of {summary(source)}{alike_in(source.parts)} to {described(form)} "
        f"by {wire}",
        source.is_partial or not (stays or len(own) == 1),
        source.is_partial,
        wire,
        tuple(transfers),
        is_blind(source, me) and is_blind(target or source, me),
        own,
    )


def own_leaf_plan(
    verb: str, form: Abstract, layout: Layout | None, me: int
) -> LeafPlan:
    """Return the plan of a leaf that a rank has whole, and keeps its part of."""
    if layout is None:
        transfers = [Transfer.here(t.shape, t.dtype, me) for t in form.tensors]
        return LeafPlan(nbytes_of(form), transfers=tuple(transfers))
    transfers = [
        Transfer(whole(shape, (me,)), only(part, me), dtype)
        for part, shape, dtype in parts_of(form, layout)
    ]
    return LeafPlan(
        nbytes_of(form),
        layout.ranks,
        f"{verb} of {described(form)}",
        transfers=tuple(transfers),
        is_blind=is_blind(layout, me),
    )
