"""Loads that would leave an optimizer without any of its state, and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from sdtree.naming.globs import Segments
from sdtree.naming.rekeying import segments_at
from sdtree.typing import Path

RECIPE: Final = (
    "have torch.distributed.checkpoint.state_dict.get_optimizer_state_dict(model, "
    "optimizer) make both: its keys are names, and it gives a fresh optimizer the "
    "state to be like; what has numbers is loaded into an optimizer of its own "
    "before, by optimizer.load_state_dict"
)


def lost_state(source: Sequence[Path], target: Sequence[Path]) -> str:
    """Return why none of an optimizer's state would be loaded, empty if some would.

    An optimizer is told by its ``param_groups``, here or there.
    """
    here, there = ([segments_at(path) for path in paths] for paths in (source, target))
    return _lost(here, there, _roots([*here, *there]))


def loses_state(source: Sequence[Path], target: Sequence[Path]) -> bool:
    """Return whether a target that has an optimizer would get none of its state."""
    here, there = ([segments_at(path) for path in paths] for paths in (source, target))
    return bool(_lost(here, there, _roots(there)))


def _lost(
    here: Sequence[Segments], there: Sequence[Segments], roots: Iterable[Segments]
) -> str:
    """Return why an optimizer at one of some roots would get none of its state."""
    for root in dict.fromkeys(roots):
        mine, theirs = (_below((*root, "state"), names) for names in (here, there))
        if mine and not mine & theirs:
            name = ".".join((*root, "state"))
            return f"{_why(mine, theirs, name)}; {RECIPE}; or {_without(name)}"
    return ""


def _roots(names: Iterable[Segments]) -> Iterable[Segments]:
    for name in names:
        if "param_groups" in name:
            yield name[: name.index("param_groups")]


def _below(root: Segments, names: Iterable[Segments]) -> set[Segments]:
    return {name[len(root) :] for name in names if name[: len(root)] == root}


def _why(mine: set[Segments], theirs: set[Segments], name: str) -> str:
    told = f"nothing of the optimizer's state at {name} would be loaded"
    if not theirs:
        return f"{told}, for the target has none, as a fresh optimizer"
    if all(first.isdigit() for first, *_ in mine):
        return f"{told}, for the source has it by number and the target by name"
    return f"{told}, for the source has it by other names than the target"


def _without(name: str) -> str:
    return f"to do without it, sd.drop(source, '{name}.**')"
