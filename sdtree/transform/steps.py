"""The steps of a run: its actions, bound to the tree that comes to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sdtree.transform.stages import Action, LeafStage, SelectStage
from sdtree.transform.window import Window
from sdtree.tree.containers import ABSENT
from sdtree.tree.spec import TreeSpec
from sdtree.typing import Leaf


@dataclass(frozen=True, slots=True)
class Step:
    """An action, and at which position a leaf of the source stands when it acts.

    ``dropped`` are the source positions of the leaves that it has dropped so far.
    """

    action: Action
    spec: TreeSpec
    positions: dict[int, int] | None
    stage: LeafStage | SelectStage
    by_leaf: bool = True
    on_abstract: bool = False
    dropped: set[int] = field(default_factory=set[int], kw_only=True)

    def act(self, ids: Sequence[int], leaves: list[Leaf]) -> list[Leaf]:
        """Return what the action makes of the leaves with these source positions."""
        places = self.positions
        found = ids if places is None else [places[i] for i in ids]
        return self.action(Window(self.spec, found, leaves))

    def kept(self, ids: Sequence[int], leaves: Sequence[Leaf]) -> list[int]:
        """Return the places of the leaves that are left, and note which are not."""
        kept = [k for k, leaf in enumerate(leaves) if leaf is not ABSENT]
        self.dropped.update({*ids}.difference(ids[k] for k in kept))
        return kept


class Passage(NamedTuple):
    """What comes to a stage: leaves, as positions of the source, and how."""

    ids: Sequence[int]
    spec: TreeSpec
    steps: Sequence[Step]
