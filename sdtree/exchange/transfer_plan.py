"""Transfer plans: what is to become of each leaf, the same in all that ranks exchange.

A gather is a transfer to whole leaves on the ranks chosen, the others are transfers to
the layouts of a tree. They differ in how they choose where leaves go, and in how they
make what is to come there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from sdtree.errors import Mismatch, SpecMismatch
from sdtree.exchange.leaf_plan import LeafBuffers, LeafPlan, StageInput
from sdtree.exchange.persistent import Persistent
from sdtree.exchange.sets import Claim, Sets
from sdtree.exchange.targets import Targets
from sdtree.path import where, with_place
from sdtree.transform.form import Look
from sdtree.tree.spec import TreeSpec
from sdtree.typing import Leaf, Path
from sdtree.wire.agreement import ALIKE
from sdtree.wire.collectives import RankGroup
from sdtree.wire.columns import LeafColumn, Part

Make = Callable[[int, Leaf, LeafBuffers | None], LeafBuffers]
"""What makes the buffers of a leaf that came, given those of its leader if any."""


class Goals(Protocol):
    """Where leaves go, by position: what an operation chooses."""

    def leaf_plan(self, i: int, me: int) -> LeafPlan:
        """Return what is to become of a leaf as a rank sees it."""
        ...

    def members(self, i: int) -> tuple[int, ...]:
        """Return the ranks that have a part in what becomes of a leaf, none if all."""
        ...

    def ends(self, i: int) -> tuple[int, ...] | None:
        """Return the ranks that have a leaf when it has come, None if all have one."""
        ...

    def is_open(self, i: int, *, of_all: bool) -> bool:
        """Return whether other sets of ranks may have a part in a leaf of this rank.

        ``of_all``: or of those that hold the leaves that this one knows of.
        """
        ...

    def claims(
        self, ids: Iterable[int], *, are_apart: bool, of_all: bool
    ) -> dict[int, Claim]:
        """Return what leaves this rank has on sets that are not the whole group.

        Those that are not sharded are among these if ranks ``are_apart`` in them.
        ``of_all``: also what other ranks have, as far as this one knows of it.
        """
        ...

    def bond(self, i: int, sets: Sets) -> Hashable:
        """Return what those of some leaves have in common that travel as one."""
        ...


class Supply(Protocol):
    """What leaves come from."""

    @property
    def stage_input(self) -> StageInput | None:
        """Return the leaves that came to the stage, None if another rank has them."""
        ...

    def pull(self, ids: Sequence[int], /) -> Sequence[Leaf]:
        """Return the leaves at some positions as they come to the stage."""
        ...

    def junk(self, i: int, device: str) -> Leaf:
        """Return what takes the place of a leaf that could not be pulled.

        Where that has no data, it is on a ``device``.
        """
        ...


G = TypeVar("G", bound=Goals, covariant=True)
S = TypeVar("S", bound=Supply, covariant=True)


@dataclass(slots=True, kw_only=True)
class TransferPlan(ABC, Generic[G, S]):
    """What is to become of each leaf, and which of them travel as one.

    Leaves come from a ``source`` and go where the ``goals`` say. ``spec`` and ``forms``
    are those of the result, ``ties`` the groups of positions that this rank would send
    as one. Once it is settled, ``leaders`` tells for each leaf that travels with
    another with which. ``targets`` are what is written into, None if leaves are made
    anew; it ``lacks`` leaves if there are targets for more. ``consequence``: what a
    failure leaves; ``fault``: what was found to be wrong on this rank alone, too late
    to tell the others first; ``report``: what does not fit, and is allowed. ``common``
    is what all ranks of the group must agree on, whatever their leaves, and ``advice``
    what helps where they do not. ``paths`` are those of ``spec``, and behind them those
    of leaves that are only sent. ``persistent`` has leaves that one call after the
    other fills, where a plan makes such, None if each call makes its own.
    """

    rank_group: RankGroup
    spec: TreeSpec
    paths: Sequence[Path]
    forms: list[Leaf]
    goals: G
    source: S
    leaf_plans: list[LeafPlan] = field(default_factory=list[LeafPlan])
    ties: list[list[int]] = field(default_factory=list[list[int]])
    leaders: dict[int, int] = field(default_factory=dict[int, int])
    targets: Targets | None = None
    lacks: bool = False
    fault: Exception | None = None
    consequence: str = "nothing was changed"
    common: str = ""
    advice: str = ALIKE
    report: Mismatch = field(default_factory=Mismatch)
    persistent: Persistent | None = None

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
        self.leaders = {i: group[0] for group in ties for i in group[1:]}
        for group in filled:
            if len({self.leaders.get(i, i) for i in group}) > 1:
                names = " and ".join(where(self.paths[i]) for i in group)
                self.fault = SpecMismatch(
                    f"into= has one and the same buffer at {names}, and {why}; nothing "
                    "was written to it, give each its own"
                )

    def load(self, ids: Sequence[int], leaves: Sequence[Leaf]) -> list[LeafBuffers]:
        """Return the leaves of a window, as they are to travel.

        An error tells at which path.
        """
        made: list[LeafBuffers] = []
        make, leaders = self.maker(), self.leaders
        place = {i: k for k, i in enumerate(ids)} if leaders else {}
        try:
            for i, leaf in zip(ids, leaves, strict=True):
                leader = made[place[leaders[i]]] if i in leaders else None
                made.append(make(i, leaf, leader))
        except BaseException as error:
            raise with_place(error, self.paths[ids[len(made)]]) from None
        return made

    def columns(self, ids: Sequence[int]) -> list[LeafColumn] | None:
        """Return the leaves of a window as columns, None if each is for itself."""
        return None

    def part_of(self, column: LeafColumn, leaves: Sequence[Leaf]) -> Part | None:
        """Return what there is to do here with a column, of which these leaves came.

        None if one of them is not as the others, or not where it could be.
        """
        return None

    def read(self) -> list[tuple[int, Leaf]]:
        """Return what is read for leaves, by position, and by -1 for others.

        That is what they are made of, and where they are before stages after act on
        them; others are only sent, or stages before write there.
        """
        source, own, places = self.source.stage_input, len(self.spec), len(self.paths)
        found, written = dict[Path, Leaf](), list[Leaf]()
        if source is not None:
            found = dict(zip(source.paths, source.leaves, strict=True))
            written += source.written
        ways = [(i, path) for i in range(places) for path in self.origins(i)]
        every = [(i if i < own else -1, found.get(path)) for i, path in ways]
        every += [(i, self.place_of(i)) for i in range(own)]
        return every + [(-1, leaf) for leaf in written]

    def place_of(self, i: int) -> Leaf:
        """Return what a leaf is written into or stays as, None if it is made anew."""
        targets = self.targets
        return targets.leaves[i] if targets and targets.wanted[i] else None

    # -- what operations have in their own ways ------------------------------------

    @abstractmethod
    def ties_on(self, me: int) -> list[list[int]]:
        """Return the ties that a rank sees, if it has what this one has."""

    @abstractmethod
    def unseen_ties(self) -> list[list[int]]:
        """Return the groups of leaves that may be tied, and this rank cannot see it."""

    def untied(self) -> list[list[int]]:
        """Return the groups of leaves that share memory here, and will not there."""
        return []

    def is_here(self, i: int) -> bool:
        """Return whether this rank gets what its form says of a leaf."""
        return True

    @abstractmethod
    def stays(self, i: int) -> Sequence[Tensor]:
        """Return the tensors that a leaf has here which does not travel."""

    def home(self, i: int) -> torch.device | None:
        """Return where a leaf is made anew, None for where its source lies."""
        return None

    def check_terms(self, ids: Sequence[int], leaves: Sequence[Leaf]) -> None:
        """Raise if leaves of terms differ of which the first is reduced for all."""
        return

    def supposed(self) -> str:
        """Return what a plan takes of other ranks, empty if nothing."""
        return ""

    def origins(self, i: int) -> Sequence[Path]:
        """Return the paths at the stage of the leaves of which one is made."""
        return [self.paths[i]]

    @abstractmethod
    def check_data(self, ids: Sequence[int]) -> None:
        """Raise if leaves that are wanted have no data, as far as that is known."""

    @abstractmethod
    def met(self, sets: Sets) -> TransferPlan[G, S]:
        """Return the plan now that all have told which sets there are."""

    @abstractmethod
    def asks(self, me: int) -> bool:
        """Return whether a rank must hear more than what is agreed on."""

    def openings(self) -> list[tuple[str, int]]:
        """Return the collectives of ``open`` if it is asked, and their bytes."""
        return []

    @abstractmethod
    def open(
        self, ids: Sequence[int], ties: Sequence[Sequence[int]], asked: bool
    ) -> None:
        """Settle what is left to settle.

        ``ids`` are the leaves that are wanted, ``ties`` the groups of them that all
        ranks see; ``asked`` tells whether a rank asks. Called after the agreement: it
        may communicate, and what it raises all ranks raise.
        """

    def again(
        self, source: StageInput | None, given: Look | None
    ) -> TransferPlan[G, S] | None:
        """Return this plan, open, for leaves of the same forms; None if it is anew.

        ``given`` is what was seen of the tree that is like the result, or is written
        into, if it was quick to see. What cannot be written raises.
        """
        return None

    @abstractmethod
    def maker(self) -> Make:
        """Return what makes the buffers of the leaves of a window."""


Transfers = TransferPlan[Goals, Supply]
"""The transfer plan of any operation, for those that carry it out and know none."""
