"""What acts inside a step of ``where``, and on which leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sdtree.ops.choosing import mask_of
from sdtree.plan.held import LeafCost
from sdtree.transform.run import Step
from sdtree.transform.stages import Check, LeafStage, StageContext

Inside = tuple[list[int], list[tuple[Step, LeafStage]]]
"""The places of the leaves that are meant, and the steps that these pass."""


def inside_of(
    step: Step, stage: LeafStage, ids: Sequence[int], leaves: Sequence[LeafCost]
) -> Inside | None:
    """Return what is inside a step, None if nothing is or data must be looked at."""
    mask = mask_of(stage) if step.on_abstract else None
    if mask is None:
        return None
    which, stages = mask
    places = ids if step.positions is None else [step.positions[i] for i in ids]
    paths = (step.spec.every_path[k] for k in places)
    pairs = enumerate(zip(paths, leaves, strict=True))
    hits = [k for k, (path, held) in pairs if which(path, held.form)]
    entry = StageContext(step.spec, None, _nothing, _no_check)
    return hits, [(replace(step, action=x.bind(entry), stage=x), x) for x in stages]


def _nothing() -> None:
    """Return that no leaf is foretold."""


def _no_check(_: Check) -> None:
    """Take a check, which the step around makes."""
