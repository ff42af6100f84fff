"""What becomes of a leaf: where it comes from, how it travels, its tensors at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from sdtree.kinds.abstract import Abstract
from sdtree.kinds.handler import tensors_of
from sdtree.layout.schedule import Transfer
from sdtree.tree.spec import TreeSpec
from sdtree.typing import Leaf


@dataclass(frozen=True, slots=True)
class StageInput:
    """The leaves that come to a communicating stage.

    ``leaves`` are those that the stages before begin with, ``held`` their local tensors
    and ``is_acted_on`` tells whether these stages change them; ``forms`` are what they
    are to be, None if that cannot be foretold. ``pull`` has the stages act on the
    leaves at some positions of ``spec``.
    """

    spec: TreeSpec
    leaves: Sequence[Leaf]
    held: Sequence[Sequence[Tensor]]
    is_acted_on: bool
    forms: Sequence[Abstract] | None
    pull: Callable[[Sequence[int]], Sequence[Leaf]]

    def known(self) -> Sequence[Abstract]:
        """Return what the leaves are to be, for a stage that must know it."""
        assert self.forms is not None, "runs are cut before what cannot be foretold"
        return self.forms

    def tensors(self, i: int, leaf: Leaf) -> Sequence[Tensor]:
        """Return the local tensors of a leaf that has come to the stage from there."""
        return self.held[i] if leaf is self.leaves[i] else tensors_of(leaf)


class LeafPlan(NamedTuple):
    """What is to become of a leaf: the same object for leaves that are alike.

    ``ranks`` must agree on ``text``; are there none, it is for whoever has the leaf.
    If it ``moves`` they take part in its window, over ``device``, or those of ``crew``
    where these are others; ``is_partial``: its terms are reduced before. ``nbytes`` are
    those of the whole leaf. ``is_blind``: this rank holds nothing of it, and so cannot
    tell whether it is tied.
    """

    nbytes: int = 0
    ranks: tuple[int, ...] = ()
    text: str = ""
    moves: bool = False
    is_partial: bool = False
    device: str = "cpu"
    transfers: tuple[Transfer, ...] = ()
    is_blind: bool = False
    crew: tuple[int, ...] = ()


class LeafBuffers(NamedTuple):
    """A leaf at hand: what becomes of it, and what to read and write, by transfer.

    ``leaf`` may be made before its data has come, unless ``finish`` makes it then.
    """

    leaf: Leaf
    sources: Sequence[Sequence[Tensor]] = ()
    targets: Sequence[Sequence[Tensor]] = ()
    finish: Callable[[], Leaf] | None = None

    def sides(self, transfer: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Return what to read and where to write for a transfer, by its number."""
        return self.sources[transfer], self.targets[transfer]

    def finished(self) -> Leaf:
        """Return what has become of the leaf, now that its data has come."""
        return self.leaf if self.finish is None else self.finish()


def per_transfer(ts: Sequence[Tensor], count: int) -> list[Sequence[Tensor]]:
    """Return the local tensors of each transfer: all of them if it is the only one."""
    return [ts] if count == 1 else [[t] for t in ts]
