"""Exchange plans: what a rank is about to exchange, as it offers it to the others.

All of it is found out without them, so that what can fail has failed before they meet.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch

from sdtree.exchange.checks import check_members, check_open
from sdtree.exchange.leaf_plan import LeafPlan, StageInput
from sdtree.exchange.sets import (
    Agreement,
    Sets,
    Told,
    check_meant,
    meet,
)
from sdtree.exchange.transfer_plan import Transfers
from sdtree.exchange.twins import groups_of
from sdtree.kinds.abstract import Abstract, by_form, held_bytes, look_at, sight_of
from sdtree.path import where
from sdtree.tensors.storage import identity_of
from sdtree.transform.run import Run
from sdtree.transform.stages import CollectiveStage, Stage
from sdtree.typing import Path, Tree
from sdtree.wire.agreement import (
    Canonical,
    Fingerprint,
    LeafSet,
    agree,
    canonical,
    check_names,
)
from sdtree.wire.collectives import RankGroup

ROOT: Final = LeafSet([()], [canonical(())])
"""Where that is which all of a group agree on, whatever their leaves."""

FINGERPRINTS: Final = 1
ASKS: Final = 2
SEEKS: Final = 4
"""What a rank notes in the agreement: whether it offers, and asks to be told more.

It seeks if it is to hear which sets of ranks there are, and what these hold.
"""


def stage_input_of(tree: Tree, stages: Sequence[Stage]) -> StageInput:
    """Return the leaves that stages make of a tree, to be taken window by window."""
    run = Run.of(tree, stages)
    leaves, acts = run.leaves(), bool(run.steps)
    paths = run.spec.every_path
    sight = sight_of(leaves, paths.__getitem__)
    if not sight.stand_alone:
        check_open(paths, leaves, sight.forms)
    known: Sequence[Abstract] | None = sight.forms
    if acts:
        foretold = run.foretell(sight.forms)
        known = None if foretold is None else look_at(foretold)[0]
    held, more = sight.held, (sight.stand_alone, run.reach.written)
    return StageInput(run.spec, paths, leaves, held, acts, known, run.pull, *more)


@dataclass(frozen=True, slots=True)
class ExchangePlan:
    """A tree, a stage that communicates, and those after it, as a rank sees them.

    ``transfers`` tell what becomes of each leaf. ``order`` are the positions of those
    that are wanted, in the canonical order of their paths at the stage, which ``keys``
    tell; those from ``own`` on are only sent. ``beside`` are those of the reports that
    are wanted, which no window has. ``rest`` are the stages after.
    """

    stage: CollectiveStage
    rank_group: RankGroup
    rest: Sequence[Stage]
    transfers: Transfers
    after: Run
    paths: Sequence[Path]
    keys: Mapping[int, Canonical]
    order: Sequence[int]
    own: int
    beside: Sequence[int] = ()

    @classmethod
    def of(
        cls,
        tree: Tree,
        stages: Sequence[Stage],
        stage: CollectiveStage,
        rank_group: RankGroup,
    ) -> ExchangePlan:
        """Return what is proposed for a tree; nobody is asked."""
        place = stages.index(stage)
        has_tree = stage.src in (None, rank_group.me)
        stage_input = stage_input_of(tree, stages[:place]) if has_tree else None
        return cls.by(
            stage, rank_group, stages[place + 1 :], stage.bind(stage_input, rank_group)
        )

    @classmethod
    def by(
        cls,
        stage: CollectiveStage,
        rank_group: RankGroup,
        rest: Sequence[Stage],
        transfers: Transfers,
    ) -> ExchangePlan:
        """Return the plan in which a transfer plan is carried out."""
        reports = [transfers.report] if stage.reports else []
        own, paths = len(transfers.spec), transfers.paths
        forms, read = transfers.forms[:own], transfers.read
        after = Run.foretold(forms, transfers.spec, rest, reports, read)
        wanted = [i for i in after.ids if i < own]
        keys = {i: canonical(paths[i]) for i in (*wanted, *range(own, len(paths)))}
        order = sorted(keys, key=keys.__getitem__)
        beside = [i for i in after.ids if i >= own]
        return cls(
            stage, rank_group, rest, transfers, after, paths, keys, order, own, beside
        )

    def sizes(self) -> dict[int, int]:
        """Return how many bytes each leaf will have here: of a tie, the first.

        What is to come must have been settled.
        """
        transfers, seen = self.transfers, set[Hashable]()
        each, found = by_form(held_bytes, transfers.forms), dict[int, int]()
        for i in self.order:
            if i >= self.own or i in transfers.leaders or not transfers.is_here(i):
                continue
            same = identity_of(transfers.stays(i))
            if transfers.leaf_plans[i].transfers or same not in seen:
                found[i] = each[i]
            seen.add(same)
        return found

    def offered(self) -> dict[tuple[int, ...], Fingerprint]:
        """Return what this rank is to offer, once its part is seen to be possible."""
        for leaf_plan, ids in self._alike(self.transfers.leaf_plans):
            self._check_ranks(self.paths[ids[0]], leaf_plan)
        self._check_able()
        if self.rank_group.is_alone:
            return {}
        check_names([(self.keys[i], self.paths[i]) for i in self.order])
        return self.fingerprints_of(self.rank_group.me, self.transfers.leaf_plans)

    def _alike(
        self, leaf_plans: Sequence[LeafPlan] | Mapping[int, LeafPlan]
    ) -> Iterable[tuple[LeafPlan, list[int]]]:
        """Return each leaf plan, with the leaves that have it, in their order."""
        found: defaultdict[int, list[int]] = defaultdict(list)
        for i in self.order:
            found[id(leaf_plans[i])].append(i)
        return [(leaf_plans[ids[0]], ids) for ids in found.values()]

    def fingerprints_of(
        self, rank: int, leaf_plans: Sequence[LeafPlan] | Mapping[int, LeafPlan]
    ) -> dict[tuple[int, ...], Fingerprint]:
        """Return what a rank is about to do with each set of ranks it is in.

        ``leaf_plans`` are as that rank sees them.
        """
        fingerprints: dict[tuple[int, ...], Fingerprint] = {}
        if common := self.transfers.common:
            fingerprints[self.rank_group.ranks] = Fingerprint({common: ROOT})
        for leaf_plan, ids in self._alike(leaf_plans):
            if leaf_plan.text and (rank in leaf_plan.ranks or not leaf_plan.ranks):
                paths, keys = [self.paths[i] for i in ids], [self.keys[i] for i in ids]
                leaf_set = LeafSet(paths, keys)
                text = f"{leaf_plan.text}, {self.stage.bucket_bytes} bytes at a time"
                fingerprints.setdefault(leaf_plan.ranks, Fingerprint()).add(
                    text, leaf_set, leaf_plan.is_blind
                )
        for ranks, groups in self.ties_told(rank, leaf_plans.__getitem__).items():
            ties = [[self.paths[i] for i in group] for group in groups]
            fingerprints[ranks].ties += ties
        return fingerprints

    def ties_told(
        self, rank: int, leaf_plan_of: Callable[[int], LeafPlan]
    ) -> dict[tuple[int, ...], list[list[int]]]:
        """Return the ties that a rank tells each set of ranks it is in.

        ``leaf_plan_of`` returns the plan of a leaf as that rank sees it.
        """
        found: dict[tuple[int, ...], list[list[int]]] = {}
        for group in self.ties(rank):
            leaf_plan = leaf_plan_of(group[0])
            seen = [i for i in group if not leaf_plan_of(i).is_blind]
            is_in = rank in leaf_plan.ranks or not leaf_plan.ranks
            if leaf_plan.text and is_in and len(seen) > 1:
                found.setdefault(leaf_plan.ranks, []).append(seen)
        return found

    def check_data(self) -> None:
        """Raise if leaves that are wanted have no data; a fake group needs none."""
        rank_group = self.rank_group
        if rank_group.others or not rank_group.ranks[1:]:
            self.transfers.check_data(self.order)

    def _check_able(self) -> None:
        """Raise now, while others can be told, if there is no data, or no room for it.

        What a device lends for buckets it keeps at hand, so that it can be had again.
        """
        self.check_data()
        rank_group, sizes = self.rank_group, Counter[str]()
        if rank_group.is_alone:
            return
        for leaf_plan, ids in self._alike(self.transfers.leaf_plans):
            if leaf_plan.moves:
                sizes[leaf_plan.device] += leaf_plan.nbytes * len(ids)
        for kind, nbytes in sizes.items():
            room, device = min(nbytes, self.stage.bucket_bytes), rank_group.device(kind)
            torch.empty(2 * room, dtype=torch.uint8, device=device)

    def asks(self, rank: int) -> bool:
        """Return whether a rank must hear more than what ranks agree on.

        They agree on the leaves that are wanted.
        """
        is_all = len(self.order) >= self.own
        return not (self.stage.verify and is_all) or self.transfers.asks(rank)

    def seeks(self, *, of_all: bool = False) -> bool:
        """Return whether other sets of ranks may have a part in the leaves wanted."""
        transfers = self.transfers
        plans, forms, goals = transfers.leaf_plans, transfers.forms, transfers.goals
        alike = {(id(plans[i]), id(forms[i])): i for i in self.order}
        found = (goals.is_open(i, of_all=of_all) for i in alike.values())
        return transfers.lacks or any(found)

    def ties(self, rank: int | None = None) -> list[list[int]]:
        """Return the ties among the leaves that are wanted, in canonical order.

        As this rank sees them, or another that has what this one has.
        """
        me = self.rank_group.me
        rank = me if rank is None else rank
        ties = self.transfers.ties if rank == me else self.transfers.ties_on(rank)
        found = [[i for i in group if i in self.keys] for group in ties]
        key = self.keys.__getitem__
        ordered = [sorted(group, key=key) for group in found if group[1:]]
        return sorted(ordered, key=lambda group: key(group[0]))

    def _check_ranks(self, path: Path, leaf_plan: LeafPlan) -> None:
        """Raise unless the group has all ranks that a layout names."""
        if self.rank_group.is_there:
            if leaf_plan.ranks != self.rank_group.ranks:
                check_members(path, leaf_plan.ranks, self.rank_group)
        elif leaf_plan.moves:
            raise RuntimeError(
                f"{where(path)}: {self.stage.text} must communicate with the ranks "
                f"{leaf_plan.ranks}; start with torchrun, and call "
                "torch.distributed.init_process_group() first"
            )

    def agree(
        self, fingerprints: Mapping[tuple[int, ...], Fingerprint]
    ) -> tuple[ExchangePlan, Agreement]:
        """Return what is to be done, all ranks being about to do the same. Collective.

        That is compared if the stage is to ``verify`` it; on the ties that all see the
        plan stands in any case, and on the sets of ranks that hold one path.
        """
        found, ties, asked = self, self.ties(), self.asks(self.rank_group.me)
        agreement = Agreement(ties, asked)
        if not self.rank_group.is_alone:
            seeks = self.seeks()
            note = FINGERPRINTS * bool(fingerprints) | ASKS * asked | SEEKS * seeks
            verify, advice = self.stage.verify, self.transfers.advice
            notes, shared, are_apart, key = agree(
                self.rank_group, fingerprints, note, verify=verify, advice=advice
            )
            all_settle = any(note & FINGERPRINTS for note in notes)
            asked = are_apart or any(note & ASKS for note in notes)
            own = self._with_own(ties, fingerprints, shared)
            agreement = Agreement(own, asked, all_settle, key=key)
            if are_apart or any(note & SEEKS for note in notes):
                (found, ties), sets = self._meet(own, are_apart)
                agreement = Agreement(ties, asked, all_settle, sets, own, key)
        found.open(agreement)
        return found, agreement

    def agreed(self, agreement: Agreement) -> ExchangePlan:
        """Return what is to be done if this was agreed on for leaves of these forms."""
        found = self
        if agreement.sets is not None:
            found, _ = self._having_met(agreement.sets, agreement.own)
        found._check_able()
        return found

    def over(self, transfers: Transfers) -> ExchangePlan:
        """Return this plan over other leaves of the same forms."""
        if not self.after.steps:
            return replace(self, transfers=transfers)
        return ExchangePlan.by(self.stage, self.rank_group, self.rest, transfers)

    def open(self, agreement: Agreement) -> None:
        """Settle what is left to settle; it may communicate."""
        self.transfers.open(self.order, agreement.ties, agreement.asked)

    def _with_own(
        self,
        ties: Sequence[Sequence[int]],
        fingerprints: Mapping[tuple[int, ...], Fingerprint],
        shared: Sequence[Sequence[Path]],
    ) -> list[list[int]]:
        """Return the ties that all see, and those of which no others have a part."""
        leaf_plans = self.transfers.leaf_plans
        position = {self.paths[i]: i for i in self.order if shared}
        own = ((group, leaf_plans[group[0]]) for group in ties)
        return [[position[path] for path in group] for group in shared] + [
            [*group]
            for group, leaf_plan in own
            if not (leaf_plan.text and leaf_plan.ranks in fingerprints)
        ]

    # -- sets of ranks that do not see each other ----------------------------------

    def _meet(
        self, ties: Sequence[Sequence[int]], are_apart: bool
    ) -> tuple[tuple[ExchangePlan, list[list[int]]], Sets]:
        """Return the exchange plan and its ties, once all sets are told. Collective."""

        def tell() -> Told | None:
            return self._tellings(ties, are_apart=are_apart).get(self.rank_group.me)

        def act(sets: Sets) -> tuple[ExchangePlan, list[list[int]]]:
            found, moved = self._having_met(sets, ties)
            found._check_able()
            return found, moved

        return meet(self.rank_group, tell, act)

    def _tellings(
        self,
        ties: Sequence[Sequence[int]],
        *,
        are_apart: bool = False,
        of_all: bool = False,
    ) -> dict[int, Told]:
        """Return what each rank tells of the sets in which it is the first.

        That is as far as this rank can tell: of those that it is in. Leaves that are
        not sharded are told if ranks ``are_apart`` in these; each is a set by itself.
        """
        plans, goals = self.transfers.leaf_plans, self.transfers.goals
        alone = [tie for tie in self.ties() if not plans[tie[0]].ranks]
        seen = [*ties, *(alone if are_apart else ())]
        number = {i: k for k, group in enumerate(seen, 1) for i in group}
        found = goals.claims(self.order, are_apart=are_apart, of_all=of_all)
        claims = {
            self.keys[i]: claim._replace(
                tie=number.get(i, claim.tie), bucket_bytes=self.stage.bucket_bytes
            )
            for i, claim in found.items()
        }
        return Told.by(claims, self.transfers.spec)

    def foreseen(self) -> tuple[ExchangePlan, list[list[int]], list[int]]:
        """Return what is to be done if no ranks hold leaves that this one does not see.

        Also the ties, and how many bytes each rank is to tell of its sets, if any is.
        """
        ties = self.ties()
        if not self.seeks(of_all=True):
            return self, ties, []
        told = self._tellings(ties, of_all=True)
        found, ties = self._having_met(Sets.of([*told.values()]), ties)
        return found, ties, [len(one.as_bytes()) for one in told.values()]

    def _having_met(
        self, sets: Sets, ties: Sequence[Sequence[int]]
    ) -> tuple[ExchangePlan, list[list[int]]]:
        transfers = self.transfers.met(sets)
        found = ExchangePlan.by(self.stage, self.rank_group, self.rest, transfers)
        place = {key: i for i, key in found.keys.items()}
        check_meant(self.rank_group, self.stage, sets, place)
        keys = ([self.keys[i] for i in group] for group in ties)
        alone = ([place[key] for key in group if key not in sets] for group in keys)
        moved = [group for group in alone if group[1:]]
        together = (i for i in found.order if found.keys[i] in sets)
        bonds = {i: transfers.goals.bond(i, sets) for i in together}
        return found, moved + groups_of(bonds)
