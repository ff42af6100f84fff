"""Leaves that come to the places where a file has them: written there, or copied."""

from __future__ import annotations

from collections.abc import Sequence

from sdtree.io.leaves.given import check_data
from sdtree.io.leaves.sharing import copy_bytes
from sdtree.io.safetensors.kinds import as_in_file
from sdtree.kinds.handler import tensors_of
from sdtree.path import with_place
from sdtree.tensors.modes import writing
from sdtree.transform.run import Run
from sdtree.transform.stages import LeafStage, Pour
from sdtree.transform.window import Window, apart
from sdtree.typing import Leaf


def pour_of(run: Run) -> Pour | None:
    """Return what writes leaves in place of the one step of a run, if that can."""
    stages = [step.stage for step in run.steps]
    only = stages[0] if len(stages) == 1 else None
    return only.pour if isinstance(only, LeafStage) else None


def poured(window: Window, targets: Sequence[Leaf], pour: Pour, run: Run) -> Window:
    """Write leaves straight to their places, and return the others as a run has them.

    ``targets`` are the places of all leaves of the run.
    """
    left = dict(zip(window.positions, window.leaves, strict=True))
    with writing():
        for i, k in enumerate(window.positions):
            places = tensors_of(targets[k])
            try:
                if len(places) == 1 and pour(left[k], *places):
                    del left[k]
            except Exception as error:
                raise with_place(error, window.path(i)) from None
    _, leaves = run.act([run.ids[k] for k in left], [*left.values()])
    return Window(window.spec, [*left], leaves)


def write(window: Window, targets: Sequence[Leaf]) -> None:
    """Copy a window to the leaves in its places."""
    with writing():
        sources = apart([*map(as_in_file, window.leaves)], window.path)
        check_data(sources, window.paths())
        rest = apart([targets[k] for k in window.positions], window.path).tensors
        for source, target in zip(sources.tensors, rest, strict=True):
            copy_bytes(source, target)
