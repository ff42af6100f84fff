"""Directories of DCP that all ranks write at once: each its boxes, replicas once."""

from __future__ import annotations

from collections.abc import Callable

from sdtree.io.dcp.folder import replacing
from sdtree.io.dcp.told import Told, aliases_of, left_to_others
from sdtree.io.dcp.writing import Plan, Source, Writing, finish
from sdtree.io.disk.crew import Crew
from sdtree.io.disk.target import Source as Target
from sdtree.io.texts import Options
from sdtree.path import reject_collisions_among
from sdtree.typing import Tree
from sdtree.wire.collectives import RankGroup


def save_from_ranks(
    tree: Tree,
    target: Target,
    options: Options,
    rank_group: RankGroup,
    ready: Callable[[Tree], Tree],
) -> None:
    """Write the parts of a tree from all ranks, and what is beside from the first.

    ``ready`` makes of leaves what can be written. If one rank fails, all raise, and
    nothing is left of what was written. Collective.
    """
    crew, plans = Crew.of(rank_group), list[Plan]()

    def tell() -> Told:
        plans.append(Plan.of(ready(tree)))
        return plans[0].told()

    told = crew.meet(tell)
    reject_collisions_among(each.paths for each in told)
    source = Source.of(plans[0], options.done)
    left = {*aliases_of(told)} | left_to_others(told, told[crew.turn])
    writing = Writing(plans[0], left, source)
    every = crew.meet(writing.own)
    with crew.room(replacing, target) as room:
        finish(writing, room, every, told, options.metadata, crew)
