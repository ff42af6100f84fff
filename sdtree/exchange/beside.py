"""What leaves are beside their tensors, and why that of one does not fit another."""

from __future__ import annotations

from collections.abc import Sequence

from sdtree.exchange.leaf_plan import StageInput
from sdtree.kinds.abstract import Abstract, by_form, has_no_makeup
from sdtree.kinds.handler import Makeup, makeup_of
from sdtree.kinds.values import same_value
from sdtree.typing import Leaf


def makeups_in(leaves: Sequence[Leaf], forms: Sequence[Abstract]) -> dict[int, Makeup]:
    """Return what leaves are beside their tensors, by position, where that is more."""
    plain = by_form(has_no_makeup, forms)
    found = ((i, makeup_of(leaves[i])) for i, is_so in enumerate(plain) if not is_so)
    return {i: makeup for i, makeup in found if makeup is not None}


def makeups_to_come(
    stage_input: StageInput, forms: Sequence[Abstract]
) -> dict[int, Makeup]:
    """Return what leaves are beside their tensors when the steps before have acted.

    These leaves are few, and made once more when their turn comes.
    """
    found = makeups_in(stage_input.leaves, forms)
    if not found or not stage_input.is_acted_on:
        return found
    pulled = zip(found, stage_input.pull([*found]), strict=True)
    return {i: makeup for i, x in pulled if (makeup := makeup_of(x)) is not None}


def difference_beside(source: Makeup | None, target: Makeup | None) -> str:
    """Return why what one leaf is beside its tensors does not go onto another."""
    here, there = (None if x is None else x.kind for x in (source, target))
    names = ("Tensor" if x is None else x.__name__ for x in (here, there))
    return "" if here is there else unlike("kind", *names)


def difference_in(source: Makeup | None, target: Makeup | None) -> str:
    """Return in what leaves of one kind differ beside their tensors."""
    if source is None or target is None or same_value(source.aux, target.aux):
        return ""
    if not (source.is_known and target.is_known):
        return ""  # one of them has no data, and is refused for that
    return unlike("", source.aux, target.aux)


def unlike(what: str, here: object, there: object) -> str:
    """Return in what a leaf of the source is not as its target is."""
    return f"{what} {here} in the source, {there} in the target".lstrip()
