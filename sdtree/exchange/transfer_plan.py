"""Transfer plans: what is to become of each leaf, the same in all that ranks exchange.

A gather is a transfer to whole leaves on the ranks chosen, the others are transfers to
the layouts of a tree. Either is a ``Deal``: it tells from where and to where, and has a
plan of how leaves go there.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from sdtree.errors import Mismatch, SpecMismatch
from sdtree.exchange.filling import Targets
from sdtree.exchange.leaf_plan import LeafBuffers, LeafPlan
from sdtree.exchange.sets import Claim, Sets
from sdtree.exchange.twins import leaders_of
from sdtree.path import where, with_place
from sdtree.tree.spec import TreeSpec
from sdtree.typing import Leaf, Path
from sdtree.wire.agreement import Canonical
from sdtree.wire.collectives import RankGroup


@dataclass(slots=True)
class TransferPlan:
    """What is to become of each leaf, and which of them travel as one.

    ``spec`` and ``forms`` are those of the result, ``ties`` the groups of positions
    that this rank would send as one. Once it is settled, ``leaders`` tells for each
    leaf that travels with another with which. ``targets`` are what is written into,
    None if leaves are made anew. ``consequence``: what a failure leaves; ``fault``:
    what was found to be wrong on this rank alone, too late to tell the others first.
    ``common`` is what all ranks of the group must agree on, whatever their leaves.
    Leaves of ``others`` are none of ``spec``, come behind those that are, and are only
    sent; these are their paths.
    """

    rank_group: RankGroup
    me: int
    spec: TreeSpec
    forms: list[Leaf]
    leaf_plans: list[LeafPlan] = field(default_factory=list[LeafPlan])
    ties: list[list[int]] = field(default_factory=list[list[int]])
    leaders: dict[int, int] = field(default_factory=dict[int, int])
    targets: Targets | None = None
    fault: Exception | None = None
    consequence: str = "nothing was changed"
    common: str = ""
    others: Sequence[Canonical] = ()

    @property
    def has_others(self) -> bool:
        """Return whether there are ranks to hear from."""
        return bool(self.rank_group.others)

    def lead(
        self,
        ties: Iterable[Sequence[int]],
        filled: Iterable[Sequence[int]],
        why: str,
    ) -> None:
        """Have the first leaf of each tie lead the others.

        ``filled`` are those that go into one buffer here. If they do not travel as one,
        that is a fault; ``why`` tells how it can come.
        """
        self.leaders = leaders_of(ties)
        for group in filled:
            if len({self.leaders.get(i, i) for i in group}) > 1:
                names = " and ".join(where(self.spec.every_path[i]) for i in group)
                self.fault = SpecMismatch(
                    f"into= has one and the same buffer at {names}, and {why}; nothing "
                    "was written to it, give each its own"
                )

    def one_of_each(self, ids: Iterable[int], forms: Sequence[object]) -> Iterable[int]:
        """Return of the leaves that have one leaf plan and one form a single one."""
        return {(id(self.leaf_plans[i]), id(forms[i])): i for i in ids}.values()

    def load(
        self,
        ids: Sequence[int],
        leaves: Sequence[Leaf],
        paths: Sequence[Path],
        make: Callable[[int, Leaf, LeafBuffers | None], LeafBuffers],
    ) -> list[LeafBuffers]:
        """Return what a function makes of each leaf, given the buffers of its leader.

        An error tells at which path.
        """
        made: list[LeafBuffers] = []
        leaders = self.leaders
        place = {i: k for k, i in enumerate(ids)} if leaders else {}
        try:
            for i, leaf in zip(ids, leaves, strict=True):
                leader = made[place[leaders[i]]] if i in leaders else None
                made.append(make(i, leaf, leader))
        except BaseException as error:
            raise with_place(error, paths[ids[len(made)]]) from None
        return made


class Deal(Protocol):
    """What ranks are about to exchange: from where and to where each leaf goes."""

    @property
    def plan(self) -> TransferPlan:
        """Return how the leaves go there."""
        ...

    @property
    def report(self) -> Mismatch:
        """Return what does not fit, and is allowed, once the deal is open."""
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

    def leaf_plan_on(self, i: int, me: int) -> LeafPlan:
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

    def load(self, ids: Sequence[int], leaves: Sequence[Leaf]) -> Sequence[LeafBuffers]:
        """Return the leaves of a window, as they are to travel."""
        ...
