"""An exchange that ranks agree on once, for many trees of one form.

A call begins with one word of each rank: does its tree fit? Only if one does not is
there more to hear, and then all refuse together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from sdtree.errors import SpecMismatch
from sdtree.exchange.exchange import (
    Exchange,
    heard,
    planned,
    refuse_during_stream,
)
from sdtree.exchange.exchange_plan import ExchangePlan
from sdtree.exchange.leaf_plan import StageInput
from sdtree.exchange.persistent import Persistent
from sdtree.exchange.sets import Agreement
from sdtree.exchange.windows import ExchangeWindow, cut
from sdtree.kinds.handler import tensors_of
from sdtree.tensors.modes import making
from sdtree.transform.form import Look, Looks
from sdtree.transform.run import Run
from sdtree.transform.stages import (
    CollectiveStage,
    Lasting,
    Meeting,
    Stage,
)
from sdtree.typing import Leaf, Tree
from sdtree.wire.agreement import all_fit, report_failures
from sdtree.wire.collectives import RankGroup, gather_objects
from sdtree.wire.messages import Column


@dataclass(slots=True)
class Known:
    """What is known of leaves that lie where those lay that came last.

    Their ``windows`` keep what they are sent from, but of those that came from there
    only once: these would be kept alive.
    """

    windows: Sequence[ExchangeWindow]
    places: tuple[object, ...] = ()
    is_again: bool = False

    def has(self, places: tuple[object, ...]) -> bool:
        """Return whether leaves lie there that lay there when they came last."""
        return places == self.places and None not in places

    def note(self, places: tuple[object, ...]) -> None:
        """Note where leaves lie that fit."""
        was, self.is_again = self.is_again, self.has(places)
        self.places = places
        if was is not self.is_again:
            kept = dict[int, Column]() if self.is_again else None
            self.windows = [replace(x, kept=kept) for x in self.windows]


@dataclass(frozen=True, slots=True)
class PreparedExchange:
    """What ranks have agreed on for stages of which one communicates.

    ``plan`` is the one that they made it for, and its windows are ``known``; ``ids``
    are the positions in the tree of the leaves that come to the stage, None if stages
    before change these. A rank that has no tree for the plan, and is not heard before,
    goes on with junk and fails.
    """

    stages: Sequence[Stage]
    stage: CollectiveStage
    rank_group: RankGroup
    agreement: Agreement
    plan: ExchangePlan
    ids: Sequence[int] | None
    known: Known

    @classmethod
    def prepare(
        cls,
        tree: Tree,
        stages: Sequence[Stage],
        stage: CollectiveStage,
        lasting: Lasting | None,
    ) -> PreparedExchange:
        """Return what all ranks agree on for trees of one form. Collective."""
        with making():
            plan, fingerprints = planned(tree, stages, stage)
            rank_group, ids = plan.rank_group, None
            with heard(stage.group, tree):
                if stage.src in (None, rank_group.me):
                    run = Run.of(tree, stages[: stages.index(stage)])
                    ids = None if run.steps else run.ids
            plan, agreement = plan.agree(fingerprints)
            if lasting is not None:
                leaders = plan.transfers.leaders
                tied = {*leaders, *leaders.values()}
                plan.transfers.persistent = Persistent(lasting, tied)
            windows = cut(plan.order, plan.transfers, stage.bucket_bytes)
        return cls(stages, stage, rank_group, agreement, plan, ids, Known(windows))

    def start(self, tree: Tree, check: Callable[[], Looks]) -> Exchange:
        """Return the exchange of a tree, if the check of each rank passes. Collective.

        Without a word before, a rank whose tree does not fit keeps to what was agreed
        on with junk, and all fail in the end.
        """
        refuse_during_stream(self.stage.text)
        plan, is_open = self.plan, False
        error: BaseException | None = None
        with making():
            try:
                looks = check()
                self._keep_clear(looks.tree)
                quick = self._again(looks)
                plan, is_open = quick or self._planned(tree), quick is not None
            except BaseException as failure:  # an interrupt, too
                error = failure
            try:
                if error is None or self.stage.verify or not self.rank_group.others:
                    key = self.agreement.key
                    refuse_misfits(self.stage, self.rank_group, error, key)
                if not is_open:
                    plan.open(self.agreement)
                known = self.known.windows if is_open else None
                found = Exchange.agreed(plan, self.agreement.all_settle, known)
                found.error = error or found.error
                return found
            finally:
                error = None  # it would hold this frame, and the frame it

    def _keep_clear(self, look: Look | None) -> None:
        """Have nothing received into what is to be sent: results that came before."""
        persistent = self.plan.transfers.persistent
        if persistent is not None and persistent.has_leaves and look is not None:
            held = look.held or [t for x in look.leaves for t in tensors_of(x)]
            persistent.keep_clear_of(held)

    def _planned(self, tree: Tree) -> ExchangePlan:
        """Return the plan for a tree, made anew but for what is agreed on."""
        stages, stage, rank_group = self.stages, self.stage, self.rank_group
        plan = ExchangePlan.of(tree, stages, stage, rank_group)
        plan = plan.agreed(self.agreement)
        plan.transfers.persistent = self.plan.transfers.persistent
        return plan

    def _again(self, looks: Looks) -> ExchangePlan | None:
        """Return the open plan for the leaves of a tree of the form, if it serves."""
        source = self.plan.transfers.source.stage_input
        given = looks.of(self.stage.like)
        if self.agreement.sets is not None:
            return None
        if source is not None:
            source = self._input(source, looks.tree)
            if source is None:
                return None
        places = looks.places()
        if given is not None:
            given = given._replace(lies_apart=self.known.has(places))
        transfers = self.plan.transfers.again(source, given)
        if transfers is None:
            return None
        self.known.note(places)
        return self.plan.over(transfers)

    def _input(self, source: StageInput, look: Look | None) -> StageInput | None:
        """Return the leaves of a tree as they come to the stage, if nothing acts."""
        if self.ids is None or look is None or not look.held:
            return None
        held, leaves = look.tensors(), [look.leaves[i] for i in self.ids]

        def pull(ids: Sequence[int]) -> Sequence[Leaf]:
            return [leaves[i] for i in ids]

        tensors = [held[i] for i in self.ids]
        return replace(source, leaves=leaves, held=tensors, pull=pull)


def check_together(
    stage: CollectiveStage, tree: Tree, check: Callable[[], None]
) -> None:
    """Make a check on each rank that is to meet in a stage; if one fails, all raise.

    Collective, unless the stage is not to ``verify``: then those hear it who wait.
    """
    if not stage.verify:
        with heard(stage.group, tree):
            return check()
    refuse_during_stream(stage.text)
    error: BaseException | None = None
    try:
        check()
    except BaseException as failure:  # an interrupt, too
        error = failure
    try:
        with making():
            refuse_misfits(stage, RankGroup.of(stage.group, stage.text), error)
    finally:
        error = None  # it would hold this frame, and the frame it
    return None


def refuse_misfits(
    stage: CollectiveStage,
    rank_group: RankGroup,
    error: BaseException | None,
    key: int = 0,
) -> None:
    """Raise if there is an error here or on another rank: of a misfit, the same.

    So, too, if what was agreed on has another ``key`` there. Collective, unless the
    stage is not to ``verify``.
    """
    if stage.verify and rank_group.others and not all_fit(rank_group, key, error):
        _tell(rank_group, error)
    if error is not None:
        raise error


def _tell(rank_group: RankGroup, error: BaseException | None) -> None:
    """Tell all of the errors of ranks, and raise for the first misfit. Collective."""
    mine = str(error) if isinstance(error, SpecMismatch) else ""
    texts: list[str] = gather_objects(rank_group, mine)
    if not any(texts):
        report_failures(rank_group, error, None, "before anything moved")
    elif error is None:
        pairs = zip(rank_group.ranks, texts, strict=True)
        rank, text = next(pair for pair in pairs if pair[1])
        raise SpecMismatch(f"on rank {rank}, {text}")


MEETING: Final = Meeting(
    Exchange.start, heard, PreparedExchange.prepare, check_together
)
"""How ranks meet for a stage in which they exchange leaves."""
