"""What becomes of leaves in an exchange, as it is known on one rank without data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sdtree.exchange.exchange_plan import ExchangePlan
from sdtree.exchange.leaf_plan import LeafPlan
from sdtree.exchange.transfer_plan import Transfers
from sdtree.kinds.abstract import Abstract
from sdtree.path import where
from sdtree.plan.cost import bytes_moved, bytes_of_form, bytes_on, mask_of
from sdtree.plan.held import Come, Known, LeafCost, Moved
from sdtree.plan.traffic import Ranks
from sdtree.transform.run import Run
from sdtree.transform.stages import CollectiveStage
from sdtree.typing import Path


def leaf_plans_of(transfers: Transfers, me: int) -> list[LeafPlan]:
    """Return the plan of each leaf, as a rank sees it that has a part in it."""
    found = list(transfers.leaf_plans)
    for i in range(len(found)):
        members = transfers.goals.members(i)
        if members and me not in members:
            found[i] = transfers.goals.leaf_plan(i, members[0])
    return found


def begins_of(
    before: Run, stage: CollectiveStage, held: Known, everyone: Ranks
) -> dict[Path, Come]:
    """Return what comes to a stage, by its path there, and its place before."""
    paths = before.source_spec.paths()
    places = zip(before.spec.paths(), before.ids, strict=True)
    found = {path: (i, held[paths[i]]) for path, i in places}
    if stage.src is None:
        return found
    mask = mask_of((stage.src,), everyone)
    return {path: (i, x.on(mask)) for path, (i, x) in found.items()}


def taken_of(
    plan: ExchangePlan,
    i: int,
    leaf_plan: LeafPlan,
    come: LeafCost | None,
    everyone: Ranks,
) -> LeafCost:
    """Return a leaf as it comes out of the stage."""
    transfers = plan.transfers
    form, home = Abstract.of(transfers.forms[i]), transfers.home(i)
    ends = transfers.goals.ends(i)
    if come is None:
        kind = home.type if home else "cpu"
        come = LeafCost(form, bytes_of_form(form, everyone), kind)
    share = 1 if ends is None else mask_of(ends, everyone)
    is_tied = i in transfers.leaders
    if not leaf_plan.transfers and not is_tied:
        if ends is None and form is come.form:
            return come
        return come.on(share)._replace(form=form, ranks=ends)
    nbytes, moved = 0 * come.nbytes, come.moved
    for transfer in () if is_tied else leaf_plan.transfers:
        if leaf_plan.moves:
            nbytes = nbytes + bytes_on(transfer.target, transfer.dtype, everyone)
            went = Moved(*bytes_moved(transfer, everyone))
            moved = went if moved is None else moved.and_also(went)
    if not leaf_plan.moves and not is_tied:
        nbytes = bytes_of_form(form, everyone)
    return come._replace(
        form=form,
        nbytes=nbytes * share,
        home=come.home if home is None else home.type,
        is_new=transfers.targets is None,
        ranks=ends,
        moved=moved,
        ts=(),
        memory=None,
        rooms=(),
    )


def ties_noted(plan: ExchangePlan, leaf_plans: Sequence[LeafPlan]) -> Iterator[str]:
    """Yield which ties cannot be seen here, and which do not come to be."""
    text, transfers = plan.stage.text, plan.transfers
    everyone = (), plan.rank_group.ranks
    is_apart = [bool(x.text) and x.ranks not in everyone for x in leaf_plans]
    apart = [group for group in plan.ties() if any(is_apart[i] for i in group)]
    for groups, told in (
        (transfers.unseen_ties(), "may be tied, which is not seen on this rank"),
        (apart, "are counted as if other sets of ranks saw that they are tied"),
        (transfers.untied(), "share memory here, and their wholes have each its own"),
    ):
        for group in groups:
            names = [where(plan.paths[i]) for i in group if i in plan.keys]
            more = f" and {len(names) - 3} more" if names[3:] else ""
            if names[1:]:
                yield f"{text}: {', '.join(names[:3])}{more} {told}"
