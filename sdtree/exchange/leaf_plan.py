"""Deals: what ranks are about to exchange, as data that a crossing carries out."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from sdtree.errors import Mismatch
from sdtree.kinds.abstract import Abstract
from sdtree.kinds.handler import tensors_of
from sdtree.layout.schedule import Lane
from sdtree.tree.spec import TreeSpec
from sdtree.typing import Leaf

if TYPE_CHECKING:
    from sdtree.exchange.filling import Targets
    from sdtree.exchange.sets import Claim, Sets
    from sdtree.wire.agreement import Canonical


@dataclass(frozen=True, slots=True)
class Origin:
    """The leaves that come to a communicating stage.

    ``leaves`` are those that the stages before begin with, ``held`` their local tensors
    and ``is_acted_on`` tells whether these stages change them; ``forms`` are what they
    are to be, None if that cannot be foretold. ``pull`` has the stages act on the
    leaves at some positions of ``spec``.
    """

    spec: TreeSpec
    leaves: Sequence[Leaf]
    held: Sequence[Sequence[Tensor]]
    is_acted_on: bool
    forms: Sequence[Abstract] | None
    pull: Callable[[Sequence[int]], Sequence[Leaf]]

    def known(self) -> Sequence[Abstract]:
        """Return what the leaves are to be, for a stage that must know it."""
        assert self.forms is not None, "runs are cut before what cannot be foretold"
        return self.forms

    def tensors(self, i: int, leaf: Leaf) -> Sequence[Tensor]:
        """Return the local tensors of a leaf that has come to the stage from there."""
        return self.held[i] if leaf is self.leaves[i] else tensors_of(leaf)


class Leg(NamedTuple):
    """What is to become of a leaf: the same object for leaves that are alike.

    ``ranks`` must agree on ``text``; are there none, it is for whoever has the leaf.
    If it ``moves`` they take part in its window, over ``device``, or those of ``crew``
    where these are others; ``is_partial``: its terms are reduced before. ``nbytes`` are
    those of the whole leaf. ``is_blind``: this rank holds nothing of it, and so cannot
    tell whether it is tied.
    """

    nbytes: int = 0
    ranks: tuple[int, ...] = ()
    text: str = ""
    moves: bool = False
    is_partial: bool = False
    device: str = "cpu"
    lanes: tuple[Lane, ...] = ()
    is_blind: bool = False
    crew: tuple[int, ...] = ()


class Cargo(NamedTuple):
    """A leaf at hand: what becomes of it, and the tensors to read and write, by lane.

    ``leaf`` may be made before its data has come, unless ``finish`` makes it then.
    """

    leaf: Leaf
    sources: Sequence[Sequence[Tensor]] = ()
    targets: Sequence[Sequence[Tensor]] = ()
    finish: Callable[[], Leaf] | None = None

    def finished(self) -> Leaf:
        """Return what has become of the leaf, now that its data has come."""
        return self.leaf if self.finish is None else self.finish()


def per_lane(ts: Sequence[Tensor], count: int) -> list[Sequence[Tensor]]:
    """Return the local tensors that each lane takes: all of them if it is the only."""
    return [ts] if count == 1 else [[t] for t in ts]


class Deal(Protocol):
    """What the ranks are about to exchange, leaf by leaf.

    ``spec`` and ``forms`` are those of the result, ``ties`` the groups of positions
    that this rank would send as one. After ``open``, ``leaders`` tells for each leaf
    that travels with another with which. ``targets`` are what is written into, None if
    leaves are made anew. ``consequence``: what a failure leaves;
    ``fault``: what ``open`` found to be wrong on this rank alone.
    ``common`` is what all ranks of the group must agree on, whatever their leaves.
    Leaves of ``others`` are none of ``spec``, come behind those that are, and are only
    sent.
    """

    spec: TreeSpec
    forms: list[Leaf]
    legs: list[Leg]
    ties: list[list[int]]
    leaders: dict[int, int]
    targets: Targets | None
    fault: Exception | None
    consequence: str
    common: str

    @property
    def report(self) -> Mismatch:
        """Return what does not fit, and is allowed, once the deal is open."""
        ...

    @property
    def others(self) -> Sequence[Canonical]:
        """Return the paths of leaves that are only sent."""
        ...

    def seeks(self, ids: Iterable[int], *, of_all: bool = False) -> bool:
        """Return whether other sets of ranks may have a part in leaves of this rank.

        ``of_all``: or of those that hold the leaves that this one knows of.
        """
        ...

    def claims(
        self, ids: Iterable[int], *, are_apart: bool = False, of_all: bool = False
    ) -> dict[int, Claim]:
        """Return what leaves this rank has on sets that are not the whole group.

        Those that are not sharded are among these if ranks ``are_apart`` in them.
        ``of_all``: also what other ranks have, as far as this one knows of it.
        """
        ...

    def met(self, sets: Sets) -> Deal:
        """Return the deal now that all have told which sets there are."""
        ...

    def bond(self, i: int, sets: Sets) -> Hashable:
        """Return what those of some leaves have in common that travel as one."""
        ...

    def ends(self, i: int) -> tuple[int, ...] | None:
        """Return the ranks that have a leaf when it has come, None if all have one."""
        ...

    def stays(self, i: int) -> Sequence[Tensor]:
        """Return the tensors that a leaf has here which does not travel."""
        ...

    def home(self, i: int) -> torch.device | None:
        """Return where a leaf is made anew, None for where its source lies."""
        ...

    def members(self, i: int) -> tuple[int, ...]:
        """Return the ranks that have a part in what becomes of a leaf, none if all."""
        ...

    def leg_on(self, i: int, me: int) -> Leg:
        """Return what is to become of a leaf as a rank sees it."""
        ...

    def asks(self, me: int) -> bool:
        """Return whether a rank must hear more than what is agreed on."""
        ...

    def ties_on(self, me: int) -> list[list[int]]:
        """Return the ties that a rank sees, if it has what this one has."""
        ...

    def unseen_ties(self) -> list[list[int]]:
        """Return the groups of leaves that may be tied, and this rank cannot see it."""
        ...

    def untied(self) -> list[list[int]]:
        """Return the groups of leaves that share memory here, and will not there."""
        ...

    def open(
        self, ids: Sequence[int], ties: Sequence[Sequence[int]], asked: bool
    ) -> None:
        """Settle what is left to settle.

        ``ids`` are the leaves that are wanted, ``ties`` the groups of them that all
        ranks see; ``asked`` tells whether a rank asks. Called after the agreement: it
        may communicate, and what it raises all ranks raise.
        """
        ...

    def check_data(self, ids: Sequence[int]) -> None:
        """Raise if leaves that are wanted have no data, as far as that is known."""
        ...

    def openings(self) -> list[tuple[str, int]]:
        """Return the collectives of ``open`` if it is asked, and their bytes."""
        ...

    def pull(self, ids: Sequence[int]) -> Sequence[Leaf]:
        """Return the leaves of a window as they come to the stage."""
        ...

    def reduce(self, i: int, leaf: Leaf | None) -> Leaf:
        """Return a partial leaf reduced; None stands for junk. Collective."""
        ...

    def load(self, ids: Sequence[int], leaves: Sequence[Leaf]) -> Sequence[Cargo]:
        """Return the leaves of a window, as they are to travel."""
        ...
