"""What becomes of a leaf: where it comes from, how it travels, its tensors at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

import torch
from torch import Tensor

from sdtree.exchange.twins import Turn
from sdtree.kinds.abstract import Abstract, nbytes_of, parts_of, wholes_of
from sdtree.kinds.handler import find_handler, handler_of, tensors_of
from sdtree.layout.layout import Layout, Parts, whole
from sdtree.layout.schedule import (
    Transfer,
    alike,
    is_blind,
    is_whole,
    layouts_of,
    only,
    settled,
    summary,
)
from sdtree.tensors.storage import raw
from sdtree.tree.spec import TreeSpec
from sdtree.typing import Leaf, Path
from sdtree.wire.messages import region
from sdtree.wire.patches import Sent

UNKNOWN_FORMS: Final = "runs are cut before what cannot be foretold"


@dataclass(frozen=True, slots=True)
class StageInput:
    """The leaves that come to a communicating stage.

    ``leaves`` are those that the stages before begin with, ``held`` their local tensors
    and ``is_acted_on`` tells whether these stages change them; ``forms`` are what they
    are to be, None if that cannot be foretold. ``pull`` has the stages act on the
    leaves at some positions of ``spec``, whose ``paths`` these are. If they
    ``stand_alone``, none is tied to another, and none lacks data. ``written`` is what
    the stages before write into.
    """

    spec: TreeSpec
    paths: Sequence[Path]
    leaves: Sequence[Leaf]
    held: Sequence[Sequence[Tensor]]
    is_acted_on: bool
    forms: Sequence[Abstract] | None
    pull: Callable[[Sequence[int]], Sequence[Leaf]]
    stand_alone: bool = False
    written: Sequence[Leaf] = ()

    @property
    def stage_input(self) -> StageInput:
        """Return the leaves that came to the stage: these."""
        return self

    def known(self) -> Sequence[Abstract]:
        """Return what the leaves are to be, for a stage that must know it."""
        assert self.forms is not None, UNKNOWN_FORMS
        return self.forms

    def junk(self, i: int, device: str) -> Leaf:
        """Return what takes the place of a leaf that could not be pulled: zeros.

        They are on a ``device`` where the leaf is meta, for what is meta never travels.
        """
        handler = handler_of(self.leaves[i])
        ts, aux = handler.flatten(self.leaves[i])
        zeros = [
            torch.zeros(
                local.shape,
                dtype=local.dtype,
                device=torch.device(device) if t.is_meta else t.device,
            )
            for local, t in zip(self.known()[i].tensors, ts, strict=True)
        ]
        return handler.unflatten(aux, zeros)

    def tensors(self, i: int, leaf: Leaf) -> Sequence[Tensor]:
        """Return the local tensors of a leaf that has come to the stage from there."""
        return self.held[i] if leaf is self.leaves[i] else tensors_of(leaf)


class LeafPlan(NamedTuple):
    """What is to become of a leaf: the same object for leaves that are alike.

    ``ranks`` must agree on ``text``; are there none, it is for whoever has the leaf.
    If it ``moves`` they take part in its window, over ``device``, or those of ``crew``
    where these are others; ``is_partial``: its terms are reduced before. ``nbytes`` are
    those of the whole leaf. ``is_blind``: this rank holds nothing of it, nor a buffer
    for it, and so cannot tell whether it is tied.
    """

    nbytes: int = 0
    ranks: tuple[int, ...] = ()
    text: str = ""
    moves: bool = False
    is_partial: bool = False
    device: str = "cpu"
    transfers: tuple[Transfer, ...] = ()
    is_blind: bool = False
    crew: tuple[int, ...] = ()


class LeafBuffers(NamedTuple):
    """A leaf at hand: what becomes of it, and what to read and write, by transfer.

    ``leaf`` is made before its data has come, unless ``finish`` makes it then.
    """

    leaf: Leaf
    sources: Sequence[Sequence[Sent]] = ()
    targets: Sequence[Sequence[Tensor]] = ()
    finish: Callable[[], Leaf] | None = None


def per_transfer(ts: Sequence[Tensor], count: int) -> list[Sequence[Tensor]]:
    """Return the local tensors of each transfer: all of them if it is the only one."""
    return [ts] if count == 1 else [[t] for t in ts]


# -- by its form, and who takes part ------------------------------------------------


def described(form: Abstract) -> str:
    """Return what a leaf is, as ranks compare it."""
    layout = "" if form.layout is None else f" {summary(form.layout)}"
    return f"{form.kind.__name__} {form.shape} {form.dtype}{layout}"


def told_by(form: Abstract) -> str:
    """Return what a source is, as ranks compare it: also what each has whole."""
    parts = None if form.layout is None else form.layout.parts
    return described(form) if parts is None else f"{described(form)}{alike_in(parts)}"


def alike_in(parts: Parts | None) -> str:
    """Return what ranks must have in common of a leaf over several local tensors."""
    if parts is None or not parts.alike:
        return ""
    return f" over {parts.kind.__name__} that has, besides parts, [{parts.alike}]"


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
        is_blind(layout, me) and not writes,
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
        is_blind(source, me) and is_blind(target, me),
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


# -- the tensors that it comes into ---------------------------------------------------


def made_like(t: Tensor, device: torch.device) -> Tensor:
    """Return an unfilled tensor of the size and the order of strides of another."""
    if t.is_contiguous():
        return torch.empty_like(t, device=None if t.device == device else device)
    new = torch.empty_like(t, device="meta")
    return torch.empty_strided(t.size(), new.stride(), dtype=t.dtype, device=device)


def blank(form: Abstract, device: torch.device, last: Tensor | None) -> Tensor:
    """Return an unfilled tensor for a leaf; ``last`` is that for one of its form.

    To make one like another takes half as long.
    """
    if last is not None and last.device == device:
        return torch.empty_like(last)
    return torch.empty(form.shape, dtype=form.dtype, device=device)


def marked(t: Tensor, requires_grad: bool) -> Tensor:
    """Return a tensor of its own over the data, that requires grad or does not."""
    if not requires_grad:
        return t.detach()
    return t.detach().requires_grad_(t.is_floating_point() or t.is_complex())


def own_part(layout: Layout | None, ts: Sequence[Tensor], me: int) -> Tensor:
    """Return the whole tensor where this rank holds it."""
    boxes = [box for box in layout.boxes[me] if box.numel] if layout else []
    if not boxes:
        shape = layout.shape if layout else ts[0].shape
        return ts[0].new_empty(shape)
    return region(ts[boxes[0].tensor], boxes[0].local, boxes[0].size)


def made_whole(leaf: Leaf, ts: Sequence[Tensor]) -> Leaf:
    """Return the leaf over these tensors, which are those of the whole."""
    makeup = handler_of(leaf).whole(leaf)
    assert makeup is not None
    handler = find_handler(makeup.kind)
    assert handler is not None
    return handler.unflatten(makeup.aux, ts)


def blank_parts(form: Abstract, ts: Sequence[Tensor]) -> list[Tensor]:
    """Return an unfilled tensor for each local tensor of the whole."""
    return [
        torch.empty(shape, dtype=dtype, device=t.device)
        for (shape, dtype), t in zip(wholes_of(form), ts, strict=True)
    ]


def filled(buffer: Leaf, other: Leaf, turn: Turn) -> Leaf:
    """Return a buffer with the data of another, its dimensions in another order."""
    if buffer is not other:
        raw(buffer).copy_(raw(other.permute(turn)))
    return buffer
