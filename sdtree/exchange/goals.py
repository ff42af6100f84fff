"""Goals: where leaves go that a source has, once all sets of ranks are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sdtree.errors import LayoutError
from sdtree.exchange.sets import Claim, Ranks, Sets, mismatched, told_form
from sdtree.kinds.abstract import Abstract
from sdtree.layout.layout import Layout
from sdtree.layout.schedule import alike, united
from sdtree.path import where
from sdtree.typing import Path
from sdtree.wire.agreement import canonical


@dataclass(slots=True)
class Goals:
    """Where leaves go, by position, where that is more than one rank sees.

    ``layouts`` unite those of all sets; ``groups`` are the ranks that are each to have
    a leaf as it is.
    """

    layouts: dict[int, Layout] = field(default_factory=dict[int, Layout])
    groups: dict[int, Ranks] = field(default_factory=dict[int, Ranks])

    def at(self, i: int) -> Layout | Ranks | None:
        """Return what is known of a leaf, None if it is all in one set."""
        return self.layouts.get(i) or self.groups.get(i)

    def unite(
        self, i: int, path: Path, sets: Sets, form: Abstract, is_sharded: bool, me: int
    ) -> None:
        """Take note of the sets that are to have a leaf, which is of a form here."""
        key = canonical(path)
        first, *_ = claims = sets.claims[key]
        if first.is_sharded is not is_sharded:
            raise mismatched(
                path,
                f"the ranks {first.ranks} have {first.form}, and rank {me} has {form}; "
                "give leaves of one kind on every rank that holds a part",
                (first.ranks[0], me),
            )
        if is_sharded:
            targets = dict.fromkeys(x.target for x in claims if x.target is not None)
            self.layouts[i] = united(*targets)
        else:
            self.groups[i] = sets.holders(key)


def claim_of(
    form: Abstract, source: Layout | None, target: Layout | None, wire: str, me: int
) -> Claim | None:
    """Return what those have to do with a leaf that see it as a rank does.

    None if that has no part of it, or it is not sharded.
    """
    ranks = alike(me, *(x for x in (source, target) if x is not None))
    if not ranks or form.dtype is None:
        return None
    return Claim(ranks, told_form(form, None), source, target, wire=wire)


def check_same_ranks(path: Path, claims: Sequence[Claim]) -> None:
    """Raise unless a leaf goes to the very ranks that have it, all sets together."""
    sources = {r for claim in claims if claim.source for r in claim.source.ranks}
    targets = {r for claim in claims if claim.target for r in claim.target.ranks}
    if sources and sources != targets:
        raise LayoutError(
            f"{where(path)}: the leaf lies on the ranks {sorted(sources)}, the target "
            f"on {sorted(targets)}; redistribute works over the same ranks, otherwise "
            "gather and broadcast"
        )
